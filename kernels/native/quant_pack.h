// Quantising bf16 weights into the layout of quant_layout.h, laying out integers that are quantised already, and
// reading rows back for an embedding. kernels/quantise.py has the same arithmetic in torch.
#pragma once
#include <bit>
#include <cmath>
#include <cstring>

#include "abi.h"
#include "elementwise.h"
#include "quant_layout.h"
#include "team.h"

namespace rayline::RL_ISA::quant {

constexpr int kMaxGroup = 128;

// One column's group: q of each input and the scale's word.
struct WeightGroup {
    alignas(64) uint8_t q[kMaxGroup];
    uint32_t scale;
};

// A scale cut to 20 bits, to the nearest; 0 where its reciprocal could overflow.
inline float short_scale(float scale) {
    constexpr float kSmallest = 1e-30f;
    if (scale < kSmallest) return 0.0f;
    return std::bit_cast<float>((std::bit_cast<uint32_t>(scale) + 8) & static_cast<uint32_t>(kScaleMask));
}

// To the nearest: w = scale (q - zero), 0 among the values. `w` has `count` weights; zeros fill the group.
inline void quantise_group(const bf16* w, int64_t count, int64_t group, int64_t bits, WeightGroup& to) {
    Lanes high = splat(0.0f), low = splat(0.0f);
    const auto load_at = [&](int64_t k) { return load_bf16(w + k, static_cast<int>(std::clamp<int64_t>(count - k, 0, kLanes))); };
    for (int64_t k = 0; k < group; k += kLanes) {
        const Lanes v = load_at(k);
        high = max(high, v);
        low = max(low, splat(0.0f) - v);
    }
    const float above = largest(high), below = largest(low);
    const float scale = short_scale(bits == 4 ? (above + below) / 15.0f : std::max(above, below) / 127.0f);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const float zero = bits == 4 ? std::min(15.0f, std::nearbyint(below * inverse)) : 128.0f;
    const float least = bits == 4 ? 0.0f : 1.0f, most = bits == 4 ? 15.0f : 255.0f;
    for (int64_t k = 0; k < group; k += kLanes) {
        const Lanes q = round_even(load_at(k) * splat(inverse)) + splat(zero);
        store_bytes(to.q + k, min(max(q, splat(least)), splat(most)));
    }
    to.scale = std::bit_cast<uint32_t>(scale) | (bits == 4 ? static_cast<uint32_t>(zero) : 0);
}

inline void put_word(uint8_t* to, uint32_t word) {
    for (int i = 0; i < kWordBytes; ++i) to[i] = static_cast<uint8_t>(word >> 8 * i);
}
inline uint32_t get_word(const uint8_t* from) {
    return uint32_t{from[0]} | uint32_t{from[1]} << 8 | uint32_t{from[2]} << 16 | uint32_t{from[3]} << 24;
}

inline void put_group(uint8_t* block, int64_t column, int64_t group, int64_t bits, const WeightGroup& from) {
    put_word(block + column * kWordBytes, from.scale);
    uint8_t* to = block + kRowOfWords + column * kWordBytes;
    for (int64_t k = 0; k < group; k += 32 / bits, to += kRowOfWords) {
        const uint32_t first = get_word(from.q + k);
        put_word(to, bits == 4 ? first | get_word(from.q + k + 4) << 4 : first);
    }
}

// Calls fill(column, group number, WeightGroup&) for all columns that lie in a panel and lays out what it fills in.
template <class Args, class Fill>
void pack_panel(const Args& a, int64_t panel, Fill&& fill) {
    constexpr int64_t kGroupsAtOnce = 16;  // their blocks stay in the nearest cache while the columns are filled in
    const int64_t groups = groups_of(a.depth, a.group), bytes = block_bytes(a.bits, a.group);
    uint8_t* blocks = a.packed + panel * groups * bytes;
    const int64_t first = std::max<int64_t>(0, panel * kBlockColumns - a.first);
    const int64_t last = std::min(a.columns, (panel + 1) * kBlockColumns - a.first);
    WeightGroup part;
    for (int64_t from = 0; from < groups; from += kGroupsAtOnce)
        for (int64_t column = first; column < last; ++column)
            for (int64_t g = from; g < std::min(groups, from + kGroupsAtOnce); ++g) {
                fill(column, g, part);
                put_group(blocks + g * bytes, (a.first + column) % kBlockColumns, a.group, a.bits, part);
            }
}

template <class Args, class Fill>
void pack_panels(Team& team, const Args& a, Fill&& fill) {
    const int64_t panel = a.first / kBlockColumns;
    team.each(panels_of(a.first + a.columns) - panel, [&](int64_t chunk, int) { pack_panel(a, panel + chunk, fill); });
}

inline void pack_quantised(Team& team, const Step&, const void* args) {
    const auto& a = *static_cast<const PackQuantised*>(args);
    pack_panels(team, a, [&](int64_t column, int64_t g, WeightGroup& to) {
        const int64_t k = g * a.group;
        quantise_group(a.source + column * a.stride + k, a.depth - k, a.group, a.bits, to);
    });
}

inline void pack_integers(Team& team, const Step&, const void* args) {
    const auto& a = *static_cast<const PackIntegers*>(args);
    const int64_t groups = groups_of(a.depth, a.group);
    pack_panels(team, a, [&](int64_t column, int64_t g, WeightGroup& to) {
        to = {};
        const int64_t k = g * a.group, at = column * groups + g;
        std::memcpy(to.q, a.q + column * a.depth + k, static_cast<std::size_t>(std::min(a.group, a.depth - k)));
        const uint32_t bits = std::bit_cast<uint32_t>(short_scale(a.scales[at]));
        to.scale = bits | (a.bits == 4 ? a.zeros[at] : 0u);
    });
}

inline void embedding_quantised(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const EmbeddingQuantised*>(args);
    const int64_t groups = groups_of(a.dim, a.group), bytes = block_bytes(a.bits, a.group);
    each_row(team, step.rows, a.dim, [&](int64_t row) {
        const int64_t id = a.ids[row] - a.first;
        bf16* out = a.out + row * a.dim;
        if (id < 0 || id >= a.size) {
            std::memset(out, 0, static_cast<std::size_t>(a.dim) * sizeof(bf16));
            return;
        }
        const uint8_t* blocks = a.table + id / kBlockColumns * groups * bytes + id % kBlockColumns * kWordBytes;
        alignas(64) float part[kMaxGroup];
        for (int64_t g = 0; g < groups; ++g, blocks += bytes) {
            const uint32_t word = get_word(blocks);
            const float zero = a.bits == 4 ? static_cast<float>(word & 15) : 128.0f;
            const float scale = std::bit_cast<float>(word & static_cast<uint32_t>(kScaleMask));
            const uint8_t* from = blocks + kRowOfWords;
            for (int64_t k = 0; k < a.group; k += 32 / a.bits, from += kRowOfWords)
                for (int64_t i = 0; i < 32 / a.bits; ++i) {
                    const int64_t shift = a.bits == 8 ? 8 * i : 4 * nibble_of(static_cast<int>(i));
                    const uint32_t q = get_word(from) >> shift & ((1u << a.bits) - 1);
                    part[k + i] = scale * (static_cast<float>(q) - zero);
                }
            const int64_t count = std::min(a.group, a.dim - g * a.group);
            each_lanes(count, [&](int64_t i, int lanes) { store_bf16(out + g * a.group + i, load(part + i), lanes); });
        }
    });
}

}  // namespace rayline::RL_ISA::quant
