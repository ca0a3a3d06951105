// The product by the dot product of bf16 pairs, for CPUs where that is twice as fast as fused multiply-add (Zen 4, 5).
// A numerics class of its own: each step takes in two products, flushes subnormals, and rounds as dpbf16 does.
#pragma once
#include "gemm.h"

namespace rayline::RL_ISA {

struct PairProduct {
    using X = uint32_t;  // a pair
    static constexpr bool kUnpacks = false;
    static constexpr int64_t kStride = kDepthBlock / 2;

    static void lay_out(const bf16* x, int64_t depth, uint32_t* out) {
        std::memcpy(out, x, static_cast<std::size_t>(depth) * sizeof(bf16));
    }

    template <int Rows, int Width, Weights>
    static void multiply(const ProductTile<PairProduct>& tile, int lane, Lanes (&acc)[Rows][Width]) {
        const uint32_t* x = tile.x;
        const bf16* packed = tile.packed + lane * kPackedLine;
        const bf16* ahead = tile.ahead;
        for (int64_t pair = tile.pairs; pair > 0; --pair) {
            Pairs w[Width];
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) {
                w[j] = load_pairs(packed + j * kPackedLine);
                prefetch_far(ahead + j * kPackedLine);
                prefetch(packed + kSoon + j * kPackedLine);
            }
#pragma GCC unroll 12
            for (int i = 0; i < Rows; ++i) {
                const Pairs factor = splat_pair(x[i * kStride]);
#pragma GCC unroll 4
                for (int j = 0; j < Width; ++j) acc[i][j] = add_products(factor, w[j], acc[i][j]);
            }
            ++x;
            packed += kPackedPair;
            ahead += tile.ahead_step;
        }
    }
};

inline void linear(Team& team, const Step& step, const void* args) { multiply<PairProduct>(team, step, args); }

}  // namespace rayline::RL_ISA
