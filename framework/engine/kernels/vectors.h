// Sixteen numbers at a time, by the compiler's vector extensions: AVX-512, AVX2 or NEON, whatever the machine has.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef int8_t I8x16 __attribute__((vector_size(16)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));

struct Bf16 {
    uint16_t bits;
};

inline F32 load(const float* p) { F32 v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }
inline I32 load(const int32_t* p) { I32 v; std::memcpy(&v, p, sizeof v); return v; }

inline F32 load(const Bf16* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<F32>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#else
    U16x16 half;
    std::memcpy(&half, p, sizeof half);
    return reinterpret_cast<F32>(__builtin_convertvector(half, I32) << 16);
#endif
}

inline F32 load(const int8_t* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<F32>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))));
#else
    I8x16 bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, I32), F32);
#endif
}

inline F32 all(float x) { return F32{} + x; }

inline Bf16 to_bf16(float x) {  // to nearest, ties to even; a NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return {uint16_t((bits >> 16) | 64)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Always in this order, so that a sum never depends on what else is computed.
inline float sum(F32 v) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}
inline int32_t sum(I32 v) {
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}
inline float largest(F32 v) {
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    return v[0];
}
inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }
inline F32 magnitude(F32 v) { return reinterpret_cast<F32>(reinterpret_cast<I32>(v) & 0x7fffffff); }

// To the nearest whole number, ties to even, for |v| < 2^22.
inline F32 rounded(F32 v) {
    const F32 shift = all(12582912.0f);
    return (v + shift) - shift;
}

// e^v with a relative error of about 2e-7 for v <= 0; 0 below -87.
inline F32 exponential(F32 v) {
    const F32 least = all(-87.0f);
    F32 x = larger(v, least);
    F32 n = rounded(x * 1.44269504f);
    F32 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    F32 p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    I32 power = (__builtin_convertvector(n, I32) + 127) << 23;
    F32 result = p * reinterpret_cast<F32>(power);
    return v < least ? F32{} : result;
}

// acc[c] += the sum over i < 4 of weights[4 c + i] * x[i], for sixteen columns c.
inline I32 dot4(I32 acc, const uint8_t* weights, int32_t x) {
#if defined(LECTERN_PORTABLE)
#elif defined(__AVX512VNNI__)
    return reinterpret_cast<I32>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), _mm512_loadu_si512(weights), _mm512_set1_epi32(x)));
#elif defined(__AVXVNNI__)
    __m256i half[2], inputs = _mm256_set1_epi32(x);
    std::memcpy(half, &acc, sizeof acc);
    for (int i = 0; i < 2; i++)
        half[i] = _mm256_dpbusd_avx_epi32(half[i], _mm256_loadu_si256((const __m256i*)weights + i), inputs);
    std::memcpy(&acc, half, sizeof acc);
    return acc;
#endif
    int8_t inputs4[4];
    std::memcpy(inputs4, &x, 4);
    for (int c = 0; c < LANES; c++)
        acc[c] += weights[4 * c] * inputs4[0] + weights[4 * c + 1] * inputs4[1] + weights[4 * c + 2] * inputs4[2] + weights[4 * c + 3] * inputs4[3];
    return acc;
}
