// The rows of one work item: the query heads of one KV head for some tokens of a sequence.
//
// Keys are cut into parts at multiples of 512 positions; each part is summed by online softmax in tiles of its own, and
// the parts are joined in ascending order, always. So several threads may share a long sequence without a change of bits.
#pragma once
#include <algorithm>
#include <cstddef>

#include "abi.h"
#include "attention_cache.h"
#include "attention_tile.h"

namespace rayline::RL_ISA {

constexpr int64_t kPartKeys = 512;
constexpr int64_t kItemFloats = 8192;  // of the queries of a work item: they stay in the first caches

// Cuts arrays out of a piece of memory. Without memory it tells how much there must be.
struct Carver {
    std::byte* memory;
    std::size_t used = 0;

    template <class T>
    T* take(int64_t count) {
        T* mine = reinterpret_cast<T*>(memory + used);
        used += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return mine;
    }
};

inline Sums take_sums(Carver& carver, int64_t rows, int64_t dim) {
    return {carver.take<float>(rows), carver.take<float>(rows * kLanes), carver.take<float>(rows * dim)};
}

// What one thread needs for the rows of an item.
struct Workspace {
    float* q;
    int64_t* from;
    int64_t* to;
    float* p;
    Sums part, whole;

    Workspace(Carver& carver, int64_t rows, int64_t dim)
        : q(carver.take<float>(rows * dim)), from(carver.take<int64_t>(rows)), to(carver.take<int64_t>(rows)),
          p(carver.take<float>(kGroupRows * kTileKeys)), part(take_sums(carver, rows, dim)),
          whole(take_sums(carver, rows, dim)) {}
};

// Tokens [first, first + tokens) of the step, all of one sequence, with the query heads of one KV head. The thread goes
// on with the heads before `end_kv_head`.
struct Item {
    int64_t sequence, kv_head, end_kv_head, first, tokens;
};

inline void clear(const Sums& sums, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; ++i) sums.top[i] = kNoScore;
    for (int64_t i = 0; i < rows * kLanes; i += kLanes) store(sums.weights + i, splat(0.0f));
    for (int64_t i = 0; i < rows * dim; i += kLanes) store(sums.values + i, splat(0.0f));
}

// Adds the sums of later keys.
inline void join(const Sums& into, const Sums& part, int64_t rows, int64_t dim) {
    for (int64_t first = 0; first < rows; first += kLanes) {  // what lies behind the last row is never used
        const Lanes old_top = load(into.top + first), other_top = load(part.top + first);
        const Lanes top = max(old_top, other_top);
        alignas(64) float a[kLanes], b[kLanes];
        store(a, exp(old_top - top));
        store(b, exp(other_top - top));
        store(into.top + first, top);
        for (int64_t row = first; row < std::min(rows, first + kLanes); ++row) {
            const Lanes mine = splat(a[row - first]), others = splat(b[row - first]);
            auto add = [&](float* x, const float* y) { store(x, fma(load(y), others, load(x) * mine)); };
            add(into.weights + row * kLanes, part.weights + row * kLanes);
            for (int64_t d = row * dim; d < (row + 1) * dim; d += kLanes) add(into.values + d, part.values + d);
        }
    }
}

// One layer's attention in one step.
struct Attention {
    const Attend& a;
    const Step& step;
    PagedLayer layer;
    int64_t ratio;        // query heads of a KV head
    int64_t item_tokens;  // most tokens of an item

    Attention(const Attend& attend, const Step& at)
        : a(attend), step(at), layer{a.kv_heads, a.head_dim, a.block_tokens}, ratio(a.heads / a.kv_heads),
          item_tokens(std::max<int64_t>(1, kItemFloats / (a.head_dim * ratio))) {}

    int64_t item_rows() const { return item_tokens * ratio; }
    int64_t rows_of(int64_t tokens) const { return std::min(tokens, item_tokens) * ratio; }
    int64_t partial_bytes(int64_t tokens) const {
        Carver carver{nullptr};
        take_sums(carver, rows_of(tokens), a.head_dim);
        return static_cast<int64_t>(carver.used);
    }
    int64_t oldest_seen(int64_t position) const {
        return a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
    }
    int64_t first_part(int64_t token) const { return oldest_seen(step.positions[token]) / kPartKeys; }
    int64_t end_part(const Item& item) const { return step.positions[item.first + item.tokens - 1] / kPartKeys + 1; }

    const bf16* row(const bf16* of, const Item& item, int64_t i) const {
        return of + ((item.first + i / ratio) * a.heads + item.kv_head * ratio + i % ratio) * a.head_dim;
    }

