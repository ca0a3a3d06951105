// Products of bytes for AVX-512 with VNNI; to be compiled for that alone.
#pragma once
#include "quant_lanes_avx512.h"

namespace rayline::RL_ISA::quant {

// acc + the sum over the four bytes of a word: unsigned ones of a times signed ones of b.
inline Words dot4(Words acc, Words a, Words b) { return {(__v16si)_mm512_dpbusd_epi32((__m512i)acc.v, (__m512i)a.v, (__m512i)b.v)}; }

}  // namespace rayline::RL_ISA::quant
