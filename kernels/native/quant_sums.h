// The order in which a product over groups is summed, and where the sums lie; the same for all quantised products.
//
// Groups are added one after another in each of `segments` runs of whole groups, and the runs are joined pairwise as
// a binary tree (kernels/tree.py).
#pragma once
#include <algorithm>
#include <bit>

#include "abi.h"
#include "quant_layout.h"
#include "team.h"

namespace rayline::RL_ISA::quant {

constexpr int64_t kBlockRows = 128;  // rows that share one widened block of weights

// Calls body(integral constant) for 0 .. Count - 1, unrolled.
template <int I, int Count, class Body>
inline __attribute__((always_inline)) void unroll(Body&& body) {
    if constexpr (I < Count) {
        body.template operator()<I>();
        unroll<I + 1, Count>(body);
    }
}

// Cuts `rows` into tiles of nearly equal height, kTileRows at most: body.operator()<Rows>(first row).
template <class Body>
inline void each_tile(int64_t rows, Body&& body) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    int64_t row = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t height = (rows - row + tiles - tile - 1) / (tiles - tile);
        unroll<1, kTileRows + 1>([&]<int Rows>() {
            if (height == Rows) body.template operator()<Rows>(row);
        });
        row += height;
    }
}

inline int64_t tree_levels(int64_t segments) { return std::bit_width(static_cast<uint64_t>(segments)); }

// Partial sums of `rows` rows of one panel: a stack of [rows, 64] fp32. Calls add(group, sums) for each group in
// order and returns with the whole sum at the stack's bottom.
template <class Add>
inline void sum_groups(float* stack, int64_t rows, int64_t groups, int64_t segments, Add&& add) {
    const int64_t size = rows * kBlockColumns;
    const int64_t length = (groups + segments - 1) / segments;
    const auto join = [&](float* upper) {
        for (int64_t i = 0; i < size; i += kLanes) store(upper - size + i, load(upper - size + i) + load(upper + i));
    };
    float* top = stack;
    for (int64_t s = 0; s < segments; ++s, top += size) {
        for (int64_t i = 0; i < size; i += kLanes) store(top + i, splat(0.0f));
        const int64_t last = std::min(groups, (s + 1) * length);
        for (int64_t g = s * length; g < last; ++g) add(g, top);
        for (int64_t bit = s; bit & 1; bit >>= 1, top -= size) join(top);
    }
    for (top -= size; top > stack; top -= size) join(top);
}

template <class Args>
void write_sums(const Args& a, int64_t row, int64_t rows, int64_t panel, const float* sums) {
    for (int64_t i = 0; i < rows; ++i)
        for (int j = 0; j < kBlockLanes; ++j) {
            const int64_t column = panel * kBlockColumns + j * kLanes;
            const int count = static_cast<int>(std::min<int64_t>(kLanes, a.columns - column));
            if (count <= 0) break;
            const int64_t at = (row + i) * a.columns + column;
            const float* from = sums + i * kBlockColumns + j * kLanes;
            if (a.out_fp32 != nullptr) {
                std::copy(from, from + count, a.out_fp32 + at);
                continue;
            }
            Lanes y = load(from);
            if (a.bias != nullptr) y = y + load_bf16(a.bias + column, count);
            store_bf16(a.out + at, y, count);
        }
}

}  // namespace rayline::RL_ISA::quant
