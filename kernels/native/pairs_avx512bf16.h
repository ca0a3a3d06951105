// Sixteen pairs of bf16 and their dot products.
#pragma once
#include <immintrin.h>

#include "abi.h"

namespace rayline::RL_ISA {

struct Pairs {
    __m512bh v;
};

inline Pairs load_pairs(const bf16* p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
inline Pairs splat_pair(uint32_t a) { return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a)))}; }
// c + a.second * b.second + a.first * b.first, in each lane.
inline Lanes add_products(Pairs a, Pairs b, Lanes c) { return {_mm512_dpbf16_ps(c.v, a.v, b.v)}; }

}  // namespace rayline::RL_ISA
