// Sixteen 32-bit words in one AVX-512 register, as quantised weights are read; see lanes_avx512.h.
#pragma once
#include <immintrin.h>

#include "lanes_avx512.h"

namespace rayline::RL_ISA::quant {

// Not __m512i, which may alias anything: gcc would keep sums of it in memory.
struct Words {
    __v16si v;
};
// Rows and registers of columns whose sums are kept in registers at once.
constexpr int kTileRows = 6;
constexpr int kTileLanes = 4;

inline Words words(int32_t a) { return {(__v16si)_mm512_set1_epi32(a)}; }
inline Words load_words(const uint8_t* p) { return {(__v16si)_mm512_loadu_si512(p)}; }
inline void store_words(uint8_t* p, Words a) { _mm512_storeu_si512(p, (__m512i)a.v); }
inline Words operator&(Words a, Words b) { return {a.v & b.v}; }
template <int Bits>
inline Words shift_right(Words a) {
    return {(__v16si)_mm512_srli_epi32((__m512i)a.v, Bits)};
}
inline Lanes as_lanes(Words a) { return {(__m512)a.v}; }
inline Lanes to_lanes(Words a) { return {_mm512_cvtepi32_ps((__m512i)a.v)}; }

// Nibble I of each word, minus 8. The table's index is the low 4 bits of a word, whatever lies above.
template <int I>
inline Lanes centred_nibble(Words a) {
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)a.v, 4 * I), table)};
}
// The same of the words at p. A load one byte on is a shift by 8 bits that keeps no arithmetic unit busy.
template <int I>
inline Lanes centred_nibble_at(const uint8_t* p) {
    return centred_nibble<I % 2>(load_words(p + I / 2));
}
// Byte I of each word at p, minus 128: 2^23 + byte as the bits of a float, minus 2^23 + 128.
template <int I>
inline Lanes centred_byte_at(const uint8_t* p) {
    constexpr int kMaskOr = 0xea;  // (a & b) | c
    const __m512i byte = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xff), (__m512i)load_words(p + I).v,
                                                   _mm512_set1_epi32(0x4b000000), kMaskOr);
    return {_mm512_sub_ps(_mm512_castsi512_ps(byte), _mm512_set1_ps(8388736.0f))};
}

// Rounded to the nearest, which must lie in [-128, 255], and cut to a byte.
inline void store_bytes(uint8_t* p, Lanes a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

}  // namespace rayline::RL_ISA::quant
