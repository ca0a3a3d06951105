#if defined(__x86_64__)
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include "abi.h"
#include "team.h"

// Standard headers come first: what they define must not be compiled for AVX, since the linker may keep that copy.
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define RL_ISA avx512bf16
#include "lanes_avx512.h"
#include "pairs_avx512bf16.h"
// after the lanes
#include "gemm_dpbf16.h"
#include "isa.h"

namespace rayline::avx512bf16 {

constexpr NamedOperation kOperations[] = {{"Linear", linear}};

}  // namespace rayline::avx512bf16

std::span<const rayline::NamedOperation> rayline::avx512bf16_operations() { return avx512bf16::kOperations; }
#endif
