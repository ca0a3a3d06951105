// Sixteen 32-bit words in two AVX registers; see quant_lanes_avx512.h.
#pragma once
#include <immintrin.h>

#include "lanes_avx2.h"

namespace rayline::RL_ISA::quant {

struct Words {
    __m256i low, high;
};
constexpr int kTileRows = 6;
constexpr int kTileLanes = 1;

inline Words words(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
inline Words load_words(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline void store_words(uint8_t* p, Words a) {
    auto* to = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(to, a.low);
    _mm256_storeu_si256(to + 1, a.high);
}
inline Words operator&(Words a, Words b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
template <int Bits>
inline Words shift_right(Words a) {
    return {_mm256_srli_epi32(a.low, Bits), _mm256_srli_epi32(a.high, Bits)};
}
inline Lanes as_lanes(Words a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
inline Lanes to_lanes(Words a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

template <int I>
inline Lanes centred_nibble(Words a) {
    return to_lanes(shift_right<4 * I>(a) & words(15)) - splat(8.0f);
}
template <int I>
inline Lanes centred_nibble_at(const uint8_t* p) {
    return centred_nibble<I>(load_words(p));
}
template <int I>
inline Lanes centred_byte_at(const uint8_t* p) {
    return to_lanes(shift_right<8 * I>(load_words(p)) & words(255)) - splat(128.0f);
}

inline void store_bytes(uint8_t* p, Lanes a) {
    const __m256i mask = _mm256_set1_epi32(255);
    const __m256i low = _mm256_and_si256(_mm256_cvtps_epi32(a.low), mask);
    const __m256i high = _mm256_and_si256(_mm256_cvtps_epi32(a.high), mask);
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// In 16 bits, even and odd bytes apart: the instruction that takes bytes saturates.
inline __m256i dot4(__m256i acc, __m256i a, __m256i b) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
inline Words dot4(Words acc, Words a, Words b) { return {dot4(acc.low, a.low, b.low), dot4(acc.high, a.high, b.high)}; }

}  // namespace rayline::RL_ISA::quant
