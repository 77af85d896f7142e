// Threads that take a forward pass through its phases together.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
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

// Work in phases. A phase ends when its tasks are done, not when everybody has come: a thread that the system has put
// aside between two tasks holds up nobody, and passes through the phases that are over when it comes back.
class Round {
  public:
    explicit Round(int phases) : phases_(phases) {}
    virtual ~Round() = default;

    // What each thread does: the same phases in the same order. What is read outside of tasks belongs to the round.
    virtual void work(int member) = 0;

  protected:
    // Calls task(i) for each i < count on whichever thread is free, and returns when all are done.
    template <class Task>
    void phase(int& number, int count, const Task& task) {
        Phase& phase = phases_[number++];
        for (int i; (i = phase.taken.fetch_add(1, std::memory_order_relaxed)) < count;) {
            task(i);
            if (phase.done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) phase.done.notify_all();
        }
        for (int turn = 0;; turn++) {
            int done = phase.done.load(std::memory_order_acquire);
            if (done >= count) return;
            if (turn < 2000) relax();
            else if (turn < 2050) std::this_thread::yield();
            else phase.done.wait(done, std::memory_order_acquire);
        }
    }

  private:
    struct alignas(64) Phase {
        std::atomic<int> taken{0}, done{0};
    };
    std::vector<Phase> phases_;
};

class Team {
  public:
    explicit Team(int size) {
        for (int member = 1; member < size; member++) threads_.emplace_back([this, member] { help(member); });
    }

    ~Team() {
        {
            std::lock_guard lock(mutex_);
            closing_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return int(threads_.size()) + 1; }

    // Does the round's work on this thread; the others help if it is `large`. Returns when all of it is done.
    void run(const std::shared_ptr<Round>& round, bool large) {
        if (large && !threads_.empty()) {
            {
                std::lock_guard lock(mutex_);
                round_ = round;
                count_++;
            }
            wake_.notify_all();
        }
        round->work(0);
    }

  private:
    void help(int member) {
        unsigned seen = 0;
        for (;;) {
            std::shared_ptr<Round> round;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return closing_ || count_ != seen; });
                if (closing_) return;
                seen = count_;
                round = round_;
            }
            round->work(member);
        }
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Round> round_;
    unsigned count_ = 0;
    bool closing_ = false;
};
