// out = x W^T with bf16 weights.
//
// packed  [columns / 64 panels][depth / 2][64 columns][2]: a panel holds 64 columns, zeros behind the last, and two
//         neighbours along the depth lie side by side.
//
// Each output is a chain of fma along the depth, cut into `segments` of equal length that are joined pairwise as a
// binary tree; a row's bits do not depend on the rows beside it.
#pragma once
#include <algorithm>
#include <bit>

#include "abi.h"
#include "team.h"

namespace rayline::RL_ISA {

constexpr int kPanel = 64;
constexpr int kPanelLanes = kPanel / kLanes;

inline void pack_linear(Team& team, const Step&, const void* args) {
    const auto& a = *static_cast<const PackLinear*>(args);
    team.each((a.columns + kPanel - 1) / kPanel, [&](int64_t panel, int) {
        bf16* to = a.packed + (a.first + panel * kPanel) * a.depth;
        for (int64_t k = 0; k < a.depth; k += 2)
            for (int64_t c = 0; c < kPanel; ++c) {
                const int64_t column = panel * kPanel + c;
                const bool is_real = column < a.columns;
                to[k * kPanel + 2 * c] = is_real ? a.source[column * a.stride + k] : bf16{0};
                to[k * kPanel + 2 * c + 1] = is_real ? a.source[column * a.stride + k + 1] : bf16{0};
            }
    });
}

template <int Rows>
void multiply_segment(const bf16* x, int64_t stride, const bf16* panel, int64_t depth, Lanes (&acc)[Rows][kPanelLanes]) {
    for (auto& row : acc)
        for (auto& lanes : row) lanes = splat(0.0f);
    for (int64_t k = 0; k < depth; k += 2) {
        for (int j = 0; j < kPanelLanes; ++j) {
            Lanes even, odd;
            load_pairs(panel + k * kPanel + j * 2 * kLanes, even, odd);
            for (int i = 0; i < Rows; ++i) {
                const uint32_t pair = static_cast<uint32_t>(x[i * stride + k]) | static_cast<uint32_t>(x[i * stride + k + 1]) << 16;
                acc[i][j] = fma(splat(std::bit_cast<float>(pair << 16)), even, acc[i][j]);
                acc[i][j] = fma(splat(std::bit_cast<float>(pair & 0xffff0000u)), odd, acc[i][j]);
            }
        }
    }
}

template <int Rows>
void multiply_tile(const Linear& a, int64_t row, int64_t panel) {
    constexpr int kMaxDepthOfTree = 5;
    Lanes stack[kMaxDepthOfTree][Rows][kPanelLanes];
    const bf16* x = a.x + row * a.depth;
    const bf16* weight = a.weight + panel * kPanel * a.depth;
    const int64_t length = 2 * ((a.depth + 2 * a.segments - 1) / (2 * a.segments));
    int top = 0;
    for (int64_t s = 0; s < a.segments; ++s, ++top) {
        const int64_t first = std::min(a.depth, s * length), last = std::min(a.depth, first + length);
        multiply_segment<Rows>(x + first, a.depth, weight + first * kPanel, last - first, stack[top]);
        for (int64_t join = s; join & 1; join >>= 1, --top)
            for (int i = 0; i < Rows; ++i)
                for (int j = 0; j < kPanelLanes; ++j) stack[top - 1][i][j] = stack[top - 1][i][j] + stack[top][i][j];
    }
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < kPanelLanes; ++j) {
            const int64_t column = panel * kPanel + j * kLanes;
            const int count = static_cast<int>(std::min<int64_t>(kLanes, a.columns - column));
            if (count <= 0) continue;
            const int64_t at = (row + i) * a.columns + column;
            Lanes y = stack[0][i][j];
            if (a.out_fp32 != nullptr) {
                alignas(64) float part[kLanes];
                store(part, y);
                std::copy(part, part + count, a.out_fp32 + at);
                continue;
            }
            if (a.bias != nullptr) y = y + load_bf16(a.bias + column, count);
            store_bf16(a.out + at, y, count);
        }
}

inline void linear(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const Linear*>(args);
    team.each((a.columns + kPanel - 1) / kPanel, [&](int64_t panel, int) {
        int64_t row = 0;
        for (; row + 4 <= step.rows; row += 4) multiply_tile<4>(a, row, panel);
        for (; row < step.rows; ++row) multiply_tile<1>(a, row, panel);
    });
}

}  // namespace rayline::RL_ISA
