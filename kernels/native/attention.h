// Attention over the paged cache (Kwon et al. 2023): prompts, parts of prompts and single tokens in one operation.
//
// A chunk of work is an item, or one part of the keys of an item that is large beside all others; the parts of such an
// item are joined in a second round. Sequences with large items come first, so that threads end together.
#pragma once
#include <algorithm>
#include <bit>

#include "abi.h"
#include "attention_item.h"
#include "team.h"

namespace rayline::RL_ISA {

// The items of one sequence, in the order of the work.
struct Share {
    int64_t sequence, first, tokens;  // tokens of the step
    int64_t items;                    // for each KV head
    int64_t parts;                    // chunks of an item
    int64_t first_part;
    int64_t end_chunk;                // chunks of this sequence and of all before it
    int64_t partial;                  // offset of its partial sums, where parts > 1
};

struct Schedule {
    Share* shares;
    int64_t count;
    int64_t chunks;
    int64_t partial_bytes;
};

inline int64_t sums_bytes(int64_t rows, int64_t dim) {
    Carver carver{nullptr};
    take_sums(carver, rows, dim);
    return static_cast<int64_t>(carver.used);
}

// Rows times keys of the largest item of a sequence.
inline int64_t item_cost(const Attention& attention, int64_t first, int64_t tokens) {
    const int64_t rows = std::min(tokens, attention.item_tokens);
    const int64_t last = attention.step.positions[first + tokens - 1];
    return rows * attention.ratio * (last + 1 - attention.oldest_seen(last - rows + 1));
}

// Sequences into `shares`, those with large items first; of equal size to a factor of two they keep their order.
inline Schedule make_schedule(const Attention& attention, int threads, Share* shares) {
    constexpr int kSizes = 64;
    const Step& step = attention.step;
    const int64_t kv_heads = attention.layer.kv_heads;
    int64_t places[kSizes + 1] = {};
    int64_t total = 0;
    auto each = [&](auto&& body) {
        for (int64_t s = 0; s < step.sequences; ++s) {
            const int64_t first = step.starts[s], tokens = step.starts[s + 1] - first;
            if (tokens <= 0) continue;
            const int64_t cost = item_cost(attention, first, tokens);
            body(s, first, tokens, cost, kSizes - std::bit_width(static_cast<uint64_t>(cost)));
        }
    };
    auto items_of = [&](int64_t tokens) { return (tokens + attention.item_tokens - 1) / attention.item_tokens; };
    each([&](int64_t, int64_t, int64_t tokens, int64_t cost, int size) {
        ++places[size + 1];
        total += cost * items_of(tokens) * kv_heads;
    });
    for (int size = 0; size < kSizes; ++size) places[size + 1] += places[size];
    Schedule schedule{shares, places[kSizes], 0, 0};
    each([&](int64_t s, int64_t first, int64_t tokens, int64_t cost, int size) {
        const int64_t first_part = attention.first_part(first);
        const bool is_large = threads > 1 && cost * 4 * threads > total;
        const int64_t parts = is_large ? step.positions[first + tokens - 1] / kPartKeys + 1 - first_part : 1;
        shares[places[size]++] = {s, first, tokens, items_of(tokens), parts, first_part, 0, 0};
    });
    for (int64_t i = 0; i < schedule.count; ++i) {
        Share& share = shares[i];
        const int64_t chunks = kv_heads * share.items * share.parts;
        share.end_chunk = schedule.chunks += chunks;
        share.partial = schedule.partial_bytes;
        if (share.parts > 1) schedule.partial_bytes += chunks * sums_bytes(attention.item_rows(), attention.layer.head_dim);
    }
    return schedule;
}

// The share that a chunk belongs to, and the item; what is left of the chunk is the part.
inline const Share& find_item(const Schedule& schedule, const Attention& attention, int64_t& chunk, Item& item) {
    int64_t low = 0, high = schedule.count - 1;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (chunk < schedule.shares[middle].end_chunk) high = middle;
        else low = middle + 1;
    }
    const Share& share = schedule.shares[low];
    if (low > 0) chunk -= schedule.shares[low - 1].end_chunk;
    const int64_t index = chunk / share.parts;
    const int64_t skipped = (share.items - 1 - index % share.items) * attention.item_tokens;  // the last sees the most
    chunk %= share.parts;
    item = {share.sequence, index / share.items, share.first + skipped,
            std::min(attention.item_tokens, share.tokens - skipped)};
    return share;
}

inline void attend_item(const Attention& attention, const Item& item, const Workspace& work) {
    attention.begin(item, work.whole);
    for (int64_t part = attention.first_part(item.first); part < attention.end_part(item); ++part) {
        attention.sum_part(item, work, part, work.part);
        join(work.whole, work.part, item.tokens * attention.ratio, attention.layer.head_dim);
    }
    attention.finish(item, work.whole);
}

inline void attend(Team& team, const Step& step, const void* args) {
    const Attention attention(*static_cast<const Attend*>(args), step);
    const int64_t rows = attention.item_rows(), dim = attention.layer.head_dim;
    const auto shares_bytes = (static_cast<std::size_t>(step.sequences) * sizeof(Share) + 63) / 64 * 64;
    auto shares_at = [&](std::size_t bytes) { return reinterpret_cast<Share*>(team.shared(bytes)); };
    Schedule schedule = make_schedule(attention, team.size(), shares_at(shares_bytes));
    if (schedule.partial_bytes > 0) {
        const auto bytes = shares_bytes + static_cast<std::size_t>(schedule.partial_bytes);
        schedule = make_schedule(attention, team.size(), shares_at(bytes));
    }
    std::byte* partials = reinterpret_cast<std::byte*>(schedule.shares) + shares_bytes;
    auto partial = [&](const Share& share, int64_t index) {
        Carver carver{partials + share.partial + index * sums_bytes(rows, dim)};
        return take_sums(carver, rows, dim);
    };
    Carver measured{nullptr};
    const Workspace none(measured, rows, dim);

    team.each(schedule.chunks, [&](int64_t chunk, int thread) {
        Item item;
        int64_t part = chunk;
        const Share& share = find_item(schedule, attention, part, item);
        Carver carver{team.scratch(thread, measured.used)};
        const Workspace work(carver, rows, dim);
        attention.load_rows(item, work);
        if (share.parts == 1) return attend_item(attention, item, work);
        const int64_t index = chunk - (share.end_chunk - attention.layer.kv_heads * share.items * share.parts);
        attention.sum_part(item, work, share.first_part + part, partial(share, index));
    });
    if (schedule.partial_bytes == 0) return;
    team.each(schedule.chunks, [&](int64_t chunk, int thread) {
        Item item;
        int64_t part = chunk;
        const Share& share = find_item(schedule, attention, part, item);
        if (share.parts == 1 || part != 0) return;
        Carver carver{team.scratch(thread, measured.used)};
        const Workspace work(carver, rows, dim);
        attention.begin(item, work.whole);
        const int64_t index = chunk - (share.end_chunk - attention.layer.kv_heads * share.items * share.parts);
        for (int64_t i = 0; i < share.parts; ++i)
            join(work.whole, partial(share, index + i), item.tokens * attention.ratio, dim);
        attention.finish(item, work.whole);
    });
}

}  // namespace rayline::RL_ISA
