// One step of online softmax (Milakov and Gimelshein 2018; Dao 2023): some rows over one tile of 64 keys.
//
// A row is a query head of a token. Rows that share a KV head share each load. The arithmetic of a row follows from the
// positions of its keys alone: tiles start at multiples of 64, every product is one chain of fma along its depth, and a
// masked key adds an exact zero. So neither the rows beside it nor the number of registers change its bits.
#pragma once
#include <algorithm>

#include "abi.h"
#include "attention_cache.h"

namespace rayline::RL_ISA {

constexpr int kTilePieces = 4;
constexpr int kTileKeys = kTilePieces * kPieceTokens;
constexpr int kGroupRows = kLaneRegisters >= 32 ? 8 : 2;
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

// Some rows of a work item and what they see.
struct Group {
    const float* q;       // [rows, dim], times the scale
    const int64_t* from;  // [rows] first position that the row sees
    const int64_t* to;    // [rows] end of them
    Sums sums;
    float* p;  // [rows, kTileKeys]
};

// acc[i][j] += sum over k of a[i][k] b[j][k]; b holds pairs along k, `stride` elements apart.
// Prefetch asks for what lies at the same places of `ahead`.
template <int Rows, int Columns, bool Prefetch>
inline void multiply_add(const float* a, int64_t a_stride, const bf16* const (&b)[Columns],
                         const bf16* const (&ahead)[Columns], int64_t stride, int64_t depth,
                         Lanes (&acc)[Rows][Columns]) {
    const int64_t pairs = depth / 2;
    for (int64_t k = 0; k < pairs; ++k) {
        Lanes even[Columns], odd[Columns];
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) {
            load_pairs(b[j] + k * stride, even[j], odd[j]);
            if constexpr (Prefetch) prefetch(ahead[j] + k * stride);
        }
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) {
            const Lanes first = splat(a[i * a_stride + 2 * k]), second = splat(a[i * a_stride + 2 * k + 1]);
#pragma GCC unroll 4
            for (int j = 0; j < Columns; ++j) acc[i][j] = fma(second, odd[j], fma(first, even[j], acc[i][j]));
        }
    }
    if (depth % 2 == 0) return;
    for (int j = 0; j < Columns; ++j) {
        Lanes even, odd;
        load_pairs(b[j] + pairs * stride, even, odd);
        for (int i = 0; i < Rows; ++i) acc[i][j] = fma(splat(a[i * a_stride + depth - 1]), even, acc[i][j]);
    }
}

// Calls body<Columns>(first) for the columns [from, to), as many at a time as the registers hold beside `Rows` rows.
template <int Rows, class Body>
inline void each_columns(int64_t from, int64_t to, Body&& body) {
    constexpr int kMost = kLaneRegisters >= 32 && Rows <= 4 ? 4 : 2;
    for (; from + kMost <= to; from += kMost) body.template operator()<kMost>(from);
    if (kMost > 2 && from + 2 <= to) body.template operator()<2>(from), from += 2;
    if (from < to) body.template operator()<1>(from);
}

// Scores of the pieces [piece, end) of a tile.
template <int Rows, bool Prefetch>
void score(const Group& group, const Tile& tile, const Tile& ahead, int64_t dim, int64_t piece, int64_t end) {
    each_columns<Rows>(piece, end, [&]<int Columns>(int64_t at) {
        Lanes acc[Rows][Columns];
        const bf16* keys[Columns];
        const bf16* next[Columns];
        for (int j = 0; j < Columns; ++j) keys[j] = tile.keys[at + j], next[j] = ahead.keys[at + j];
        for (auto& row : acc)
            for (auto& lanes : row) lanes = splat(0.0f);
        multiply_add<Rows, Columns, Prefetch>(group.q, dim, keys, next, 2 * kPieceTokens, dim, acc);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j) store(group.p + i * kTileKeys + (at + j) * kPieceTokens, acc[i][j]);
    });
}

// cap tanh(score / cap) (Gemma 2).
inline Lanes capped(Lanes score, float cap) {
    const Lanes one = splat(1.0f), grown = exp(score * splat(2.0f / cap));
    return splat(cap) * (one - splat(2.0f) / (grown + one));
}

