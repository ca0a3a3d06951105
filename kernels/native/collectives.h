// What the ranks of one stage compute together, through an Exchange. Every rank gets the same bits.
//
// Tensors larger than an area go through in pieces, each at its place in the row-major order. A small piece is read
// whole by every rank (one round); of a large one each rank sums its slice and shows it to the others (two rounds).
#pragma once
#include <algorithm>
#include <cstring>

#include "abi.h"
#include "exchange.h"
#include "team.h"

namespace rayline::RL_ISA {

// Elements [first, last) of a tensor in row-major order.
struct Span {
    int64_t first, last;
    int64_t size() const { return last - first; }
};

constexpr int64_t kGrain = 1 << 14;  // elements a thread takes at once

// Calls body(Span) for parts of `whole` on all threads.
template <class Body>
void each_part(Team& team, Span whole, Body&& body) {
    team.each((whole.size() + kGrain - 1) / kGrain, [&](int64_t chunk, int) {
        const int64_t first = whole.first + chunk * kGrain;
        body(Span{first, std::min(whole.last, first + kGrain)});
    });
}

template <class T>
void copy_part(Team& team, T* to, const T* from, int64_t elements) {
    each_part(team, {0, elements}, [&](Span part) {
        std::memcpy(to + part.first, from + part.first, static_cast<std::size_t>(part.size()) * sizeof(T));
    });
}

// Calls body(Span) for pieces of at most `most` elements.
template <class Body>
void each_piece(int64_t elements, int64_t most, Body&& body) {
    for (int64_t first = 0; first < elements; first += most) body(Span{first, std::min(elements, first + most)});
}

// Calls body(Span, row, column) for the part of each row of [rows, dim] that lies in `span`.
template <class Body>
void each_row_of(Span span, int64_t dim, Body&& body) {
    for (int64_t at = span.first; at < span.last;) {
        const int64_t row = at / dim, column = at % dim;
        const int64_t last = std::min(span.last, at + dim - column);
        body(Span{at, last}, row, column);
        at = last;
    }
}

inline Lanes load_some(const float* p, int count) {
    if (count == kLanes) return load(p);
    alignas(64) float some[kLanes] = {};
    std::memcpy(some, p, static_cast<std::size_t>(count) * sizeof(float));
    return load(some);
}

// The sum of parts[0..ranks) at i as a binary tree of neighbours; the last of an odd level goes up as it is.
inline Lanes joined(const float* const* parts, int ranks, int64_t i, int count) {
    if (ranks == 2) return load_some(parts[0] + i, count) + load_some(parts[1] + i, count);
    Lanes level[kMaxRanks];
    for (int rank = 0; rank < ranks; ++rank) level[rank] = load_some(parts[rank] + i, count);
    for (int left = ranks; left > 1; left = (left + 1) / 2) {
        for (int pair = 0; pair < left / 2; ++pair) level[pair] = level[2 * pair] + level[2 * pair + 1];
        if (left & 1) level[left / 2] = level[left - 1];
    }
    return level[0];
}

// out of `span`, of which parts[rank] are the ranks' summands: all pointers are of the tensor's element 0.
inline void sum_span(const SumPartials& a, const float* const* parts, int ranks, Span span) {
    each_row_of(span, a.dim, [&](Span row, int64_t, int64_t column) {
        for (int64_t i = row.first; i < row.last; i += kLanes) {
            const int count = static_cast<int>(std::min<int64_t>(kLanes, row.last - i));
            Lanes y = joined(parts, ranks, i, count);
            if (a.bias != nullptr) y = y + load_bf16(a.bias + column + i - row.first, count);
            if (count == kLanes) store_bf16(a.out + i, y);
            else store_bf16(a.out + i, y, count);
        }
    });
}

// The slice of `piece` that a rank sums, on a border of lanes.
inline Span slice_of(Span piece, int ranks, int rank) {
    const int64_t each = (piece.size() / ranks + kLanes - 1) / kLanes * kLanes;
    return {std::min(piece.last, piece.first + rank * each),
            rank == ranks - 1 ? piece.last : std::min(piece.last, piece.first + (rank + 1) * each)};
}

struct Summands {
    const float* of[kMaxRanks];
};

// Where the ranks' partials of `piece` are: this rank's own where it was computed, the others' in their areas.
inline Summands summands(Exchange& exchange, const SumPartials& a, Span piece) {
    Summands parts;
    for (int rank = 0; rank < exchange.ranks(); ++rank)
        parts.of[rank] = rank == exchange.rank()
                             ? a.partial
                             : reinterpret_cast<const float*>(exchange.of(rank)) - piece.first;
    return parts;
}

inline void sum_whole(Team& team, const SumPartials& a, Span piece) {
    Exchange& exchange = *a.exchange;
    copy_part(team, reinterpret_cast<float*>(exchange.mine()), a.partial + piece.first, piece.size());
    exchange.meet();
    const Summands parts = summands(exchange, a, piece);
    each_part(team, piece, [&](Span part) { sum_span(a, parts.of, exchange.ranks(), part); });
}

inline void sum_slices(Team& team, const SumPartials& a, Span piece) {
    Exchange& exchange = *a.exchange;
    const int ranks = exchange.ranks();
    const auto each_other = [&](auto&& body) {
        for (int hop = 1; hop < ranks; ++hop) {  // each begins with its neighbour: no two read one area at a time
            const int rank = (exchange.rank() + hop) % ranks;
            body(rank, slice_of(piece, ranks, rank));
        }
    };
    auto* shown = reinterpret_cast<float*>(exchange.mine());
    each_other([&](int, Span slice) {
        copy_part(team, shown + slice.first - piece.first, a.partial + slice.first, slice.size());
    });
    exchange.meet();
    const Summands parts = summands(exchange, a, piece);
    const Span own = slice_of(piece, ranks, exchange.rank());
    auto* total = reinterpret_cast<bf16*>(exchange.mine());
    each_part(team, own, [&](Span part) {
        sum_span(a, parts.of, ranks, part);
        std::memcpy(total + part.first - own.first, a.out + part.first,
                    static_cast<std::size_t>(part.size()) * sizeof(bf16));
    });
    exchange.meet();
    each_other([&](int rank, Span slice) {
        copy_part(team, a.out + slice.first, reinterpret_cast<const bf16*>(exchange.of(rank)), slice.size());
    });
}

inline void sum_partials(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const SumPartials*>(args);
    constexpr int64_t kMost = static_cast<int64_t>(Exchange::kAreaBytes / sizeof(float));
    constexpr int64_t kSmall = 1 << 14;  // below, a second round costs more than it saves
    each_piece(step.rows * a.dim, kMost, [&](Span piece) {
        if (piece.size() <= kSmall) sum_whole(team, a, piece);
        else sum_slices(team, a, piece);
    });
}

inline void gather_columns(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const GatherColumns*>(args);
    Exchange& exchange = *a.exchange;
    const int64_t width = exchange.ranks() * a.columns;
    constexpr int64_t kMost = static_cast<int64_t>(Exchange::kAreaBytes / sizeof(float));
    each_piece(step.rows * a.columns, kMost, [&](Span piece) {
        copy_part(team, reinterpret_cast<float*>(exchange.mine()), a.shard + piece.first, piece.size());
        exchange.meet();
        for (int hop = 0; hop < exchange.ranks(); ++hop) {
            const int rank = (exchange.rank() + hop) % exchange.ranks();
            const auto* theirs = reinterpret_cast<const float*>(exchange.of(rank)) - piece.first;
            each_part(team, piece, [&](Span part) {
                each_row_of(part, a.columns, [&](Span run, int64_t row, int64_t column) {
                    std::memcpy(a.out + row * width + rank * a.columns + column, theirs + run.first,
                                static_cast<std::size_t>(run.size()) * sizeof(float));
                });
            });
        }
    });
}

}  // namespace rayline::RL_ISA
