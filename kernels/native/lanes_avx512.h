// Sixteen fp32 numbers in one AVX-512 register. The three lanes_*.h offer the same functions with the same bits.
#pragma once
#include <immintrin.h>

#include "abi.h"

namespace rayline::RL_ISA {

struct Lanes {
    __m512 v;
};
constexpr int kLanes = 16;
constexpr int kLaneRegisters = 32;  // Lanes that a loop can keep in registers

inline Lanes splat(float a) { return {_mm512_set1_ps(a)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
// a b + c, rounded once.
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes round_even(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for whole n in [-126, 127].
inline Lanes power_of_two(Lanes n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}

// Lane i is a's where bit i is set, else b's.
inline Lanes select_bits(uint32_t bits, Lanes a, Lanes b) {
    return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>(bits), a.v)};
}

// Sixteen sums in fp64.
struct WideSums {
    __m512d low, high;
};
inline WideSums no_wide_sums() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
inline WideSums operator+(WideSums a, Lanes b) {
    return {_mm512_add_pd(a.low, _mm512_cvtps_pd(_mm512_castps512_ps256(b.v))),
            _mm512_add_pd(a.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(b.v, 1)))};
}
// In any order: of whole numbers.
inline double sum(WideSums a) { return _mm512_reduce_add_pd(_mm512_add_pd(a.low, a.high)); }

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Lanes select_first(int count, Lanes a, Lanes b) { return {_mm512_mask_mov_ps(b.v, first_lanes(count), a.v)}; }

// a where x >= bound, else 0.
inline Lanes zero_below(Lanes x, Lanes bound, Lanes a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, bound.v, _CMP_GE_OQ), a.v)};
}
inline __m512 widen(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
// To the nearest, ties to even, subnormals kept; the instruction for it flushes them.
inline __m256i narrow(__m512 a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, is_nan, _mm512_set1_epi32(0x7fc00000)), 16));
}
inline Lanes load_bf16(const bf16* p) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void store_bf16(bf16* p, Lanes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a.v)); }
inline Lanes load_bf16(const bf16* p, int count) { return {widen(_mm256_maskz_loadu_epi16(first_lanes(count), p))}; }
inline void store_bf16(bf16* p, Lanes a, int count) { _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(a.v)); }
// a rounded to bf16 and back.
inline Lanes round_bf16(Lanes a) { return {widen(narrow(a.v))}; }

// Sixteen pairs of bf16, as two registers.
inline void load_pairs(const bf16* p, Lanes& even, Lanes& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))};
    odd = {_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}

// Joined as a tree: lane i and lane i + 8, then + 4, + 2, + 1.
inline float sum(Lanes a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(Lanes a) { return _mm512_reduce_max_ps(a.v); }

// The first 32 elements of 16 rows, as pairs: pair p of row r goes to out[p * out_stride + 2 r]. Past the caches, since
// what is packed is read much later.
inline void transpose_pairs(const bf16* rows, int64_t stride, bf16* out, int64_t out_stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows + i * stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0x88);
            b[i + 4 + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        a[j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0x88);
        a[8 + j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0xdd);
    }
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * out_stride, a[i]);
}

// Register tile of a product: rows at most, and lanes beside each other for so many rows.
constexpr int kTileRows = 12;
constexpr int tile_lanes(int rows) { return rows <= 5 ? 4 : 2; }

// Always inlined: gcc takes a call of a function that only prefetches for one without effect, and drops it.
[[gnu::always_inline]] inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the L2 cache.
[[gnu::always_inline]] inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// Sixteen 32-bit words.
struct Words {
    __m512i v;
};
inline Words splat_words(uint32_t a) { return {_mm512_set1_epi32(static_cast<int>(a))}; }
inline Words load_words(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_words(uint32_t* p, Words a) { _mm512_storeu_si512(p, a.v); }
inline Words operator+(Words a, Words b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
// The 64-bit products of a and b, in halves.
inline void multiply(Words a, Words b, Words& high, Words& low) {
    const __m512i even = _mm512_mul_epu32(a.v, b.v), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), b.v);
    high.v = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
    low.v = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}
// Each group of four lanes as a 4 x 4 matrix with a row in each of w: transposed.
inline void transpose_fours(Words (&w)[4]) {
    const __m512i a = _mm512_unpacklo_epi32(w[0].v, w[1].v), b = _mm512_unpackhi_epi32(w[0].v, w[1].v);
    const __m512i c = _mm512_unpacklo_epi32(w[2].v, w[3].v), d = _mm512_unpackhi_epi32(w[2].v, w[3].v);
    w[0].v = _mm512_unpacklo_epi64(a, c);
    w[1].v = _mm512_unpackhi_epi64(a, c);
    w[2].v = _mm512_unpacklo_epi64(b, d);
    w[3].v = _mm512_unpackhi_epi64(b, d);
}
// The upper 24 bits of each word as a number.
inline Lanes upper_bits(Words a) { return {_mm512_cvtepi32_ps(_mm512_srli_epi32(a.v, 8))}; }
// A bit for each lane: a <= b.
inline uint32_t at_most(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }

}  // namespace rayline::RL_ISA
