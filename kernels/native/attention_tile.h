// One step of online softmax (Milakov and Gimelshein 2018; Dao 2023): some rows over one tile of 64 keys.
//
// A row is a query head of a token. Rows that share a KV head share each load. The arithmetic of a row follows from the
// positions of its keys alone: tiles start at multiples of 64, every product is one chain of fma along its depth, and a
// masked key adds an exact zero. So neither the rows beside it nor the number of registers change its bits.
#pragma once
#include <algorithm>

#include "abi.h"
#include "attention_cache.h"
#include "functions.h"

namespace rayline::RL_ISA {

constexpr int kTilePieces = 4;
constexpr int kTileKeys = kTilePieces * kPieceTokens;
constexpr int kGroupRows = kLaneRegisters >= 32 ? 12 : 2;
constexpr int kWideRows = 5;        // rows that leave room for four columns
constexpr float kNoScore = -3e38f;  // the top of no scores: finite, so that no difference is NaN

// Softmax sums of some rows.
struct Sums {
    float* top;      // [rows] largest score
    float* weights;  // [rows, kLanes] exp(score - top), summed by lane
    float* values;   // [rows, dim] exp(score - top) * value, summed
};

// Where the keys and values of 64 positions lie, from `first` on. Pieces that nobody sees point anywhere.
struct Tile {
    int64_t first;
    const bf16* keys[kTilePieces];
    const bf16* values[kTilePieces];
};

// Asks for the cache lines of four pieces in turn. Memory serves several such streams faster than one.
struct Ahead {
    const bf16* const* pieces;
    int64_t lines = 0;  // asked for so far

    template <int Lines>
    void ask() {
        constexpr int64_t kLineElements = 64 / sizeof(bf16);
        for (int64_t j = lines; j < lines + Lines; ++j)
            prefetch_far(pieces[j % kTilePieces] + j / kTilePieces * kLineElements);
        lines += Lines;
    }
};

// Some rows of a work item and what they see.
struct Group {
    const float* q;       // [dim, rows], times the scale
    const int64_t* from;  // [rows] first position that the row sees
    const int64_t* to;    // [rows] end of them
    Sums sums;
    float* p;  // [rows, kTileKeys]
};

// acc[i][j] += a[i] b[j] for one half of a pair of `b`: the even numbers or the odd ones.
template <bool IsOdd, int64_t RowStride, int Rows, int Columns>
inline void multiply_half(const float* a, const bf16* const (&b)[Columns], int64_t at, Lanes (&acc)[Rows][Columns]) {
    Lanes wide[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
        Lanes even, odd;
        load_pairs(b[j] + at, even, odd);
        wide[j] = IsOdd ? odd : even;
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
        const Lanes x = splat(a[i * RowStride]);
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) acc[i][j] = fma(x, wide[j], acc[i][j]);
    }
}

// acc[i][j] += sum over k of a[i, k] b[j][k]; b holds pairs along k, `stride` elements apart. Asks for a line of what
// comes next with each line that it reads.
template <int64_t RowStride, int64_t DepthStride, bool Prefetch, int Rows, int Columns>
inline void multiply_add(const float* a, const bf16* const (&b)[Columns], Ahead& next, int64_t stride, int64_t depth, Lanes (&acc)[Rows][Columns]) {
    int64_t at = 0;
    for (int64_t left = depth; left >= 2; left -= 2, at += stride, a += 2 * DepthStride) {
        if constexpr (Prefetch)
            next.template ask<Columns>();
        multiply_half<false, RowStride>(a, b, at, acc);
        multiply_half<true, RowStride>(a + DepthStride, b, at, acc);
    }
    if (depth % 2 != 0) multiply_half<false, RowStride>(a, b, at, acc);
}

// Calls body<Columns>(first) for the columns [from, to), as many at a time as the registers hold beside `Rows` rows.
template <int Rows, class Body>
inline void each_columns(int64_t from, int64_t to, Body&& body) {
    constexpr int kMost = kLaneRegisters >= 32 && Rows <= kWideRows ? 4 : 2;
    for (; from + kMost <= to; from += kMost) body.template operator()<kMost>(from);
    if (kMost > 2 && from + 2 <= to) body.template operator()<2>(from), from += 2;
    if (from < to) body.template operator()<1>(from);
}

// Scores of the pieces [piece, piece + Columns) of a tile. Not inlined, so that all registers are its own.
template <int Rows, int Columns, bool Prefetch>
[[gnu::noinline]] void score(const Group& group, const Tile& tile, Ahead& ahead, int64_t dim, int64_t piece) {
    Lanes acc[Rows][Columns];
    const bf16* keys[Columns];
    for (int j = 0; j < Columns; ++j) keys[j] = tile.keys[piece + j];
    Ahead next = ahead;
    for (auto& row : acc)
        for (auto& lanes : row) lanes = splat(0.0f);
    multiply_add<1, Rows, Prefetch>(group.q, keys, next, 2 * kPieceTokens, dim, acc);
    ahead = next;
    float* p = group.p + piece * kPieceTokens;
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Columns; ++j) store(p + i * kTileKeys + j * kPieceTokens, acc[i][j]);
}

