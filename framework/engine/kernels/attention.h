// Attention over a paged cache. Each query is computed in one fixed order over the keys it sees, and no others.
#pragma once
#include <cmath>
#include "model.h"
#include "vectors.h"

// Where one sequence's keys and values of one head are.
template <class C>
struct Pages {
    const C *keys, *values;
    const float *key_scales, *value_scales;
    const int32_t* table;
    int kv_heads, head, head_dim, block_size;

    size_t page(int position) const { return size_t(table[position / block_size]) * kv_heads + head; }
    // Sixteen positions' keys, dimension by dimension. `position` is a multiple of 16.
    const C* key(int position) const {
        return keys + (page(position) * block_size + position % block_size) * head_dim;
    }
    const C* value(int position) const {
        return values + (page(position) * block_size + position % block_size) * head_dim;
    }
    F32 scales(const float* of, int position) const { return load(of + page(position) * block_size + position % block_size); }
};

// Scores of R queries for B times sixteen keys.
template <class C, int R, int B>
void score(const Pages<C>& pages, const float* const* queries, int position, float scale, float* const* out) {
    const C* keys[B];
    for (int b = 0; b < B; b++) keys[b] = pages.key(position + b * LANES);
    F32 acc[R][B] = {};
    for (int d = 0; d < pages.head_dim; d++)
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            F32 key = load(keys[b] + d * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) acc[r][b] += key * queries[r][d];
        }
    for (int b = 0; b < B; b++) {
        F32 by = all(scale);
        if constexpr (sizeof(C) == 1) by *= pages.scales(pages.key_scales, position + b * LANES);
        for (int r = 0; r < R; r++) store(out[r] + position + b * LANES, acc[r][b] * by);
    }
}

template <class C, int R>
void scores(const Pages<C>& pages, const float* const* queries, int first, int end, float scale, float* const* out) {
    constexpr int B = R <= 4 ? 4 : 2;
    int position = first;
    for (; position + B * LANES <= end; position += B * LANES) score<C, R, B>(pages, queries, position, scale, out);
    for (; position < end; position += LANES) score<C, R, 1>(pages, queries, position, scale, out);
}

// Sums of R rows' weighted values, for N times sixteen dimensions from `from` on.
template <class C, int R, int N>
void gather(const Pages<C>& pages, const float* const* weights, int first, int end, int from, float* const* out) {
    F32 acc[R][N] = {};
    for (int position = first; position < end;) {
        int border = (position / pages.block_size + 1) * pages.block_size;
        int until = border < end ? border : end;
        const C* value = pages.value(position) + from;
        for (; position < until; position++, value += pages.head_dim) {
            F32 v[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) v[n] = load(value + n * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) acc[r][n] += v[n] * weights[r][position];
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(out[r] + from + n * LANES, acc[r][n]);
}

template <class C, int R>
void gather(const Pages<C>& pages, const float* const* weights, int first, int end, float* const* out) {
    int from = 0;
    for (; from + 4 * LANES <= pages.head_dim; from += 4 * LANES) gather<C, R, 4>(pages, weights, first, end, from, out);
    for (; from < pages.head_dim; from += LANES) gather<C, R, 1>(pages, weights, first, end, from, out);
}

// Scores to weights that add up to one, over the keys first..last; the others in from..end get 0.
template <class C>
void softmax(const Pages<C>& pages, float* row, int from, int end, int first, int last) {
    I32 lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    const F32 none = all(-INFINITY);
    F32 most = none;
    for (int p = from; p < end; p += LANES) {
        I32 place = lane + p;
        F32 seen = ((place >= first) & (place <= last)) ? load(row + p) : none;
        store(row + p, seen);
        most = larger(most, seen);
    }
    float highest = largest(most);
    F32 total = {};
    for (int p = from; p < end; p += LANES) {
        F32 weight = exponential(load(row + p) - highest);
        total += weight;
        store(row + p, weight);
    }
    float inverse = 1.0f / sum(total);
    for (int p = from; p < end; p += LANES) {
        F32 weight = load(row + p) * inverse;
        if constexpr (sizeof(C) == 1) {
            I32 place = lane + p;  // scales beyond the last key were never written
            weight *= (place <= last) ? pages.scales(pages.value_scales, p) : F32{};
        }
        store(row + p, weight);
    }
}

template <int N>
struct Count {
    static constexpr int value = N;
};

// Calls `work` with a compile-time count of rows, at most `Most` at a time, until all rows are done.
template <int Most, class Work>
void in_groups(int rows, const Work& work) {
    for (int row = 0; row < rows;) {
        int count = rows - row < Most ? rows - row : Most;
        switch (count) {
            case 1: work(Count<1>{}, row); break;
            case 2: work(Count<2>{}, row); break;
            case 3: work(Count<3>{}, row); break;
            case 4: work(Count<4>{}, row); break;
            case 5: if constexpr (Most > 4) work(Count<5>{}, row); break;
            case 6: if constexpr (Most > 4) work(Count<6>{}, row); break;
            case 7: if constexpr (Most > 4) work(Count<7>{}, row); break;
            case 8: if constexpr (Most > 4) work(Count<8>{}, row); break;
        }
        row += count;
    }
}

// One head's attention for rows that see the keys first[row]..last[row]. `room` holds rows times the keys' span.
template <class C>
void attend(const Pages<C>& pages, int rows, const float* const* queries, const int* first, const int* last,
            float scale, float* const* out, float* room, float** weights) {
    int from = first[0] / LANES * LANES, end = last[rows - 1] + 1, span = (end + LANES - 1) / LANES * LANES;
    for (int r = 0; r < rows; r++) weights[r] = room + size_t(r) * (span - from) - from;
    in_groups<8>(rows, [&](auto count, int row) {
        scores<C, decltype(count)::value>(pages, queries + row, from, span, scale, weights + row);
    });
    for (int r = 0; r < rows; r++) softmax(pages, weights[r], from, span, first[r], last[r]);
    in_groups<4>(rows, [&](auto count, int row) {
        gather<C, decltype(count)::value>(pages, weights + row, from, end, out + row);
    });
}
