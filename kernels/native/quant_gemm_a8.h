// out = x W^T with weights of 4 or 8 bits and activations rounded to 8 bits: a numerics class of its own.
//
// x = step n with whole n in [-127, 127] and one step a row and group. A group's sum of (q - zero) n is a whole number
// below 2^24, so it is exact in any order; then total = fma(whole sum, scale * step, total).
#pragma once
#include "abi.h"
#include "elementwise.h"
#include "quant_sums.h"

namespace rayline::RL_ISA::quant {

struct RoundedRows {
    const uint8_t* n;    // [groups, rows, group], signed; zeros behind the depth
    const float* steps;  // [groups, rows]
    const float* sums;   // [groups, rows]: negated sum of n
    int64_t rows;
    int64_t groups;
};

// One group of one row; returns the step. `sum_of` gets the sum of n.
inline float round_activations(const bf16* x, int64_t count, int64_t group, uint8_t* n, float& sum_of) {
    constexpr float kSmallest = 1e-30f;  // below it a reciprocal may overflow
    Lanes most = splat(0.0f);
    const auto load_at = [&](int64_t k) { return load_bf16(x + k, static_cast<int>(std::clamp<int64_t>(count - k, 0, kLanes))); };
    for (int64_t k = 0; k < group; k += kLanes) {
        const Lanes v = load_at(k);
        most = max(most, max(v, splat(0.0f) - v));
    }
    const float step = largest(most) / 127.0f;
    const Lanes inverse = splat(step < kSmallest ? 0.0f : 1.0f / step);
    Lanes total = splat(0.0f);
    for (int64_t k = 0; k < group; k += kLanes) {
        const Lanes whole = round_even(load_at(k) * inverse);
        total = total + whole;
        store_bytes(n + k, whole);
    }
    sum_of = sum(total);
    return step;
}

inline RoundedRows round_rows(Team& team, const bf16* x, int64_t rows, int64_t depth, int64_t group) {
    const int64_t groups = groups_of(depth, group);
    const int64_t bytes = rows * groups * (2 * static_cast<int64_t>(sizeof(float)) + group);
    auto* steps = reinterpret_cast<float*>(team.shared(static_cast<std::size_t>(bytes)));
    float* sums = steps + rows * groups;
    auto* n = reinterpret_cast<uint8_t*>(sums + rows * groups);
    each_row(team, rows, depth, [&](int64_t row) {
        for (int64_t g = 0; g < groups; ++g) {
            float whole = 0.0f;
            const int64_t k = g * group, at = g * rows + row;
            steps[at] = round_activations(x + row * depth + k, depth - k, group, n + at * group, whole);
            sums[at] = 0.0f - whole;
        }
    });
    return {n, steps, sums, rows, groups};
}

// Four activations as the bytes of a word, the first in the lowest.
inline Words four_at(const uint8_t* n) {
    return words(static_cast<int32_t>(uint32_t{n[0]} | uint32_t{n[1]} << 8 | uint32_t{n[2]} << 16 | uint32_t{n[3]} << 24));
}

// One group's weights: 4-bit ones as they are packed, or one byte a weight, [group / 4][64 columns][4]. With Ahead a
// tile fetches what comes next; with Keep it leaves the bytes of 4-bit ones in `wide` for the tiles behind it.
template <int Bits, bool Ahead, bool Keep>
struct WholeGroup {
    const uint8_t* data;
    uint8_t* wide;