    void load_rows(const Item& item, const Workspace& work) const {
        const Lanes scale = splat(static_cast<float>(a.scale));
        const int64_t count = item.tokens * ratio;
        // Tokens lie far apart: ask for all their lines at once.
        for (int64_t i = 0; i < count; ++i)
            for (int64_t d = 0; d < a.head_dim; d += 2 * kLanes) prefetch(row(a.q, item, i) + d);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t position = step.positions[item.first + i / ratio];
            work.from[i] = oldest_seen(position);
            work.to[i] = std::min(position + 1, step.lens[item.sequence]);
            const bf16* q = row(a.q, item, i);
            // [dim, rows] within each group of rows
            const int64_t group = i / kGroupRows * kGroupRows, rows = std::min<int64_t>(kGroupRows, count - group);
            float* to = work.q + group * a.head_dim + i - group;
            for (int64_t d = 0; d < a.head_dim; d += kLanes) {
                alignas(64) float part[kLanes];
                store(part, load_bf16(q + d) * scale);
                for (int64_t j = 0; j < kLanes; ++j) to[(d + j) * rows] = part[j];
            }
        }
    }

    // The tile that starts at `first`, as far as it lies before `end`.
    void find_tile(const Item& item, int64_t kv_head, int64_t first, int64_t end, Tile& tile) const {
        const int32_t* table = step.tables + item.sequence * step.table_width;
        tile.first = first;
        for (int64_t j = 0; j < kTilePieces && first + j * kPieceTokens < end; ++j) {
            const int64_t at = first + j * kPieceTokens;
            const int64_t offset = layer.piece(table[at / a.block_tokens], kv_head, at % a.block_tokens);
            tile.keys[j] = a.keys + offset;
            tile.values[j] = a.values + offset;
        }
    }

    // Sums of an item's rows over one part of their keys.
    void sum_part(const Item& item, const Workspace& work, int64_t part, const Sums& sums) const {
        const int64_t rows = item.tokens * ratio, dim = a.head_dim;
        clear(sums, rows, dim);
        const int64_t from = std::max(part * kPartKeys, work.from[0] / kTileKeys * kTileKeys);
        const int64_t seen = work.to[rows - 1], end = std::min((part + 1) * kPartKeys, seen);
        if (from >= end) return;
        Tile tile, ahead;
        find_tile(item, item.kv_head, from, seen, ahead);
        for (int64_t j = 0; j < kTilePieces; ++j)
            if (from + j * kPieceTokens >= seen) ahead.keys[j] = ahead.keys[0], ahead.values[j] = ahead.values[0];
        for (int64_t first = from; first < end; first += kTileKeys) {
            tile = ahead;
            tile.first = first;
            if (first + kTileKeys < seen) find_tile(item, item.kv_head, first + kTileKeys, seen, ahead);
            else if (item.kv_head + 1 < item.end_kv_head)
                find_tile(item, item.kv_head + 1, work.from[0] / kTileKeys * kTileKeys, seen, ahead);
            for (int64_t i = 0; i < rows; i += kGroupRows) {
                const Sums mine{sums.top + i, sums.weights + i * kLanes, sums.values + i * dim};
                const Group group{work.q + i * dim, work.from + i, work.to + i, mine, work.p};
                const int64_t count = std::min<int64_t>(kGroupRows, rows - i);
                const float soft_cap = static_cast<float>(a.soft_cap);
                if (i == 0) attend_tile<true>(count, group, tile, ahead, dim, soft_cap);
                else attend_tile<false>(count, group, tile, ahead, dim, soft_cap);
            }
        }
    }

    // The sums before any key: nothing, or a sink's weight.
    void begin(const Item& item, const Sums& whole) const {
        clear(whole, item.tokens * ratio, a.head_dim);
        if (a.sinks == nullptr) return;
        for (int64_t i = 0; i < item.tokens * ratio; ++i) {
            whole.top[i] = a.sinks[item.kv_head * ratio + i % ratio];
            whole.weights[i * kLanes] = 1.0f;
        }
    }

    void finish(const Item& item, const Sums& whole) const {
        for (int64_t i = 0; i < item.tokens * ratio; ++i) {
            const Lanes inverse = splat(1.0f / sum(load(whole.weights + i * kLanes)));
            bf16* out = const_cast<bf16*>(row(a.out, item, i));
            // + 0 makes one zero of two: a masked key may have left either.
            for (int64_t d = 0; d < a.head_dim; d += kLanes)
                store_bf16(out + d, load(whole.values + i * a.head_dim + d) * inverse + splat(0.0f));
        }
    }
};

}  // namespace rayline::RL_ISA
