// Lays bf16 weights out as gemm.h reads them.
#pragma once
#include "gemm.h"

namespace rayline::RL_ISA {

// Sixteen columns of one panel: `from` is the first, `to` its place in the panel.
inline void pack_lanes(const PackLinear& a, const bf16* from, bf16* to) {
    int64_t k = 0;
    for (; k + 2 * kLanes <= a.depth; k += 2 * kLanes)
        transpose_pairs(from + k, a.stride, to + k * kPanel, 2 * kPanel);
    for (; k < a.depth; k += 2)
        for (int64_t c = 0; c < kLanes; ++c) {
            to[k * kPanel + 2 * c] = from[c * a.stride + k];
            to[k * kPanel + 2 * c + 1] = from[c * a.stride + k + 1];
        }
}

inline void pack_column(const PackLinear& a, const bf16* from, bf16* to) {
    for (int64_t k = 0; k < a.depth; k += 2) {
        to[k * kPanel] = from[k];
        to[k * kPanel + 1] = from[k + 1];
    }
}

inline void pack_linear(Team& team, const Step&, const void* args) {
    const auto& a = *static_cast<const PackLinear*>(args);
    const int64_t end = a.first + a.columns;
    const int64_t first_chunk = a.first / kLanes;
    team.each((end + kLanes - 1) / kLanes - first_chunk, [&](int64_t chunk, int) {
        const int64_t column = (first_chunk + chunk) * kLanes;
        bf16* to = a.packed + column / kPanel * kPanel * a.depth + column % kPanel * 2;
        const bf16* from = a.source + (column - a.first) * a.stride;
        if (column >= a.first && column + kLanes <= end) return pack_lanes(a, from, to);
        for (int64_t c = std::max(column, a.first); c < std::min(column + kLanes, end); ++c)
            pack_column(a, from + (c - column) * a.stride, to + (c - column) * 2);
    });
}

}  // namespace rayline::RL_ISA