    template <int Rows>
    inline __attribute__((always_inline)) void multiply(
        Words (&acc)[Rows][kTileLanes], int lane, const uint8_t* n, int64_t group) const {
        const uint8_t* from = data + lane * kLanes * kWordBytes;
        uint8_t* to = wide + lane * kLanes * kWordBytes;
        for (int64_t k = 0; k < group; k += kWordDepth<Bits>, from += kRowOfWords, to += 2 * kRowOfWords)
#pragma GCC unroll 8
            for (int j = 0; j < kTileLanes; ++j) {
                const int at = j * kLanes * kWordBytes;
                const Words word = load_words(from + at);
                if constexpr (Ahead) prefetch_ahead(from + at);
                const Words low = Bits == 4 ? word & words(0x0f0f0f0f) : word;
                const Words high = shift_right<4>(word) & words(0x0f0f0f0f);
                if constexpr (Keep) {
                    store_words(to + at, low);
                    store_words(to + kRowOfWords + at, high);
                }
#pragma GCC unroll 8
                for (int i = 0; i < Rows; ++i) {
                    acc[i][j] = dot4(acc[i][j], low, four_at(n + i * group + k));
                    if constexpr (Bits == 4) acc[i][j] = dot4(acc[i][j], high, four_at(n + i * group + k + 4));
                }
            }
    }
};

template <int Bits, int Rows, class Source>
void add_whole_group(const uint8_t* block, const Source& source, const RoundedRows& in, int64_t row, int64_t g,
                     int64_t group, float* sums) {
    const int64_t first = g * in.rows + row;
    const uint8_t* n = in.n + first * group;
    for (int lane = 0; lane < kBlockLanes; lane += kTileLanes) {
        Words acc[Rows][kTileLanes];
#pragma GCC unroll 8
        for (auto& tile_row : acc)
#pragma GCC unroll 8
            for (Words& word : tile_row) word = words(0);
        source.template multiply<Rows>(acc, lane, n, group);
#pragma GCC unroll 8
        for (int j = 0; j < kTileLanes; ++j) {
            const Words word = load_words(block + (lane + j) * kLanes * kWordBytes);
            const Lanes scale = scale_of(word);
            const Lanes zero = Bits == 4 ? centred_nibble<0>(word) + splat(8.0f) : splat(128.0f);
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                float* to = sums + i * kBlockColumns + (lane + j) * kLanes;
                const Lanes whole = fma(zero, splat(in.sums[first + i]), to_lanes(acc[i][j]));
                store(to, fma(whole, scale * splat(in.steps[first + i]), load(to)));
            }
        }
    }
}

template <int Bits>
void multiply_whole_panel(const LinearQuantisedA8& a, const RoundedRows& in, int64_t row, int64_t rows, int64_t panel,
                          std::byte* scratch) {
    const int64_t bytes = block_bytes(Bits, a.group);
    const uint8_t* blocks = a.weight + panel * in.groups * bytes;
    auto* wide = reinterpret_cast<uint8_t*>(scratch);
    auto* stack = reinterpret_cast<float*>(scratch + a.group * kBlockColumns);
    const bool is_short = rows <= 3 * kTileRows;  // few tiles leave little time to fetch the next group in parts
    const auto add = [&](int64_t g, float* sums) {
        const uint8_t* block = blocks + g * bytes;
        const uint8_t* data = block + kRowOfWords;
        const auto add_tile = [&]<int Rows>(int64_t i, const auto& source) {
            add_whole_group<Bits, Rows>(block, source, in, row + i, g, a.group, sums + i * kBlockColumns);
        };
        each_tile(rows, [&]<int Rows>(int64_t i) {
            constexpr bool kKeeps = Bits == 4;
            if (rows <= kTileRows) return add_tile.template operator()<Rows>(i, WholeGroup<Bits, true, false>{data, wide});
            if (!is_short) prefetch_part(block + 2 * bytes, bytes, i, i + Rows, rows);
            if (i > 0) add_tile.template operator()<Rows>(i, WholeGroup<8, false, false>{kKeeps ? wide : data, wide});
            else if (is_short) add_tile.template operator()<Rows>(i, WholeGroup<Bits, true, kKeeps>{data, wide});
            else add_tile.template operator()<Rows>(i, WholeGroup<Bits, false, kKeeps>{data, wide});
        });
    };
    sum_groups(stack, rows, in.groups, a.segments, add);
    write_sums(a, row, rows, panel, stack);
}

inline void linear_quantised_a8(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const LinearQuantisedA8*>(args);
    const RoundedRows in = round_rows(team, a.x, step.rows, a.depth, a.group);
    const int64_t panels = panels_of(a.columns);
    const int64_t most_rows = std::min(step.rows, kBlockRows);
    const int64_t stack_bytes = most_rows * tree_levels(a.segments) * kBlockColumns * static_cast<int64_t>(sizeof(float));
    const auto bytes = static_cast<std::size_t>(a.group * kBlockColumns + stack_bytes);
    team.each(panels * ((step.rows + kBlockRows - 1) / kBlockRows), [&](int64_t chunk, int thread) {
        const int64_t row = chunk / panels * kBlockRows, rows = std::min(step.rows - row, kBlockRows);
        std::byte* scratch = team.scratch(thread, bytes);
        if (a.bits == 4) multiply_whole_panel<4>(a, in, row, rows, chunk % panels, scratch);
        else multiply_whole_panel<8>(a, in, row, rows, chunk % panels, scratch);
    });
}

}  // namespace rayline::RL_ISA::quant
