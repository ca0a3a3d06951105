// out = x W^T with weights of 4 or 8 bits and exact activations.
//
// A group's sum is a chain of fma(x, q - centre) along its inputs, that starts at -(zero - centre) sum(x); then
// total = fma(group sum, scale, total). centre is 8 for 4 bits, and 128, the zero itself, for 8 bits.
#pragma once
#include "abi.h"
#include "elementwise.h"
#include "quant_sums.h"

namespace rayline::RL_ISA::quant {

// x of all rows in fp32, zeros behind the depth, and the negated sum of each group. A group's rows lie together, as
// a tile reads them: rows a power of two apart would push each other out of the nearest cache.
struct WideRows {
    const float* x;     // [groups, rows, group]
    const float* sums;  // [groups, rows]
    int64_t rows;
    int64_t groups;
};

inline WideRows widen_rows(Team& team, const bf16* x, int64_t rows, int64_t depth, int64_t group) {
    const int64_t groups = groups_of(depth, group);
    auto* wide = reinterpret_cast<float*>(team.shared(static_cast<std::size_t>(rows * groups * (group + 1)) * sizeof(float)));
    float* sums = wide + rows * groups * group;
    each_row(team, rows, depth, [&](int64_t row) {
        for (int64_t g = 0; g < groups; ++g) {
            Lanes sum_of = splat(0.0f);
            for (int64_t k = 0; k < group; k += kLanes) {
                const int count = static_cast<int>(std::clamp<int64_t>(depth - g * group - k, 0, kLanes));
                const bf16* from = x + row * depth + g * group + k;
                const Lanes v = count == kLanes ? load_bf16(from) : load_bf16(from, count);
                store(wide + (g * rows + row) * group + k, v);
                sum_of = sum_of + v;
            }
            sums[g * rows + row] = 0.0f - sum(sum_of);
        }
    });
    return {wide, sums, rows, groups};
}

// One group's weights as they are packed. With Keep, the first tile leaves them in `wide` for the tiles behind it.
template <int Bits, bool Keep>
struct PackedGroup {
    const uint8_t* data;
    float* wide;

    template <int Rows>
    inline __attribute__((always_inline)) void multiply(
        Lanes (&acc)[Rows][kTileLanes], int lane, const float* x, int64_t group) const {
        const uint8_t* from = data + lane * kLanes * kWordBytes;
        float* to = wide + lane * kLanes;
        for (int64_t k = 0; k < group; k += kWordDepth<Bits>, from += kRowOfWords) {
#pragma GCC unroll 8
                for (int j = 0; j < kTileLanes; ++j) prefetch_ahead(from + j * kLanes * kWordBytes);
            unroll<0, kWordDepth<Bits>>([&]<int Step>() {
                Lanes input[Rows];
#pragma GCC unroll 8
                for (int i = 0; i < Rows; ++i) input[i] = splat(x[i * group + k + Step]);
#pragma GCC unroll 8
                for (int j = 0; j < kTileLanes; ++j) {
                    const Lanes weight = weight_at<Bits, Step>(from + j * kLanes * kWordBytes);
                    if constexpr (Keep) store(to + (k + Step) * kBlockColumns + j * kLanes, weight);
#pragma GCC unroll 8
                    for (int i = 0; i < Rows; ++i) acc[i][j] = fma(input[i], weight, acc[i][j]);
                }
            });
        }
    }
};

// The same, as q - centre in fp32: [group, 64].
struct WideGroup {
    const float* data;

    template <int Rows>
    inline __attribute__((always_inline)) void multiply(
        Lanes (&acc)[Rows][kTileLanes], int lane, const float* x, int64_t group) const {
        const float* from = data + lane * kLanes;
        for (int64_t k = 0; k < group; ++k, from += kBlockColumns) {
            Lanes weight[kTileLanes];
#pragma GCC unroll 8
            for (int j = 0; j < kTileLanes; ++j) weight[j] = load(from + j * kLanes);
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                const Lanes input = splat(x[i * group + k]);
#pragma GCC unroll 8
                for (int j = 0; j < kTileLanes; ++j) acc[i][j] = fma(input, weight[j], acc[i][j]);
            }
        }
    }
};

// Adds one group of `Rows` rows to their sums.
template <int Bits, int Rows, class Source>
void add_group(const uint8_t* block, const Source& source, const WideRows& in, int64_t row, int64_t g, int64_t group,
               float* sums) {
    const float* x = in.x + (g * in.rows + row) * group;
    const float* x_sums = in.sums + g * in.rows + row;
    for (int lane = 0; lane < kBlockLanes; lane += kTileLanes) {
        Lanes acc[Rows][kTileLanes];
#pragma GCC unroll 8
        for (int j = 0; j < kTileLanes; ++j) {
            const Words scale = load_words(block + (lane + j) * kLanes * kWordBytes);
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i)
                acc[i][j] = Bits == 4 ? centred_nibble<0>(scale) * splat(x_sums[i]) : splat(0.0f);
        }
        source.template multiply<Rows>(acc, lane, x, group);
#pragma GCC unroll 8
        for (int j = 0; j < kTileLanes; ++j) {
            const Lanes scale = scale_of(load_words(block + (lane + j) * kLanes * kWordBytes));
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                float* at = sums + i * kBlockColumns + (lane + j) * kLanes;
                store(at, fma(acc[i][j], scale, load(at)));
            }
        }
    }
}

template <int Bits>
void multiply_panel(const LinearQuantised& a, const WideRows& in, int64_t row, int64_t rows, int64_t panel,
                    float* scratch) {
    const int64_t bytes = block_bytes(Bits, a.group);
    const uint8_t* blocks = a.weight + panel * in.groups * bytes;
    float* stack = scratch + a.group * kBlockColumns;
    const auto add = [&](int64_t g, float* sums) {
        const uint8_t* block = blocks + g * bytes;
        const uint8_t* data = block + kRowOfWords;
        const auto add_tile = [&]<int Rows>(int64_t i, const auto& source) {
            add_group<Bits, Rows>(block, source, in, row + i, g, a.group, sums + i * kBlockColumns);
        };
        each_tile(rows, [&]<int Rows>(int64_t i) {
            if (rows <= kTileRows) return add_tile.template operator()<Rows>(i, PackedGroup<Bits, false>{data, nullptr});
            if (i == 0) add_tile.template operator()<Rows>(i, PackedGroup<Bits, true>{data, scratch});
            else add_tile.template operator()<Rows>(i, WideGroup{scratch});
        });
    };
    sum_groups(stack, rows, in.groups, a.segments, add);
    write_sums(a, row, rows, panel, stack);
}

inline void linear_quantised(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const LinearQuantised*>(args);
    const WideRows in = widen_rows(team, a.x, step.rows, a.depth, a.group);
    const int64_t panels = panels_of(a.columns);
    const int64_t most_rows = std::min(step.rows, kBlockRows);
    const int64_t floats = (a.group + most_rows * tree_levels(a.segments)) * kBlockColumns;
    team.each(panels * ((step.rows + kBlockRows - 1) / kBlockRows), [&](int64_t chunk, int thread) {
        const int64_t row = chunk / panels * kBlockRows, rows = std::min(step.rows - row, kBlockRows);
        auto* scratch = reinterpret_cast<float*>(team.scratch(thread, static_cast<std::size_t>(floats) * sizeof(float)));
        if (a.bits == 4) multiply_panel<4>(a, in, row, rows, chunk % panels, scratch);
        else multiply_panel<8>(a, in, row, rows, chunk % panels, scratch);
    });
}

}  // namespace rayline::RL_ISA::quant
