// From the fused projection to the cache: norm of each head (Qwen3), rotary embedding (Su et al. 2021) in the
// half-split layout, keys and values into their blocks.
#pragma once
#include <algorithm>
#include <cstring>

#include "abi.h"
#include "attention_cache.h"
#include "elementwise.h"
#include "team.h"

namespace rayline::RL_ISA {

inline Lanes load_first(const float* p, int count) {
    if (count == kLanes) return load(p);
    alignas(64) float part[kLanes] = {};
    for (int i = 0; i < count; ++i) part[i] = p[i];
    return load(part);
}

// Turns each pair (x[i], x[i + half]) by its angle. `out` may be x.
inline void rotate(const bf16* x, const float* cos, const float* sin, bf16* out, int64_t half) {
    each_lanes(half, [&](int64_t i, int count) {
        const Lanes first = load_bf16(x + i, count), second = load_bf16(x + half + i, count);
        const Lanes c = load_first(cos + i, count), s = load_first(sin + i, count);
        store_bf16(out + i, first * c - second * s, count);
        store_bf16(out + half + i, second * c + first * s, count);
    });
}

// One token's key into its column of a tile. Neighbour tokens may be written by other threads at the same time.
inline void put_key(const bf16* key, bf16* tile, int64_t token, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 2) std::memcpy(tile + d * kPieceTokens + 2 * token, key + d, 2 * sizeof(bf16));
}

inline void put_value(const bf16* value, bf16* tile, int64_t token, int64_t dim) {
    bf16* to = tile + token / 2 * 2 * dim + token % 2;
    for (int64_t d = 0; d < dim; ++d) to[2 * d] = value[d];
}

inline void write_kv_row(const WriteKv& a, const Step& step, int64_t row, bf16* key) {
    const PagedLayer layer{a.kv_heads, a.head_dim, a.block_tokens};
    const int64_t dim = a.head_dim, half = dim / 2, position = step.positions[row];
    const float* cos = a.cos + position * half;
    const float* sin = a.sin + position * half;
    const bf16* from = a.qkv + row * (a.heads + 2 * a.kv_heads) * dim;
    auto turn = [&](const bf16* weight, bf16* out) {
        if (weight != nullptr) normalise(from, weight, out, dim, static_cast<float>(a.eps));
        rotate(weight != nullptr ? out : from, cos, sin, out, half);
        from += dim;
    };
    for (int64_t head = 0; head < a.heads; ++head) turn(a.q_norm, a.q + (row * a.heads + head) * dim);
    const int64_t block = step.slots[row] / a.block_tokens, place = step.slots[row] % a.block_tokens;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
        turn(a.k_norm, key);
        put_key(key, a.keys + layer.piece(block, head, place), place % kPieceTokens, dim);
    }
    for (int64_t head = 0; head < a.kv_heads; ++head, from += dim)
        put_value(from, a.values + layer.piece(block, head, place), place % kPieceTokens, dim);
}

inline void write_kv(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const WriteKv*>(args);
    // Tokens of a prompt share the cache lines of a tile: few large chunks, but enough for all threads.
    const int64_t chunk_rows = std::max<int64_t>(1, std::min<int64_t>(step.rows / (4 * team.size()), 2 * kPieceTokens));
    team.each((step.rows + chunk_rows - 1) / chunk_rows, [&](int64_t chunk, int thread) {
        const auto bytes = static_cast<std::size_t>(a.head_dim) * sizeof(bf16);
        bf16* key = reinterpret_cast<bf16*>(team.scratch(thread, bytes));
        const int64_t last = std::min(step.rows, (chunk + 1) * chunk_rows);
        for (int64_t row = chunk * chunk_rows; row < last; ++row) write_kv_row(a, step, row, key);
    });
}

}  // namespace rayline::RL_ISA
