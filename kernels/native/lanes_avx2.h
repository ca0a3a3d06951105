// Sixteen fp32 numbers in two AVX registers; see lanes_avx512.h.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "abi.h"

namespace rayline::RL_ISA {

struct Lanes {
    __m256 low, high;
};
constexpr int kLanes = 16;
constexpr int kLaneRegisters = 8;  // Lanes that a loop can keep in registers

inline Lanes splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes a) {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Lanes round_even(Lanes a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, mode), _mm256_round_ps(a.high, mode)};
}
inline __m256 power_of_two(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Lanes power_of_two(Lanes n) { return {power_of_two(n.low), power_of_two(n.high)}; }

inline __m256 below(int count) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), index));
}
inline Lanes select_first(int count, Lanes a, Lanes b) {
    return {_mm256_blendv_ps(b.low, a.low, below(count)), _mm256_blendv_ps(b.high, a.high, below(count - 8))};
}

inline __m256 where_bits(uint32_t bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, each));
}
inline Lanes select_bits(uint32_t bits, Lanes a, Lanes b) {
    return {_mm256_blendv_ps(b.low, a.low, where_bits(bits)), _mm256_blendv_ps(b.high, a.high, where_bits(bits >> 8))};
}

struct WideSums {
    __m256d v[4];
};
inline WideSums no_wide_sums() { return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}}; }
inline WideSums operator+(WideSums a, Lanes b) {
    const __m128 parts[4] = {_mm256_castps256_ps128(b.low), _mm256_extractf128_ps(b.low, 1),
                             _mm256_castps256_ps128(b.high), _mm256_extractf128_ps(b.high, 1)};
    for (int i = 0; i < 4; ++i) a.v[i] = _mm256_add_pd(a.v[i], _mm256_cvtps_pd(parts[i]));
    return a;
}
inline double sum(WideSums a) {
    alignas(32) double part[4];
    _mm256_store_pd(part, _mm256_add_pd(_mm256_add_pd(a.v[0], a.v[1]), _mm256_add_pd(a.v[2], a.v[3])));
    return (part[0] + part[1]) + (part[2] + part[3]);
}

inline Lanes zero_below(Lanes x, Lanes bound, Lanes a) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, bound.low, _CMP_GE_OQ), a.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, bound.high, _CMP_GE_OQ), a.high)};
}
inline __m256 widen(__m128i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
inline __m128i narrow(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    const __m256i packed = _mm256_packus_epi32(rounded, rounded);  // each half twice
    return _mm_unpacklo_epi64(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
}
inline Lanes load_bf16(const bf16* p) {
    return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_bf16(bf16* p, Lanes a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a.low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), narrow(a.high));
}
inline Lanes load_bf16(const bf16* p, int count) {
    alignas(32) bf16 part[16] = {};
    for (int i = 0; i < count; ++i) part[i] = p[i];
    return load_bf16(part);
}
inline void store_bf16(bf16* p, Lanes a, int count) {
    alignas(32) bf16 part[16];
    store_bf16(part, a);
    for (int i = 0; i < count; ++i) p[i] = part[i];
}
inline Lanes round_bf16(Lanes a) { return {widen(narrow(a.low)), widen(narrow(a.high))}; }

inline void load_pairs(const bf16* p, Lanes& even, Lanes& odd) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(low, mask)), _mm256_castsi256_ps(_mm256_and_si256(high, mask))};
}

inline float sum(Lanes a) {
    const __m256 b = _mm256_add_ps(a.low, a.high);
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(Lanes a) {
    alignas(32) float part[8];
    _mm256_store_ps(part, _mm256_max_ps(a.low, a.high));
    float best = part[0];
    for (float other : part) best = other > best ? other : best;
    return best;
}

inline void transpose_pairs(const bf16* rows, int64_t stride, bf16* out, int64_t out_stride) {
    for (int p = 0; p < 16; ++p)
        for (int r = 0; r < 16; ++r)
            std::memcpy(out + p * out_stride + 2 * r, rows + r * stride + 2 * p, 2 * sizeof(bf16));
}

constexpr int kTileRows = 6;
constexpr int tile_lanes(int rows) { return rows <= 2 ? 2 : 1; }

// Always inlined: gcc takes a call of a function that only prefetches for one without effect, and drops it.
[[gnu::always_inline]] inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the L2 cache.
[[gnu::always_inline]] inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

struct Words {
    __m256i low, high;
};
inline Words splat_words(uint32_t a) {
    return {_mm256_set1_epi32(static_cast<int>(a)), _mm256_set1_epi32(static_cast<int>(a))};
}
inline Words load_words(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline void store_words(uint32_t* p, Words a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.high);
}
inline Words operator+(Words a, Words b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)}; }
inline void multiply(__m256i a, __m256i b, __m256i& high, __m256i& low) {
    const __m256i even = _mm256_mul_epu32(a, b), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
inline void multiply(Words a, Words b, Words& high, Words& low) {
    multiply(a.low, b.low, high.low, low.low);
    multiply(a.high, b.high, high.high, low.high);
}
inline void transpose_fours(__m256i& w, __m256i& x, __m256i& y, __m256i& z) {
    const __m256i a = _mm256_unpacklo_epi32(w, x), b = _mm256_unpackhi_epi32(w, x);
    const __m256i c = _mm256_unpacklo_epi32(y, z), d = _mm256_unpackhi_epi32(y, z);
    w = _mm256_unpacklo_epi64(a, c);
    x = _mm256_unpackhi_epi64(a, c);
    y = _mm256_unpacklo_epi64(b, d);
    z = _mm256_unpackhi_epi64(b, d);
}
inline void transpose_fours(Words (&w)[4]) {
    transpose_fours(w[0].low, w[1].low, w[2].low, w[3].low);
    transpose_fours(w[0].high, w[1].high, w[2].high, w[3].high);
}
inline Lanes upper_bits(Words a) {
    return {_mm256_cvtepi32_ps(_mm256_srli_epi32(a.low, 8)), _mm256_cvtepi32_ps(_mm256_srli_epi32(a.high, 8))};
}
inline uint32_t at_most(Lanes a, Lanes b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LE_OQ));
    return static_cast<uint32_t>(low | _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LE_OQ)) << 8);
}

}  // namespace rayline::RL_ISA