// values = values * shrink + p V over the pieces [piece, end), of whose tokens the tile's first `keys` count.
template <int Rows, int Columns, bool Prefetch>
[[gnu::noinline]] void add_values(const Group& group, const Tile& tile, Ahead& ahead, int64_t dim,
                                  const float* shrink, int64_t piece, int64_t end, int64_t keys, int64_t column) {
    Lanes acc[Rows][Columns];
    Ahead next = ahead;
    float* sums = group.sums.values + column * kLanes;
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Columns; ++j) acc[i][j] = load(sums + i * dim + j * kLanes) * splat(shrink[i]);
    for (int64_t k = piece; k < end; ++k) {
        const bf16* values[Columns];
        for (int j = 0; j < Columns; ++j) {
            values[j] = tile.values[k] + (column + j) * 2 * kLanes;
        }
        const int64_t depth = std::min<int64_t>(kPieceTokens, keys - k * kPieceTokens);
        multiply_add<kTileKeys, 1, Prefetch>(group.p + k * kPieceTokens, values, next, 2 * dim, depth, acc);
    }
    ahead = next;
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Columns; ++j) store(sums + i * dim + j * kLanes, acc[i][j]);
}

// cap tanh(score / cap) (Gemma 2).
inline Lanes capped(Lanes score, float cap) {
    const Lanes one = splat(1.0f), grown = exp(score * splat(2.0f / cap));
    return splat(cap) * (one - splat(2.0f) / (grown + one));
}

// The scores of one row as softmax takes them: capped, -inf where the row does not see. Returns the largest.
inline float finish_scores(const Group& group, int row, int64_t tile_first, float soft_cap, int64_t piece, int64_t end) {
    const Lanes hidden = splat(-__builtin_inff());
    const int64_t seen = group.to[row] - tile_first, skipped = group.from[row] - tile_first;
    float* p = group.p + row * kTileKeys;
    Lanes best = hidden;
    for (int64_t j = piece; j < end; ++j) {
        Lanes s = load(p + j * kPieceTokens);
        if (soft_cap != 0.0f) s = capped(s, soft_cap);
        const int64_t first = j * kPieceTokens;
        if (seen < first + kPieceTokens) s = select_first(static_cast<int>(std::max<int64_t>(0, seen - first)), s, hidden);
        if (skipped > first)
            s = select_first(static_cast<int>(std::min<int64_t>(kPieceTokens, skipped - first)), hidden, s);
        store(p + first, s);
        best = max(best, s);
    }
    return largest(best);
}

// From scores to exp(score - top) in p, and their sums; shrink[i] = exp(old top - top), by which older sums shrink.
template <int Rows>
[[gnu::noinline]] void weigh(const Group& group, int64_t tile_first, float soft_cap, int64_t piece, int64_t end,
                             float* shrink) {
    alignas(64) float old_top[kLanes] = {}, top[kLanes] = {};
    for (int i = 0; i < Rows; ++i) {
        old_top[i] = group.sums.top[i];
        top[i] = std::max(old_top[i], finish_scores(group, i, tile_first, soft_cap, piece, end));
        group.sums.top[i] = top[i];
    }
    store(shrink, exp(load(old_top) - load(top)));
    for (int i = 0; i < Rows; ++i) {
        float* p = group.p + i * kTileKeys;
        float* weights = group.sums.weights + i * kLanes;
        Lanes total = splat(0.0f);
        for (int64_t j = piece; j < end; ++j) {
            const Lanes weight = exp(load(p + j * kPieceTokens) - splat(top[i]));
            store(p + j * kPieceTokens, weight);
            total = total + weight;
        }
        store(weights, fma(load(weights), splat(shrink[i]), total));
    }
}

template <int Rows, bool Prefetch>
void attend_rows(const Group& group, const Tile& tile, const Tile& next, int64_t dim, float soft_cap) {
    int64_t from = group.from[0], to = group.to[0];
    for (int i = 1; i < Rows; ++i) from = std::min(from, group.from[i]), to = std::max(to, group.to[i]);
    const int64_t first = std::max<int64_t>(0, from - tile.first), keys = std::min<int64_t>(kTileKeys, to - tile.first);
    if (first >= keys) return;
    const int64_t piece = first / kPieceTokens, end = (keys + kPieceTokens - 1) / kPieceTokens;
    Ahead keys_ahead{next.keys}, values_ahead{next.values};
    each_columns<Rows>(piece, end, [&]<int Columns>(int64_t at) {
        score<Rows, Columns, Prefetch>(group, tile, keys_ahead, dim, at);
    });
    alignas(64) float shrink[kLanes];
    weigh<Rows>(group, tile.first, soft_cap, piece, end, shrink);
    each_columns<Rows>(0, dim / kLanes, [&]<int Columns>(int64_t at) {
        add_values<Rows, Columns, Prefetch>(group, tile, values_ahead, dim, shrink, piece, end, keys, at);
    });
}

template <bool Prefetch, int Rows = kGroupRows>
void attend_tile(int64_t rows, const Group& group, const Tile& tile, const Tile& next, int64_t dim, float soft_cap) {
    if (rows == Rows) attend_rows<Rows, Prefetch>(group, tile, next, dim, soft_cap);
    else if constexpr (Rows > 1) attend_tile<Prefetch, Rows - 1>(rows, group, tile, next, dim, soft_cap);
}

}  // namespace rayline::RL_ISA
