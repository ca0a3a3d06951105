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
#pragma GCC target("avx2,fma")
#define RL_ISA avx2
#include "lanes_avx2.h"
#include "quant_lanes_avx2.h"
// after the lanes
#include "operations.h"

std::span<const rayline::NamedOperation> rayline::avx2_operations() { return avx2::kOperations; }
#endif
