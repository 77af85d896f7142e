// One forward pass of a Llama-like decoder on a CPU, over many sequences at once.
//
// All threads go through the same phases, whose tasks are taken as threads become free.
// Whatever is summed is summed in an order that depends on the row alone: batched equals alone, to the bit.
#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "model.h"
#include "team.h"
#include "vectors.h"

namespace {

// Memory that grows and is never cleared.
template <class T>
class Buffer {
  public:
    T* of(size_t size) {
        if (size > size_) {
            data_.reset(static_cast<T*>(::operator new[](size * sizeof(T), std::align_val_t(64))));
            size_ = size;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

// Some queries of a sequence, as many as fill the vector registers.
struct Tile {
    int sequence, first, count;
};

struct Session {
    explicit Session(int threads) : rooms(threads), team(threads) {}
    std::mutex mutex;
    Buffer<float> residual, qkv, x, gated, scale, narrow;
    Buffer<int8_t> quantized;
    Buffer<int32_t> sum, owner;
    std::vector<Buffer<float>> rooms;
    std::vector<Tile> tiles;
    Team team;  // last, so that its threads end first
};

int padded(int columns) { return (columns + PANEL - 1) / PANEL * PANEL; }

void normalise(const float* from, const float* weight, float eps, int size, float* to) {
    F32 squares = {};
    for (int i = 0; i < size; i += LANES) squares += load(from + i) * load(from + i);
    float inverse = 1.0f / std::sqrt(sum(squares) / size + eps);
    for (int i = 0; i < size; i += LANES) store(to + i, load(from + i) * inverse * load(weight + i));
}

void rotate(float* head, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

inline void put(float* to, float x) { *to = x; }
inline void put(Bf16* to, float x) { *to = to_bf16(x); }
inline void put(int8_t* to, float x) { *to = int8_t(std::nearbyint(x)); }

class Pass : public Round {
  public:
    Pass(const Model& model, const Step& step, Session& session)
        : Round(model.layers * 10 + 3), m(model), s(step), tiles(session.tiles) {
        width = padded(std::max({m.hidden, m.intermediate, m.heads * m.head_dim}));
        stream = padded(m.hidden);
        group = m.heads / m.kv_heads;
        int rows = std::max(s.tokens, s.sampled);
        residual = session.residual.of(size_t(s.tokens) * stream);
        qkv = session.qkv.of(size_t(s.tokens) * m.layer[0].qkv.out);
        gated = session.gated.of(size_t(s.tokens) * width);
        inputs = {session.x.of(size_t(rows) * width), session.quantized.of(size_t(rows) * width),
                  session.scale.of(size_t(rows) * width / GROUP), session.sum.of(size_t(rows) * width / GROUP), width};
        owner = session.owner.of(s.tokens);
        cut();
        attentions = int(tiles.size()) * m.kv_heads;
        for (int b = 0; b < s.sequences; b++)
            for (int c = 0; c < m.changes; c++)
                if (const Change* changes = adapter(s.slots[b])) rank = std::max(rank, changes[c].rank);
        narrow = session.narrow.of(size_t(rows) * 3 * rank + LANES);
        for (auto& room : session.rooms) rooms.push_back(room.of(size_t(tile_rows) * (padded(longest) + LANES)));
    }

    // Whether it is worth waking other threads: a million products take some ten microseconds.
    bool large() const {
        const Layer& layer = m.layer[0];
        double products = 0;
        for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
            products += double(linear->in) * linear->out;
        return products * m.layers * s.tokens > 4e6;
    }

  private:
    const Model m;
    const Step s;
    int width, stream, group, rank = 0, longest = 0, tile_rows = 0, attentions = 0;
    float *residual, *qkv, *gated, *narrow;
    int32_t* owner;
    Inputs inputs;
    std::vector<Tile>& tiles;
    std::vector<float*> rooms;

    const Change* adapter(int slot) const { return slot < 0 ? nullptr : m.adapters[slot]; }

    void cut() {
        int most = std::max(1, 24 / group);
        tiles.clear();
        for (int b = 0; b < s.sequences; b++) {
            for (int t = s.starts[b]; t < s.starts[b + 1]; t++) owner[t] = b;
            for (int t = s.starts[b]; t < s.starts[b + 1]; t += most) {
                int count = std::min(most, s.starts[b + 1] - t);
                tiles.push_back({b, t, count});
                longest = std::max(longest, s.positions[t + count - 1] + 1);
                tile_rows = std::max(tile_rows, count * group);
            }
        }
        auto cost = [this](const Tile& tile) { return long(tile.count) * (s.positions[tile.first] + 1); };
        std::stable_sort(tiles.begin(), tiles.end(), [&](const Tile& a, const Tile& b) { return cost(a) > cost(b); });
    }

    template <class Task>
    void each_row(int& number, int count, const Task& task) {
        int some = count > 64 ? 8 : 1;
        phase(number, (count + some - 1) / some, [&](int i) {
            for (int row = i * some; row < std::min(count, (i + 1) * some); row++) task(row);
        });
    }

    // A linear layer over prepared rows; `take(row, first column, values)` gets each row's panels.
    template <class Take>
    void product(int& number, const Linear& linear, int count, const int32_t* tokens, const Take& take) {
        phase(number, linear.out / PANEL, [&](int panel) {
            multiply(linear, inputs, count, panel, [&](int row, float* values) {
                if (linear.bias)
                    for (int i = 0; i < PANEL; i += LANES) store(values + i, load(values + i) + load(linear.bias + panel * PANEL + i));
                const Change* changes = adapter(s.slots[owner[tokens ? tokens[row] : row]]);
                if (changes) adapt(linear, changes, row, panel, values);
                take(row, panel * PANEL, values);
            });
        });
    }

    void work(int member) override {
        float* room = rooms[member];
        int number = 0;
        each_row(number, s.tokens, [&](int row) { embed(row); });
        for (int l = 0; l < m.layers; l++) {
            const Layer& layer = m.layer[l];
            each_row(number, s.tokens, [&](int row) {
                normalise(stream_of(row), layer.attention_norm, m.eps, m.hidden, x(row));
                prepare(layer.qkv, row, row);
            });
            product(number, layer.qkv, s.tokens, nullptr, [&](int row, int column, const float* values) {
                std::copy_n(values, PANEL, qkv + size_t(row) * layer.qkv.out + column);
            });
            each_row(number, s.tokens, [&](int row) { rotate_and_cache(layer, row); });
            phase(number, attentions, [&](int i) {
                attend_tile(layer, tiles[i / m.kv_heads], i % m.kv_heads, room);
            });
            each_row(number, s.tokens, [&](int row) { prepare(layer.o, row, row); });
            product(number, layer.o, s.tokens, nullptr, [&](int row, int column, const float* values) {
                add(stream_of(row) + column, values);
            });
            each_row(number, s.tokens, [&](int row) {
                normalise(stream_of(row), layer.mlp_norm, m.eps, m.hidden, x(row));
                prepare(layer.gate_up, row, row);
            });
            product(number, layer.gate_up, s.tokens, nullptr, [&](int row, int column, const float* values) {
                gate(values, gated + size_t(row) * width + column / 2);
            });
            each_row(number, s.tokens, [&](int row) {
                std::copy_n(gated + size_t(row) * width, layer.down.in, x(row));
                prepare(layer.down, row, row);
            });
            product(number, layer.down, s.tokens, nullptr, [&](int row, int column, const float* values) {
                add(stream_of(row) + column, values);
            });
        }
        each_row(number, s.sampled, [&](int row) {
            normalise(stream_of(s.wanted[row]), m.norm, m.eps, m.hidden, x(row));
            prepare(m.head, row, s.wanted[row]);
        });
        product(number, m.head, s.sampled, s.wanted, [&](int row, int column, const float* values) {
            std::copy_n(values, PANEL, s.logits + size_t(row) * m.head.out + column);
        });
    }

    float* stream_of(int row) const { return residual + size_t(row) * stream; }
    float* x(int row) const { return inputs.x + size_t(row) * width; }
    float* narrow_of(int row, int part) const { return narrow + (size_t(row) * 3 + part) * rank; }

    static void add(float* to, const float* values) {
        for (int i = 0; i < PANEL; i += LANES) store(to + i, load(to + i) + load(values + i));
    }

    // 32 columns of the gate, then 32 of what it lets through.
    static void gate(const float* values, float* to) {
        for (int i = 0; i < PANEL / 2; i += LANES) {
            F32 g = load(values + i), size = exponential(-magnitude(g));
            F32 sigmoid = (g < 0 ? size : all(1.0f)) / (1.0f + size);
            store(to + i, g * sigmoid * load(values + PANEL / 2 + i));
        }
    }

    void embed(int row) {
        size_t from = size_t(s.ids[row]) * m.hidden;
        for (int i = 0; i < m.hidden; i += LANES)
            store(stream_of(row) + i, m.embedding_type == FLOAT32 ? load(static_cast<const float*>(m.embedding) + from + i)
                                                                 : load(static_cast<const Bf16*>(m.embedding) + from + i));
    }

    // What a linear layer reads of a row, beside x: its quantized form, and the narrow side of the row's adapter.
    void prepare(const Linear& linear, int row, int token) {
        if (const Change* changes = adapter(s.slots[owner[token]])) {
            const float* scale = changes[linear.names[0]].input_scale;
            for (int i = 0; scale && i < linear.in; i += LANES) store(x(row) + i, load(x(row) + i) * load(scale + i));
            for (int part = 0; part < linear.parts; part++) {
                const Change& change = changes[linear.names[part]];
                if (m.adapter_type == FLOAT32)
                    shrink(x(row), linear.in, static_cast<const float*>(change.a), change.rank, narrow_of(row, part));
                else
                    shrink(x(row), linear.in, static_cast<const Bf16*>(change.a), change.rank, narrow_of(row, part));
            }
        }
        if (linear.type == INT8) quantize(inputs, row, linear.in);
    }

    // The part that sixteen columns belong to, and their place in it. Interleaved parts take turns, half a panel each.
    static std::pair<int, int> place(const Linear& linear, int panel, int i) {
        if (linear.interleaved) return {i >= PANEL / 2, panel * PANEL / 2 + i % (PANEL / 2)};
        int part = 0, column = panel * PANEL + i;
        while (part + 1 < linear.parts && column >= linear.first[part + 1]) part++;
        return {part, column - linear.first[part]};
    }

    void adapt(const Linear& linear, const Change* changes, int row, int panel, float* values) const {
        for (int i = 0; i < PANEL; i += LANES) {
            auto [part, column] = place(linear, panel, i);
            const Change& change = changes[linear.names[part]];
            if (column >= change.columns) continue;
            if (change.rank && m.adapter_type == FLOAT32)
                expand(narrow_of(row, part), static_cast<const float*>(change.b), change.rank, column, values + i);
            else if (change.rank)
                expand(narrow_of(row, part), static_cast<const Bf16*>(change.b), change.rank, column, values + i);
            if (change.output_scale) store(values + i, load(values + i) * load(change.output_scale + column));
        }
    }

    void rotate_and_cache(const Layer& layer, int row) {
        int half = m.head_dim / 2, position = s.positions[row];
        const float *cosines = m.cosines + size_t(position) * half, *sines = m.sines + size_t(position) * half;
        float* heads = qkv + size_t(row) * layer.qkv.out;
        for (int h = 0; h < m.heads + m.kv_heads; h++) {
            float* head = heads + h * m.head_dim;
            const float* norm = h < m.heads ? layer.q_norm : layer.k_norm;
            if (norm) normalise(head, norm, m.eps, m.head_dim, head);
            rotate(head, cosines, sines, half);
        }
        const float* keys = heads + m.heads * m.head_dim;
        const float* values = keys + m.kv_heads * m.head_dim;
        if (m.cache_type == FLOAT32) cache<float>(layer, row, keys, values);
        else if (m.cache_type == BFLOAT16) cache<Bf16>(layer, row, keys, values);
        else cache<int8_t>(layer, row, keys, values);
    }

    template <class C>
    void cache(const Layer& layer, int row, const float* keys, const float* values) {
        int position = s.positions[row], offset = position % m.block_size;
        size_t block = s.tables[size_t(owner[row]) * s.blocks + position / m.block_size];
        for (int h = 0; h < m.kv_heads; h++, keys += m.head_dim, values += m.head_dim) {
            size_t page = block * m.kv_heads + h, place = page * m.block_size + offset;
            C* key = static_cast<C*>(layer.keys) + (place - offset % LANES) * m.head_dim + offset % LANES;
            C* value = static_cast<C*>(layer.values) + place * m.head_dim;
            float by[2] = {1, 1};
            if constexpr (sizeof(C) == 1) {
                by[0] = step_of(keys, layer.key_scales[place]);
                by[1] = step_of(values, layer.value_scales[place]);
            }
            for (int d = 0; d < m.head_dim; d++) {
                put(key + d * LANES, keys[d] * by[0]);
                put(value + d, values[d] * by[1]);
            }
        }
    }

    // The scale of an int8 head, and what its numbers are multiplied with.
    float step_of(const float* head, float& scale) const {
        F32 most = {}, odd = {};
        for (int d = 0; d < m.head_dim; d += LANES) {
            most = larger(most, magnitude(load(head + d)));
            odd += load(head + d) * 0.0f;
        }
        float highest = largest(most);
        scale = highest / 127.0f + sum(odd);
        return highest > 0 ? 127.0f / highest : 0.0f;
    }

    void attend_tile(const Layer& layer, const Tile& tile, int kv_head, float* room) {
        if (m.cache_type == FLOAT32) attend_tile<float>(layer, tile, kv_head, room);
        else if (m.cache_type == BFLOAT16) attend_tile<Bf16>(layer, tile, kv_head, room);
        else attend_tile<int8_t>(layer, tile, kv_head, room);
    }

    template <class C>
    void attend_tile(const Layer& layer, const Tile& tile, int kv_head, float* room) {
        Pages<C> pages = {static_cast<const C*>(layer.keys), static_cast<const C*>(layer.values), layer.key_scales,
                          layer.value_scales, s.tables + size_t(tile.sequence) * s.blocks, m.kv_heads, kv_head,
                          m.head_dim, m.block_size};
        constexpr int MOST = 128;  // rows of a tile: 24, or a group
        const float* queries[MOST];
        float *out[MOST], *weights[MOST];
        int first[MOST], last[MOST], rows = 0;
        for (int t = tile.first; t < tile.first + tile.count; t++)
            for (int g = 0; g < group; g++, rows++) {
                int head = kv_head * group + g;
                queries[rows] = qkv + size_t(t) * layer.qkv.out + head * m.head_dim;
                out[rows] = x(t) + head * m.head_dim;
                last[rows] = s.positions[t];
                first[rows] = m.sliding_window ? std::max(0, last[rows] - m.sliding_window + 1) : 0;
            }
        attend(pages, rows, queries, first, last, 1.0f / std::sqrt(float(m.head_dim)), out, room, weights);
    }
};

}  // namespace

extern "C" {

// Null where the threads or the memory can't be had.
void* lectern_open(int threads) {
    try {
        return new Session(threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void lectern_close(void* session) { delete static_cast<Session*>(session); }

// Sizes of the structures, so that a difference to their declarations in Python is found at once.
void lectern_layout(int32_t* sizes) {
    int32_t all[] = {sizeof(Linear), sizeof(Layer), sizeof(Change), sizeof(Model), sizeof(Step)};
    std::copy(std::begin(all), std::end(all), sizes);
}

// 0, or 1 where there was not enough memory.
int lectern_forward(void* session, const Model* model, const Step* step) {
    auto* of = static_cast<Session*>(session);
    std::lock_guard lock(of->mutex);
    try {
        auto pass = std::make_shared<Pass>(*model, *step, *of);
        of->team.run(pass, pass->large());
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
}
