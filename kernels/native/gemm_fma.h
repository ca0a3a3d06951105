// The product by fused multiply-add on fp32: x and the weights are widened, each step along the depth rounds once.
// The same bits on every CPU.
#pragma once
#include "gemm.h"

namespace rayline::RL_ISA {

struct FmaProduct {
    using X = float;
    static constexpr bool kUnpacks = true;
    static constexpr int64_t kStride = kDepthBlock;

    static void lay_out(const bf16* x, int64_t depth, float* out) {
        int64_t k = 0;
        for (; k + kLanes <= depth; k += kLanes) store(out + k, load_bf16(x + k));
        if (k < depth) store(out + k, load_bf16(x + k, static_cast<int>(depth - k)));
    }

    template <int Rows, int Width>
    static void step(const float* x, const Lanes (&w)[Width], Lanes (&acc)[Rows][Width]) {
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i) {
            const Lanes factor = splat(x[i * kStride]);
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) acc[i][j] = fma(factor, w[j], acc[i][j]);
        }
    }

    template <int Rows, int Width, Weights kWeights>
    static void multiply(const ProductTile<FmaProduct>& tile, int lane, Lanes (&acc)[Rows][Width]) {
        const float* x = tile.x;
        const bf16* packed = tile.packed + lane * kPackedLine;
        const bf16* ahead = tile.ahead;
        float* unpacked = tile.unpacked + lane * kLanes;
        for (int64_t pair = tile.pairs; pair > 0; --pair) {
            Lanes even[Width], odd[Width];
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) {
                if constexpr (kWeights == Weights::kUnpacked) {
                    even[j] = load(unpacked + j * kLanes);
                    odd[j] = load(unpacked + kPanel + j * kLanes);
                    continue;
                }
                load_pairs(packed + j * kPackedLine, even[j], odd[j]);
                if constexpr (kWeights == Weights::kUnpack) {
                    store(unpacked + j * kLanes, even[j]);
                    store(unpacked + kPanel + j * kLanes, odd[j]);
                }
            }
            if constexpr (kWeights == Weights::kPacked) {
                for (int j = 0; j < Width; ++j) {
                    prefetch_far(ahead + j * kPackedLine);
                    prefetch(packed + kSoon + j * kPackedLine);
                }
            } else {
                prefetch_far(ahead);
            }
            step<Rows, Width>(x, even, acc);
            step<Rows, Width>(x + 1, odd, acc);
            x += 2;
            packed += kPackedPair;
            unpacked += 2 * kPanel;
            ahead += tile.ahead_step;
        }
    }
};

inline void linear(Team& team, const Step& step, const void* args) { multiply<FmaProduct>(team, step, args); }

}  // namespace rayline::RL_ISA
