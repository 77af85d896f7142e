// Matrix products whose every output is summed in one fixed order, so a row's result never depends on the other rows.
#pragma once
#include "model.h"
#include "vectors.h"

constexpr int VECTORS = PANEL / LANES;
constexpr int ROWS = 6;    // rows of a tile: 24 of 32 vector registers hold sums
constexpr int GROUP = 64;  // inputs of a row that share a scale: a row's few large values cost the others no precision

// Rows that a linear layer reads: as they are, and quantized, each group of a row by its own scale.
struct Inputs {
    float* x;
    int8_t* quantized;
    float* scale;  // [row][width / GROUP]
    int32_t* sum;  // of a group's quantized values
    int width;     // distance of rows, a multiple of GROUP

    size_t group(int row, int input) const { return (size_t(row) * width + input) / GROUP; }
};

inline void quantize(const Inputs& inputs, int row, int in) {
    for (int first = 0; first < in; first += GROUP) {
        const float* x = inputs.x + size_t(row) * inputs.width + first;
        int8_t* to = inputs.quantized + size_t(row) * inputs.width + first;
        int size = in - first < GROUP ? in - first : GROUP;
        F32 most = {}, odd = {};  // odd: 0, or NaN where a value is NaN or infinite, which rounding would hide
        for (int i = 0; i < size; i += LANES) {
            most = larger(most, magnitude(load(x + i)));
            odd += load(x + i) * 0.0f;
        }
        float highest = largest(most), inverse = highest > 0 ? 127.0f / highest : 0.0f;
        I32 total = {};
        for (int i = 0; i < size; i += LANES) {
            I32 whole = __builtin_convertvector(rounded(load(x + i) * inverse), I32);
            total += whole;
            I8x16 bytes = __builtin_convertvector(whole, I8x16);
            std::memcpy(to + i, &bytes, sizeof bytes);
        }
        inputs.sum[inputs.group(row, first)] = sum(total);
        inputs.scale[inputs.group(row, first)] = highest / 127.0f + sum(odd);
    }
}

// R rows and C times sixteen columns of a panel: exact within a group of inputs, then added group by group.
template <int R, int C>
void part_int8(const Linear& linear, const Inputs& inputs, int row, int panel, int from, float (*out)[PANEL]) {
    const uint8_t* weights = static_cast<const uint8_t*>(linear.weights) + size_t(panel) * linear.in * PANEL + 4 * from;
    F32 total[R][C] = {};
    for (int first = 0; first < linear.in; first += GROUP) {
        const int8_t* x = inputs.quantized + size_t(row) * inputs.width + first;
        int size = linear.in - first < GROUP ? linear.in - first : GROUP;
        I32 acc[R][C];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) acc[r][c] = I32{} - 128 * inputs.sum[inputs.group(row + r, first)];
        for (int k = 0; k < size; k += 4, weights += 4 * PANEL) {
            if (row == 0)  // later rows find the weights in the cache
                for (int c = 0; c < C; c++) __builtin_prefetch(weights + 16 * PANEL + 4 * LANES * c);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t four;
                std::memcpy(&four, x + size_t(r) * inputs.width + k, 4);
#pragma GCC unroll 4
                for (int c = 0; c < C; c++) acc[r][c] = dot4(acc[r][c], weights + 4 * LANES * c, four);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            F32 scale = all(inputs.scale[inputs.group(row + r, first)]);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) total[r][c] += __builtin_convertvector(acc[r][c], F32) * scale;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            int column = from + LANES * c;
            store(out[r] + column, total[r][c] * load(linear.scale + panel * PANEL + column));
        }
}

// The first rows read the weights from memory, in one go; later ones take as many columns as leave room in the registers
// for both sums.
template <int R>
void tile_int8(const Linear& linear, const Inputs& inputs, int row, int panel, float (*out)[PANEL]) {
    if (row == 0) return part_int8<R, VECTORS>(linear, inputs, row, panel, 0, out);
    constexpr int C = R <= 3 ? VECTORS : VECTORS / 2;
    for (int from = 0; from < PANEL; from += C * LANES) part_int8<R, C>(linear, inputs, row, panel, from, out);
}

template <int R, class W>
void tile_float(const Linear& linear, const Inputs& inputs, int row, int panel, float (*out)[PANEL]) {
    const W* weights = static_cast<const W*>(linear.weights) + size_t(panel) * linear.in * PANEL;
    const float* x = inputs.x + size_t(row) * inputs.width;
    F32 acc[R][VECTORS] = {};
    for (int k = 0; k < linear.in; k++, weights += PANEL) {
        F32 w[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) w[v] = load(weights + LANES * v);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float one = x[size_t(r) * inputs.width + k];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) acc[r][v] += w[v] * one;
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(out[r] + LANES * v, acc[r][v]);
}

template <int R>
void tile(const Linear& linear, const Inputs& inputs, int row, int panel, float (*out)[PANEL]) {
    if (linear.type == INT8) tile_int8<R>(linear, inputs, row, panel, out);
    else if (linear.type == BFLOAT16) tile_float<R, Bf16>(linear, inputs, row, panel, out);
    else tile_float<R, float>(linear, inputs, row, panel, out);
}

// One panel of the product for all rows; `finish(row, values)` takes each row's 64 columns.
template <class Finish>
void multiply(const Linear& linear, const Inputs& inputs, int rows, int panel, const Finish& finish) {
    alignas(64) float out[ROWS][PANEL];
    for (int row = 0; row < rows;) {
        int left = rows - row, count = left >= ROWS ? ROWS : left;
        switch (count) {
            case 1: tile<1>(linear, inputs, row, panel, out); break;
            case 2: tile<2>(linear, inputs, row, panel, out); break;
            case 3: tile<3>(linear, inputs, row, panel, out); break;
            case 4: tile<4>(linear, inputs, row, panel, out); break;
            case 5: tile<5>(linear, inputs, row, panel, out); break;
            default: tile<ROWS>(linear, inputs, row, panel, out);
        }
        for (int r = 0; r < count; r++) finish(row + r, out[r]);
        row += count;
    }
}

template <class A, int N>
void products(const float* x, int in, const A* a, float* narrow) {
    F32 acc[N] = {};
    for (int i = 0; i < in; i += LANES) {
        F32 values = load(x + i);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) acc[n] += values * load(a + size_t(n) * in + i);
    }
    for (int n = 0; n < N; n++) narrow[n] = sum(acc[n]);
}

// x @ a.T: the narrow side of a low-rank update.
template <class A>
void shrink(const float* x, int in, const A* a, int rank, float* narrow) {
    int j = 0;
    for (; j + 4 <= rank; j += 4) products<A, 4>(x, in, a + size_t(j) * in, narrow + j);
    for (; j < rank; j++) products<A, 1>(x, in, a + size_t(j) * in, narrow + j);
}

// values += narrow @ b, for sixteen columns from `column` on.
template <class B>
void expand(const float* narrow, const B* b, int rank, int column, float* values) {
    b += size_t(column / CHUNK) * rank * CHUNK + column % CHUNK;
    F32 acc = {};
    for (int j = 0; j < rank; j++) acc += load(b + j * CHUNK) * narrow[j];
    store(values, load(values) + acc);
}
