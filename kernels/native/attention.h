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

// The items of one sequence and how they make chunks.
struct Share {
    int64_t sequence, first, tokens;  // tokens of the step
    int64_t items;                    // for each KV head
    int64_t heads;                    // KV heads of a chunk, one item each
    int64_t parts;                    // chunks of an item
    int64_t first_part;
    int64_t first_chunk;
    int64_t partial;                  // offset of its partial sums, where parts > 1
};

constexpr int64_t kChunksOfThread = 16;  // enough for threads to end together
constexpr int64_t kItemsOfThread = 4;    // an item that is more than its part of a thread's work is cut

struct Schedule {
    Share* shares;
    int64_t count;
    int64_t chunks;
    int64_t partial_bytes;
};

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
    int64_t total = 0, items = 0;
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
        items += items_of(tokens) * kv_heads;
    });
    // Of single tokens one chunk takes several heads, as long as there are chunks enough for all threads.
    const int64_t most_heads = std::max<int64_t>(1, std::min(kv_heads, items / (kChunksOfThread * threads)));
    for (int size = 0; size < kSizes; ++size) places[size + 1] += places[size];
    Schedule schedule{shares, places[kSizes], 0, 0};
    each([&](int64_t s, int64_t first, int64_t tokens, int64_t cost, int size) {
        const int64_t first_part = attention.first_part(first);
        const bool is_large = threads > 1 && cost * kItemsOfThread * threads > total;
        const int64_t heads = items_of(tokens) == 1 && !is_large ? most_heads : 1;
        const int64_t parts = is_large ? step.positions[first + tokens - 1] / kPartKeys + 1 - first_part : 1;
        shares[places[size]++] = {s, first, tokens, items_of(tokens), heads, parts, first_part, 0, 0};
    });
    for (int64_t i = 0; i < schedule.count; ++i) {
        Share& share = shares[i];
        const int64_t chunks = (kv_heads + share.heads - 1) / share.heads * share.items * share.parts;
        share.first_chunk = schedule.chunks;
        schedule.chunks += chunks;
        share.partial = schedule.partial_bytes;
        if (share.parts > 1) schedule.partial_bytes += chunks * attention.partial_bytes(share.tokens);
    }
    return schedule;
}

// Where a chunk belongs.
struct Place {
    const Share& share;
    Item item;      // the first of the chunk
    int64_t index;  // of the chunk in its share
    int64_t part;   // of the item
};

inline Place find_place(const Schedule& schedule, const Attention& attention, int64_t chunk) {
    int64_t low = 0, high = schedule.count - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (schedule.shares[middle].first_chunk <= chunk) low = middle;
        else high = middle - 1;
    }
    const Share& share = schedule.shares[low];
    const int64_t index = chunk - share.first_chunk, item = index / share.parts;
    const int64_t skipped = (share.items - 1 - item % share.items) * attention.item_tokens;  // the last sees the most
    const int64_t kv_head = item / share.items * share.heads;
    const int64_t tokens = std::min(attention.item_tokens, share.tokens - skipped);
    const int64_t end = std::min(attention.layer.kv_heads, kv_head + share.heads);
    return {share, {share.sequence, kv_head, end, share.first + skipped, tokens}, index, index % share.parts};
}

inline void attend_item(const Attention& attention, const Item& item, const Workspace& work) {
    attention.load_rows(item, work);
    attention.begin(item, work.whole);
    for (int64_t part = attention.first_part(item.first); part < attention.end_part(item); ++part) {
        attention.sum_part(item, work, part, work.part);
        join(work.whole, work.part, item.tokens * attention.ratio, attention.layer.head_dim);
    }
    attention.finish(item, work.whole);
}

inline void attend(Team& team, const Step& step, const void* args) {
    const Attention attention(*static_cast<const Attend*>(args), step);
    const int64_t dim = attention.layer.head_dim;
    const auto shares_bytes = (static_cast<std::size_t>(step.sequences) * sizeof(Share) + 63) / 64 * 64;
    auto plan = [&](int64_t partial_bytes) {
        const auto bytes = shares_bytes + static_cast<std::size_t>(partial_bytes);
        return make_schedule(attention, team.size(), reinterpret_cast<Share*>(team.shared(bytes)));
    };
    Schedule schedule = plan(0);
    if (schedule.partial_bytes > 0) schedule = plan(schedule.partial_bytes);  // the memory may have moved
    Carver measured{nullptr};
    const Workspace none(measured, attention.item_rows(), dim);
    auto work_of = [&](int thread) {
        Carver carver{team.scratch(thread, measured.used)};
        return Workspace(carver, attention.item_rows(), dim);
    };
    auto partial = [&](const Place& place, int64_t part) {
        std::byte* partials = reinterpret_cast<std::byte*>(schedule.shares) + shares_bytes + place.share.partial;
        Carver carver{partials + (place.index + part) * attention.partial_bytes(place.share.tokens)};
        return take_sums(carver, attention.rows_of(place.share.tokens), dim);
    };

    team.each(schedule.chunks, [&](int64_t chunk, int thread) {
        Place place = find_place(schedule, attention, chunk);
        const Workspace work = work_of(thread);
        Item& item = place.item;
        if (place.share.parts == 1) {
            for (; item.kv_head < item.end_kv_head; ++item.kv_head) attend_item(attention, item, work);
            return;
        }
        attention.load_rows(item, work);
        attention.sum_part(item, work, place.share.first_part + place.part, partial(place, 0));
    });
    if (schedule.partial_bytes == 0) return;
    team.each(schedule.chunks, [&](int64_t chunk, int thread) {
        const Place place = find_place(schedule, attention, chunk);
        if (place.share.parts == 1 || place.part != 0) return;
        const Sums whole = work_of(thread).whole;
        attention.begin(place.item, whole);
        for (int64_t part = 0; part < place.share.parts; ++part)
            join(whole, partial(place, part), place.item.tokens * attention.ratio, dim);
        attention.finish(place.item, whole);
    });
}

}  // namespace rayline::RL_ISA