// From scores to exp(score - top) for one row; returns exp(old top - top), by which its sums shrink.
inline float weigh(const Group& group, int row, int64_t tile_first, float soft_cap, int64_t piece, int64_t end) {
    const Lanes hidden = splat(-__builtin_inff());
    float* p = group.p + row * kTileKeys;
    Lanes scores[kTilePieces];
    Lanes best = hidden;
    for (int64_t j = piece; j < end; ++j) {
        const int64_t first = tile_first + j * kPieceTokens;
        Lanes s = load(p + j * kPieceTokens);
        if (soft_cap != 0.0f) s = capped(s, soft_cap);
        const int64_t seen = group.to[row] - first, skipped = group.from[row] - first;
        if (seen < kPieceTokens) s = select_first(static_cast<int>(std::max<int64_t>(0, seen)), s, hidden);
        if (skipped > 0) s = select_first(static_cast<int>(std::min<int64_t>(kPieceTokens, skipped)), hidden, s);
        scores[j] = s;
        best = max(best, s);
    }
    const float old_top = group.sums.top[row], top = std::max(old_top, largest(best));
    float shrink = 1.0f;
    if (top != old_top) {
        alignas(64) float part[kLanes];
        store(part, exp(splat(old_top - top)));
        shrink = part[0];
    }
    Lanes total = splat(0.0f);
    for (int64_t j = piece; j < end; ++j) {
        const Lanes weight = exp(scores[j] - splat(top));
        store(p + j * kPieceTokens, weight);
        total = total + weight;
    }
    float* weights = group.sums.weights + row * kLanes;
    store(weights, fma(load(weights), splat(shrink), total));
    group.sums.top[row] = top;
    return shrink;
}

// values = values * shrink + p V over the pieces [piece, end), of whose tokens `keys` count.
template <int Rows, bool Prefetch>
void add_values(const Group& group, const Tile& tile, const Tile& ahead, int64_t dim, const float (&shrink)[Rows],
                int64_t piece, int64_t end, int64_t keys) {
    each_columns<Rows>(0, dim / kLanes, [&]<int Columns>(int64_t at) {
        Lanes acc[Rows][Columns];
        float* sums = group.sums.values + at * kLanes;
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j) acc[i][j] = load(sums + i * dim + j * kLanes) * splat(shrink[i]);
        for (int64_t k = piece; k < end; ++k) {
            const bf16* values[Columns];
            const bf16* next[Columns];
            for (int j = 0; j < Columns; ++j) {
                values[j] = tile.values[k] + (at + j) * 2 * kLanes;
                next[j] = ahead.values[k] + (at + j) * 2 * kLanes;
            }
            const int64_t depth = std::min<int64_t>(kPieceTokens, keys - k * kPieceTokens);
            const float* p = group.p + k * kPieceTokens;
            multiply_add<Rows, Columns, Prefetch>(p, kTileKeys, values, next, 2 * dim, depth, acc);
        }
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j) store(sums + i * dim + j * kLanes, acc[i][j]);
    });
}

template <int Rows, bool Prefetch>
void attend_rows(const Group& group, const Tile& tile, const Tile& ahead, int64_t dim, float soft_cap) {
    int64_t from = group.from[0], to = group.to[0];
    for (int i = 1; i < Rows; ++i) from = std::min(from, group.from[i]), to = std::max(to, group.to[i]);
    const int64_t first = std::max<int64_t>(0, from - tile.first), keys = std::min<int64_t>(kTileKeys, to - tile.first);
    if (first >= keys) return;
    const int64_t piece = first / kPieceTokens, end = (keys + kPieceTokens - 1) / kPieceTokens;
    score<Rows, Prefetch>(group, tile, ahead, dim, piece, end);
    float shrink[Rows];
    for (int i = 0; i < Rows; ++i) shrink[i] = weigh(group, i, tile.first, soft_cap, piece, end);
    add_values<Rows, Prefetch>(group, tile, ahead, dim, shrink, piece, end, keys);
}

template <bool Prefetch, int Rows = kGroupRows>
void attend_tile(int64_t rows, const Group& group, const Tile& tile, const Tile& ahead, int64_t dim, float soft_cap) {
    if (rows == Rows) attend_rows<Rows, Prefetch>(group, tile, ahead, dim, soft_cap);
    else if constexpr (Rows > 1) attend_tile<Prefetch, Rows - 1>(rows, group, tile, ahead, dim, soft_cap);
}

}  // namespace rayline::RL_ISA
