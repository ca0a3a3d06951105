#if defined(__x86_64__)
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "abi.h"
#include "draw.h"
#include "exchange.h"
#include "team.h"

// Standard headers come first: what they define must not be compiled for AVX, since the linker may keep that copy.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define RL_ISA avx512
#include "lanes_avx512.h"
#include "quant_lanes_avx512.h"
#include "functions.h"
#include "gemm.h"
#include "elementwise.h"
#include "quant_sums.h"
// the only operation that needs more; library.cpp hands out the AVX2 one where the CPU has not got it
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#include "quant_dot_avx512.h"
#include "quant_gemm_a8.h"
#pragma GCC pop_options
// after the lanes
#include "operations.h"

std::span<const rayline::NamedOperation> rayline::avx512_operations() { return avx512::kOperations; }
#endif
