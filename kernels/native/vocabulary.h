// Reductions over a row of logits, or over one rank's part of it: the best tokens, sums of exp, and draws with noise.
// Maxima are the same in any order; a sum has one order, that of the row's segments.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "abi.h"
#include "draw.h"
#include "team.h"

namespace rayline::RL_ISA {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kBlockLanes = static_cast<int>(kBlock) / kLanes;

// One row: `size` logits, of ids from `first` on.
struct LogitRow {
    const float* logits;
    int64_t size;
};

template <class A>
LogitRow row_of(const A& a, int64_t row) {
    return {a.logits + a.index[row] * a.width, a.size};
}

inline Lanes load_logits(const LogitRow& row, int64_t i) {
    if (i + kLanes <= row.size) return load(row.logits + i);
    alignas(64) float some[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) some[lane] = i + lane < row.size ? row.logits[i + lane] : -kInfinity;
    return load(some);
}

inline float largest_of_block(const LogitRow& row, int64_t i) {
    Lanes most = load_logits(row, i);
    for (int j = 1; j < kBlockLanes; ++j) most = max(load_logits(row, i + j * kLanes), most);
    return largest(most);
}

// Calls body(row, part) for parts of each row: more than one where there are few rows for the threads.
constexpr int64_t kParts = 8;
template <class Body>
void each_row_part(Team& team, int64_t rows, Body&& body) {
    const int64_t parts = rows >= 2 * team.size() ? 1 : kParts;
    team.each(rows * parts, [&](int64_t chunk, int) { body(chunk / parts, chunk % parts, parts); });
}

struct Range {
    int64_t first, last;
};
// Part of a row, on a border of blocks.
inline Range part_of(int64_t size, int64_t part, int64_t parts) {
    const int64_t each = (size + parts * kBlock - 1) / (parts * kBlock) * kBlock;
    return {std::min(size, part * each), std::min(size, (part + 1) * each)};
}

constexpr Token kNone{-std::numeric_limits<double>::infinity(), int64_t{1} << 53};  // an id that fp64 still counts

// Writes the best of what reduce(row, range) gives for the parts of each row.
template <class Reduce>
void write_best(Team& team, int64_t rows, int64_t size, int64_t first, double* found, Reduce&& reduce) {
    auto* bests = reinterpret_cast<Token*>(team.shared(static_cast<std::size_t>(rows * kParts) * sizeof(Token)));
    for (int64_t i = 0; i < rows * kParts; ++i) bests[i] = kNone;
    each_row_part(team, rows, [&](int64_t row, int64_t part, int64_t parts) {
        const Range range = part_of(size, part, parts);
        if (range.first < range.last) bests[row * kParts + part] = reduce(row, range);
    });
    for (int64_t row = 0; row < rows; ++row) {
        Token best = kNone;
        for (int64_t part = 0; part < kParts; ++part)
            if (is_better(bests[row * kParts + part], best)) best = bests[row * kParts + part];
        found[2 * row] = best.value;
        found[2 * row + 1] = static_cast<double>(best.id + first);
    }
}

// Four blocks at a time; the block that held the largest is searched again for its place.
inline Token best_in(const LogitRow& row, Range range) {
    constexpr int64_t kStride = 4 * kBlock;
    float best = -kInfinity;
    int64_t at = range.first;
    for (int64_t i = range.first; i < range.last; i += kStride) {
        const int64_t last = std::min(range.last, i + kStride);
        Lanes most = load_logits(row, i);
        if (last - i == kStride) {
            Lanes other[3];
            for (int j = 0; j < 3; ++j) other[j] = load(row.logits + i + (j + 1) * kLanes);
            for (int64_t k = i + kBlock; k < last; k += kBlock) {
                most = max(load(row.logits + k), most);
                for (int j = 0; j < 3; ++j) other[j] = max(load(row.logits + k + (j + 1) * kLanes), other[j]);
            }
            most = max(max(most, other[0]), max(other[1], other[2]));
        } else {
            for (int64_t k = i + kLanes; k < last; k += kLanes) most = max(load_logits(row, k), most);
        }
        const float here = largest(most);
        if (here > best) best = here, at = i;
    }
    while (at + 1 < range.last && row.logits[at] != best) ++at;
    return {best, at};
}

inline void best_token(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const BestToken*>(args);
    write_best(team, step.rows, a.size, a.first, a.found,
               [&](int64_t row, Range range) { return best_in(row_of(a, row), range); });
}

// Memory of one thread: maxima of the blocks of a row and a copy of them, then tokens of the row.
struct Selection {
    float* maxima;
    Token* tokens;
};
inline Selection selection(Team& team, int thread, const LogitRow& row) {
    const std::size_t blocks = static_cast<std::size_t>((row.size + kBlock - 1) / kBlock);
    const std::size_t skip = (2 * blocks * sizeof(float) + 63) / 64 * 64;
    std::byte* memory = team.scratch(thread, skip + static_cast<std::size_t>(row.size) * sizeof(Token));
    const Selection made{reinterpret_cast<float*>(memory), reinterpret_cast<Token*>(memory + skip)};
    for (std::size_t block = 0; block < blocks; ++block)
        made.maxima[block] = largest_of_block(row, static_cast<int64_t>(block) * kBlock);
    return made;
}

inline void top_tokens(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const TopTokens*>(args);
    team.each(step.rows, [&](int64_t row, int thread) {
        const LogitRow logits = row_of(a, row);
        const Selection some = selection(team, thread, logits);
        const float bound = bound_of_most(some.maxima, (logits.size + kBlock - 1) / kBlock, a.most);
        const int64_t count = tokens_from(bound, logits.logits, logits.size, some.maxima, some.tokens);
        select_best(some.tokens, count, a.most);
        put_in_order(some.tokens, std::min(a.most, count));
        for (int64_t i = 0; i < a.most; ++i) {
            double* pair = a.found + 2 * (row * a.most + i);
            pair[0] = i < count ? some.tokens[i].value : -std::numeric_limits<double>::infinity();
            pair[1] = i < count ? static_cast<double>(some.tokens[i].id + a.first) : 0.0;
        }
    });
}

// (logit - best) / temperature, at most 0; 0 also where both are infinite.
inline Lanes scores(Lanes logits, Lanes best, Lanes inverse) { return min(logits - best, splat(0.0f)) * inverse; }

// A temperature as a factor; of a tiny one a smaller factor, which only keeps more.
inline float inverse_of(double temperature) { return static_cast<float>(std::min(1.0 / temperature, 1e30)); }

// fp32 within a run of 16 lanes, fp64 over the runs.
inline double exp_sum_in(const LogitRow& row, Range range, float best, float inverse) {
    constexpr int64_t kRun = 16 * kLanes;
    double total = 0.0;
    for (int64_t first = range.first; first < range.last; first += kRun) {
        const int64_t last = std::min(range.last, first + kRun);
        Lanes run = splat(0.0f);
        for (int64_t i = first; i < last; i += kLanes)
            run = run + exp(scores(load_logits({row.logits, range.last}, i), splat(best), splat(inverse)));
        total += sum(run);
    }
    return total;
}

inline void exp_sum(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const ExpSum*>(args);
    const int64_t segments = std::max<int64_t>(1, (a.size + a.segment - 1) / a.segment);
    auto* sums = reinterpret_cast<double*>(team.shared(static_cast<std::size_t>(step.rows * segments) * sizeof(double)));
    team.each(step.rows * segments, [&](int64_t chunk, int) {
        const int64_t row = chunk / segments, first = chunk % segments * a.segment;
        const Range range{first, std::min(a.size, first + a.segment)};
        const float best = static_cast<float>(a.best[row]);
        sums[chunk] = exp_sum_in(row_of(a, row), range, best, inverse_of(a.temperature[row]));
    });
    for (int64_t row = 0; row < step.rows; ++row) {
        double* level = sums + row * segments;
        for (int64_t left = segments; left > 1; left = (left + 1) / 2) {
            for (int64_t pair = 0; pair < left / 2; ++pair) level[pair] = level[2 * pair] + level[2 * pair + 1];
            if (left & 1) level[left / 2] = level[left - 1];
        }
        a.sum[row] = level[0];
    }
}

// Lane l computes the words of block 4 (l % 4) + l / 4, so that transposing groups of four puts ids in order.
constexpr uint32_t kPhiloxOrder[kLanes] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

// Noise words of kBlock ids from `first` on, a multiple of 4, in the order of ids.
inline void noise_words(int64_t seed, int64_t position, int64_t first, Words (&out)[4]) {
    const uint64_t key = static_cast<uint64_t>(seed);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    const Words first_factor = splat_words(kPhiloxFirst), second_factor = splat_words(kPhiloxSecond);
    Words c0 = splat_words(static_cast<uint32_t>(position));
    Words c1 = splat_words(static_cast<uint32_t>(first / 4)) + load_words(kPhiloxOrder);
    Words c2 = splat_words(0), c3 = splat_words(0);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        Words first_high, first_low, second_high, second_low;
        multiply(c0, first_factor, first_high, first_low);
        multiply(c2, second_factor, second_high, second_low);
        c0 = second_high ^ c1 ^ splat_words(k0);
        c2 = first_high ^ c3 ^ splat_words(k1);
        c1 = second_low;
        c3 = first_low;
        k0 += kWeylFirst;
        k1 += kWeylSecond;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
    transpose_fours(out);
}

struct Noise {
    double best, temperature;
    int64_t seed, position, first;
};

struct KeepAll {
    static constexpr float lowest = -kInfinity;  // no logit below is kept
    static constexpr double top_score = 0.0;     // of the best one kept
    bool operator()(const Token&, double) const { return true; }
};

// score + noise >= winner needs v <= exp(score - winner): few words are so small, and only theirs become noise. The
// bound is loosened by more than fp32 errs. Blocks whose scores no noise can lift that far are passed over.
template <class Keep>
Token draw_in(const LogitRow& row, Range range, const Noise& noise, const Keep& keep) {
    constexpr double kUpperBits = 16.6355323334;  // 24 log 2
    constexpr double kSlack = 1e-3;
    const Lanes best = splat(static_cast<float>(noise.best)), inverse = splat(inverse_of(noise.temperature));
    Token winner = kNone;
    double least = keep.top_score + kNoiseMin;  // the best one kept ends here or above
    float bound = -kInfinity, offset = 0.0f;
    const auto aim = [&] {
        const double floor = noise.best + (least - kNoiseMax - kSlack) * noise.temperature;
        bound = std::max(keep.lowest, std::nextafter(static_cast<float>(floor), -kInfinity));
        offset = static_cast<float>(kUpperBits + kSlack - least);
    };
    aim();
    for (int64_t i = range.first; i < range.last; i += kBlock) {
        const float top = largest_of_block(row, i);
        if (top < bound) continue;
        Words words[4];
        noise_words(noise.seed, noise.position, noise.first + i, words);
        const Lanes fewest = min(min(upper_bits(words[0]), upper_bits(words[1])), min(upper_bits(words[2]), upper_bits(words[3])));
        if (at_most(fewest, exp(scores(splat(top), best, inverse) + splat(offset))) == 0) continue;
        for (int j = 0; j < 4; ++j) {
            const int64_t at = i + j * kLanes;
            if (at >= range.last) break;
            const Lanes limit = exp(scores(load_logits(row, at), best, inverse) + splat(offset));
            uint32_t lucky = at_most(upper_bits(words[j]), limit);
            if (lucky == 0) continue;
            alignas(64) uint32_t word[kLanes];
            store_words(word, words[j]);
            for (; lucky != 0; lucky &= lucky - 1) {
                const int lane = __builtin_ctz(lucky);
                if (at + lane >= range.last) break;
                const double score = score_of(row.logits[at + lane], noise.best, noise.temperature);
                if (!keep({row.logits[at + lane], at + lane}, score)) continue;
                const Token drawn{score + gumbel(word[lane]), at + lane};
                if (is_better(drawn, winner)) winner = drawn;
            }
            if (winner.value > least) least = winner.value, aim();
        }
    }
    return winner;
}

inline void draw_token(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const DrawToken*>(args);
    write_best(team, step.rows, a.size, a.first, a.found, [&](int64_t row, Range range) {
        const Noise noise{a.best[row], a.temperature[row], a.seeds[row], a.positions[row], a.first};
        return draw_in(row_of(a, row), range, noise, KeepAll{});
    });
}

inline void logprobs(Team&, const Step& step, const void* args) {
    const auto& a = *static_cast<const Logprobs*>(args);
    for (int64_t row = 0; row < step.rows; ++row)
        for (int64_t i = row * a.columns; i < (row + 1) * a.columns; ++i) {
            const double score = a.logits[i] == a.best[row] ? 0.0 : a.logits[i] - a.best[row];
            a.out[i] = static_cast<float>(score - log_of(a.total[row]));
        }
}

inline void log_softmax(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const LogSoftmax*>(args);
    team.each(step.rows, [&](int64_t row, int) {
        const LogitRow logits = row_of(a, row);
        const double best = a.best[row], log_total = log_of(a.total[row]);
        for (int64_t i = 0; i < a.size; ++i) {
            const double score = logits.logits[i] == best ? 0.0 : logits.logits[i] - best;
            a.out[row * a.size + i] = static_cast<float>(score - log_total);
        }
    });
}

}  // namespace rayline::RL_ISA
