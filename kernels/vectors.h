// Portable SIMD on gcc/clang vector extensions: loads with conversion to float, exp2, tanh, a W x W transpose.
#pragma once

#include <cstdint>
#include <cstring>

namespace kvarena {

#if defined(__AVX512F__)
constexpr int W = 16, COLUMNS = 4;  // lanes; vectors of columns that a register block holds
#elif defined(__AVX2__)
constexpr int W = 8, COLUMNS = 2;
#else
constexpr int W = 4, COLUMNS = 2;
#endif
constexpr int ROWS = 6;  // rows of a register block: ROWS * COLUMNS accumulators stay in registers

typedef float vec __attribute__((vector_size(4 * W)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t hvec __attribute__((vector_size(2 * W)));

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

inline vec broadcast(float x) { return x - vec{}; }

inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

inline uvec load_bits(const void* p) {
    hvec h;
    std::memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, uvec);
}

inline vec load(const bfloat16* p) { return (vec)(load_bits(p) << 16); }

inline vec load(const float16* p) {
    const uvec u = load_bits(p), magnitude = (u & 0x7fffu) << 13;
    const vec finite = (vec)magnitude * 0x1p112f;  // moves the exponent's bias, subnormals included
    const uvec bits = (u & 0x7c00u) == 0x7c00u ? (magnitude | 0x7f800000u) : (uvec)finite;
    return (vec)(bits | ((u & 0x8000u) << 16));
}

inline float load_one(const float* p) { return *p; }

template <class T>
inline float load_one(const T* p) {
    T padded[W] = {*p};
    return load(padded)[0];
}

inline vec max(vec a, vec b) { return a > b ? a : b; }

inline vec shuffle(vec a, vec b, ivec lanes) {  // lanes of a count from 0, those of b from W
#if defined(__clang__)
    vec result;
    for (int i = 0; i < W; ++i) result[i] = lanes[i] < W ? a[lanes[i]] : b[lanes[i] - W];
    return result;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

template <int STEP>
inline vec rotate(vec v) {
    ivec lanes;
    for (int i = 0; i < W; ++i) lanes[i] = (i + STEP) % W;
    return shuffle(v, v, lanes);
}

inline float max_lane(vec v) {
    if constexpr (W > 8) v = max(v, rotate<8>(v));
    if constexpr (W > 4) v = max(v, rotate<4>(v));
    v = max(v, rotate<2>(v));
    return max(v, rotate<1>(v))[0];
}

inline float sum_lanes(vec v) {
    if constexpr (W > 8) v += rotate<8>(v);
    if constexpr (W > 4) v += rotate<4>(v);
    v += rotate<2>(v);
    return (v + rotate<1>(v))[0];
}

// 2^x for x <= 127, exactly 1 at 0 and exactly 0 below -126 and at -infinity; relative error 2e-7 (Cephes' exp2f).
inline vec exp2(vec x) {
    const vec magic = broadcast(12582912.0f);  // adding 1.5 * 2^23 leaves the rounded integer in the low bits
    const vec shifted = x + magic;
    const vec f = x - (shifted - magic);
    vec p = broadcast(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    const vec scaled = (vec)(((uvec)shifted << 23) + (uvec)p);
    return x < -126.0f ? vec{} : scaled;
}

inline float exp2(float x) { return exp2(broadcast(x))[0]; }

inline vec tanh(vec x) {
    const vec magnitude = x < 0.0f ? -x : x, z = x * x;
    vec p = broadcast(-5.70498872745e-3f);  // Cephes' tanhf below 0.625
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const vec limited = magnitude > 10.0f ? broadcast(10.0f) : magnitude;
    const vec large = 1.0f - 2.0f / (exp2(limited * 2.885390081777927f) + 1.0f);
    return magnitude < 0.625f ? x + x * z * p : (x < 0.0f ? -large : large);
}

// One butterfly stage: exchanges blocks of STEP lanes between rows i and i + STEP.
template <int STEP>
inline void exchange(vec& a, vec& b) {
    ivec low, high;
    for (int i = 0; i < W; ++i) {
        const bool upper = i & STEP;
        low[i] = upper ? W + i - STEP : i;
        high[i] = upper ? W + i : i + STEP;
    }
    const vec x = shuffle(a, b, low), y = shuffle(a, b, high);
    a = x;
    b = y;
}

template <int STEP>
inline void transpose_stage(vec* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
        if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP]);
}

inline void transpose(vec* rows) {
    transpose_stage<1>(rows);
    transpose_stage<2>(rows);
    if constexpr (W > 4) transpose_stage<4>(rows);
    if constexpr (W > 8) transpose_stage<8>(rows);
}

}  // namespace kvarena
