// What Python hands over: a Llama-like decoder's weights, its cache, its adapters, and the tokens of one step.
// decoder.py declares the same structures; `lectern_layout` lets it compare their sizes.
#pragma once
#include <cstdint>

enum WeightType : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

constexpr int CHUNK = 32;  // columns of an adapter's wide side that lie together
constexpr int PANEL = 64;  // output columns that are computed together; weights are packed panel by panel

// One or several layers over the same input: q, k and v; gate and up.
struct Linear {
    int32_t in, out;  // in is a multiple of 16, out of PANEL; what is beyond the real width is zero
    int32_t type;
    int32_t parts;         // layers side by side
    int32_t interleaved;   // two parts, half a panel of each in turn
    int32_t first[3];      // otherwise the first column of each part
    int32_t names[3];      // each part's place among the linear layers that an adapter can change
    int32_t unused;
    const void* weights;   // float, bf16: [out / PANEL][in][PANEL]; int8 + 128: [out / PANEL][in / 4][PANEL][4]
    const float* scale;    // [out] of int8 weights
    const float* bias;     // [out] or null
};

struct Layer {
    Linear qkv, o, gate_up, down;
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    void *keys, *values;                // [blocks][kv_heads][block_size / 16][head_dim][16], [blocks][kv_heads][block_size][head_dim]
    float *key_scales, *value_scales;   // [blocks][kv_heads][block_size], of an int8 cache
};

// One adapter's change of one linear layer.
struct Change {
    const void *a, *b;  // [rank][in], [columns / CHUNK][rank][CHUNK], of the type Model::adapter_type
    const float *input_scale, *output_scale;
    int32_t rank, columns;  // columns: a multiple of CHUNK, the layer's own width or a little more
};

struct Model {
    int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, block_size;
    int32_t sliding_window, cache_type, adapter_type, changes;  // changes: linear layers an adapter can change, in all
    float eps;
    int32_t embedding_type;
    const void* embedding;        // [vocabulary][hidden]
    const float *cosines, *sines; // [positions][head_dim / 2]
    const float* norm;
    Linear head;
    const Layer* layer;
    const Change* const* adapters;  // [slot] -> [changes], null where the slot is empty
};

// One step's tokens, as in framework/engine/forward.py.
struct Step {
    int32_t tokens, sequences, sampled, blocks;  // blocks: width of the block tables
    const int32_t *ids, *positions, *starts, *tables, *slots, *wanted;
    float* logits;  // [sampled][head.out]
};
