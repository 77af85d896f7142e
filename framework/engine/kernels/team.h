// Threads that take a forward pass through its phases together.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int member = 1; member < size; member++) threads_.emplace_back([this] { wait_for_work(); });
    }

    ~Team() {
        {
            std::lock_guard lock(mutex_);
            closing_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // Runs `work(member)` on every member at once. `phases` is at least the number of `next` loops and barriers in it.
    void run(int phases, const std::function<void(int)>& work) {
        if (counters_.size() < size_t(phases)) counters_ = std::vector<Counter>(phases);
        for (int i = 0; i < phases; i++) counters_[i].taken.store(0, std::memory_order_relaxed);
        waiting_ = size_;
        joined_ = 1;
        {
            std::lock_guard lock(mutex_);
            work_ = &work;
            round_++;
            running_ = size_ - 1;
        }
        wake_.notify_all();
        work(0);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        work_ = nullptr;
    }

    // The next of `count` tasks of a phase; -1: all are taken.
    int next(int phase, int count) {
        int task = counters_[phase].taken.fetch_add(1, std::memory_order_relaxed);
        return task < count ? task : -1;
    }

    // Nobody passes before everybody is here.
    void barrier() {
        if (size_ == 1) return;
        unsigned turn = turn_.load(std::memory_order_acquire);
        if (waiting_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            waiting_.store(size_, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            turn_.notify_all();
            return;
        }
        for (int spin = 0; spin < 4000; spin++) {
            if (turn_.load(std::memory_order_acquire) != turn) return;
            relax();
        }
        while (turn_.load(std::memory_order_acquire) == turn) turn_.wait(turn, std::memory_order_acquire);
    }

  private:
    struct alignas(64) Counter {
        std::atomic<int> taken{0};
        Counter() = default;
        Counter(const Counter&) {}
    };

    void wait_for_work() {
        unsigned seen = 0;
        for (;;) {
            const std::function<void(int)>* work;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return closing_ || round_ != seen; });
                if (closing_) return;
                seen = round_;
                work = work_;
            }
            (*work)(joined_.fetch_add(1));
            std::lock_guard lock(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    int size_;
    std::vector<std::thread> threads_;
    std::vector<Counter> counters_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)>* work_ = nullptr;
    unsigned round_ = 0;
    int running_ = 0;
    bool closing_ = false;
    std::atomic<int> waiting_{0}, joined_{1};
    std::atomic<unsigned> turn_{0};
};
