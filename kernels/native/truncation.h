// What top-n-sigma, top-k, top-p, min-p and typical-p keep of a row of logits, and the draw over it: kernels/truncation.py
// and weights.py have the rules. No row is sorted: a token's place in the order is found by sums over buckets of logits,
// exact because weights are whole numbers, and only the bucket where a sum passes its goal is put in order.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "abi.h"
#include "draw.h"
#include "team.h"
#include "vocabulary.h"

namespace rayline::RL_ISA {

constexpr float kUnitBits = 34.0f, kLowest = -30.0f;
constexpr double kZeroScore = -25.0;  // lower scores have weight 0

// exp(scores) in units of 2^-34, whole numbers. No fused steps: torch has none.
inline Lanes weights(Lanes scores) {
    const Lanes inside = max(scores, splat(kLowest));
    const Lanes power = round_even(inside * splat(1.44269504f));
    Lanes rest = inside - power * splat(0.693359375f);
    rest = rest - power * splat(-2.12194440e-4f);
    Lanes series = splat(1.9875691500e-4f);
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        series = series * rest + splat(term);
    series = series * (rest * rest);
    series = (series + rest) + splat(1.0f);
    return round_even(series * power_of_two(power + splat(kUnitBits)));
}

// A row, and what its rules are relative to.
struct Weighed {
    LogitRow row;
    const float* maxima;  // of its blocks
    double best, temperature;
    Lanes best_lanes, inverse;

    Lanes logits(int64_t i) const { return load_logits(row, i); }
    Lanes rough(Lanes logits) const { return scores(logits, best_lanes, inverse); }
    float weight(float logit) const {
        alignas(64) float each[kLanes];
        store(each, weights(rough(splat(logit))));
        return each[0];
    }
    // Calls body(i) for the lanes from i on of each block that has a logit of `bound` or more.
    template <class Body>
    void each_lanes(float bound, Body&& body) const {
        for (int64_t first = 0; first < row.size; first += kBlock)
            if (maxima[first / kBlock] >= bound)
                for (int64_t i = first; i < std::min(row.size, first + kBlock); i += kLanes) body(i);
    }
};

// What is left of a row: tokens from the first to `last` in order whose scores reach least_score and, where typical-p
// is on, are at most `distance` from `mean`.
struct Kept {
    Token last;
    double least_score;
    float lowest = -kInfinity;
    double top_score = 0.0;
    float best = 0.0f, inverse = 0.0f, mean = 0.0f, distance = kInfinity;

    float rough(float logit) const {
        const float below = logit - best;
        return (below < 0.0f ? below : 0.0f) * inverse;
    }
    bool is_left(const Token& token, double score) const { return !is_better(last, token) && score >= least_score; }
    bool operator()(const Token& token, double score) const {
        if (!is_left(token, score)) return false;
        return distance == kInfinity || std::abs(rough(static_cast<float>(token.value)) - mean) <= distance;
    }
    void end_at(const Token& token) {
        last = token;
        lowest = static_cast<float>(token.value);
    }
};

constexpr Token kEverything{-std::numeric_limits<double>::infinity(), std::numeric_limits<int64_t>::max()};

// best - n sigma of all logits above -inf: 16 sums, joined in halves.
inline float floor_of(const LogitRow& row, double best, double top_n_sigma) {
    if (!std::isfinite(best)) return static_cast<float>(best);
    double sums[kLanes] = {}, squares[kLanes] = {};
    int64_t counts[kLanes] = {};
    for (int64_t i = 0; i < row.size; i += kLanes) {
        alignas(64) float here[kLanes];
        store(here, load_logits(row, i));
        for (int lane = 0; lane < kLanes; ++lane) {
            const bool is_there = here[lane] > -kInfinity;
            const double below = is_there ? best - static_cast<double>(here[lane]) : 0.0;
            sums[lane] += below;
            squares[lane] += below * below;
            counts[lane] += is_there;
        }
    }
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) {
            sums[lane] += sums[lane + half];
            squares[lane] += squares[lane + half];
            counts[lane] += counts[lane + half];
        }
    const double count = static_cast<double>(counts[0]), mean = sums[0] / count;
    const double variance = squares[0] / count - mean * mean;
    return static_cast<float>(best - top_n_sigma * std::sqrt(std::max(variance, 0.0)));
}

// Of tokens in order: the first with which their weights reach `enough`, or the last one.
inline Token first_to_reach(const Weighed& some, const Token* tokens, int64_t count, double running, double enough) {
    for (int64_t i = 0; i < count; ++i) {
        running += some.weight(static_cast<float>(tokens[i].value));
        if (running >= enough) return tokens[i];
    }
    return tokens[count - 1];
}

struct Rules {
    double top_n_sigma;
    int64_t top_k;
    double top_p, least_score, typical_p;
};

// The top_k-th token, or the one where top-p ends among those.
inline Token last_of_most(const Weighed& some, const Selection& memory, float floor, const Rules& rules) {
    constexpr int64_t kBlocksPerToken = 4;
    const int64_t blocks = (some.row.size + kBlock - 1) / kBlock;
    float bound = floor;
    if (rules.top_k * kBlocksPerToken <= blocks) bound = std::max(floor, bound_of_most(memory.maxima, blocks, rules.top_k));
    const int64_t found = tokens_from(bound, some.row.logits, some.row.size, memory.maxima, memory.tokens);
    const int64_t count = std::min(rules.top_k, found);
    Token* tokens = memory.tokens;
    select_best(tokens, found, count);
    put_in_order(tokens, count);
    if (rules.top_p >= 1.0) return tokens[count - 1];
    double total = 0.0;
    for (int64_t i = 0; i < count; ++i) total += some.weight(static_cast<float>(tokens[i].value));
    return first_to_reach(some, tokens, count, 0.0, rules.top_p * total);
}

constexpr int kBuckets = 2048;

// Logits by how far below the best they are: monotone, so that a bucket's tokens stand together in the order.
struct Buckets {
    Lanes best, scale;
    Lanes operator()(Lanes logits) const { return min(max(best - logits, splat(0.0f)) * scale, splat(kBuckets)); }
};

// All but a share of 1 - top_p of the weight lies in tokens of more than that share's mean weight. Returns a bound of
// their logits.
inline float bound_of_nucleus(const Weighed& some, double total, double top_p) {
    const double weight = 0.99 * (1.0 - top_p) * total / static_cast<double>(some.row.size);
    const double score = weight >= 0.5 ? std::max(kZeroScore, log_of(weight * 0x1p-34) - 0.01) : kZeroScore;
    return std::nextafter(static_cast<float>(some.best + score * some.temperature), -kInfinity);
}

// The token where top-p ends, of those from `floor` on.
inline Token last_of_nucleus(const Weighed& some, const Selection& memory, float floor, double top_p) {
    WideSums sums = no_wide_sums();
    const float zero = std::nextafter(static_cast<float>(some.best + kZeroScore * some.temperature), -kInfinity);
    some.each_lanes(std::max(floor, zero), [&](int64_t i) {
        const Lanes logits = some.logits(i);
        sums = sums + zero_below(logits, splat(floor), weights(some.rough(logits)));
    });
    const double total = sum(sums), enough = top_p * total;
    const float bound = std::max(floor, bound_of_nucleus(some, total, top_p));
    const float range = static_cast<float>(some.best) - bound;
    const Buckets bucket_of{some.best_lanes, splat(0.9999f * kBuckets / (range > 1e-30f ? range : 1e-30f))};
    double held[kBuckets] = {};
    some.each_lanes(bound, [&](int64_t i) {
        alignas(64) float bucket[kLanes], weight[kLanes];
        const Lanes logits = some.logits(i), buckets = bucket_of(logits);
        uint32_t inside = 0xffffu & ~at_most(splat(kBuckets), buckets);
        if (inside == 0) return;
        store(bucket, buckets);
        store(weight, zero_below(logits, splat(floor), weights(some.rough(logits))));
        for (; inside != 0; inside &= inside - 1) {
            const int lane = __builtin_ctz(inside);
            held[static_cast<int>(bucket[lane])] += static_cast<double>(weight[lane]);
        }
    });
    int goal = 0;
    double running = 0.0;
    while (goal < kBuckets && running + held[goal] < enough) running += held[goal++];
    int64_t count = 0;
    some.each_lanes(goal < kBuckets ? bound : floor, [&](int64_t i) {
        const Lanes bucket = bucket_of(some.logits(i));
        const float from = static_cast<float>(goal);
        uint32_t here = at_most(splat(from), bucket) & ~at_most(splat(from + 1.0f), bucket);
        for (; here != 0; here &= here - 1) {
            const int64_t at = i + __builtin_ctz(here);
            if (at < some.row.size && some.row.logits[at] >= floor) memory.tokens[count++] = {some.row.logits[at], at};
        }
    });
    put_in_order(memory.tokens, count);
    return first_to_reach(some, memory.tokens, count, running, enough);
}

struct Atom {
    float logit, score, weight, distance;
};
static_assert(sizeof(Atom) == sizeof(Token));

// The smallest distance within which the weights reach `enough`. The atoms change places.
inline float distance_to_reach(Atom* atoms, int64_t count, double enough) {
    float range = 1e-30f;
    for (int64_t i = 0; i < count; ++i)
        if (atoms[i].weight > 0.0f) range = std::max(range, atoms[i].distance);
    const float scale = 0.9999f * kBuckets / range;
    const auto bucket_of = [&](const Atom& atom) { return static_cast<int>(std::min(atom.distance * scale, 1.0f * kBuckets)); };
    double held[kBuckets + 1] = {};
    for (int64_t i = 0; i < count; ++i) held[bucket_of(atoms[i])] += static_cast<double>(atoms[i].weight);
    int goal = 0;
    double running = 0.0;
    while (goal < kBuckets && running + held[goal] < enough) running += held[goal++];
    Atom* end = atoms;
    for (int64_t i = 0; i < count; ++i)
        if (bucket_of(atoms[i]) == goal) {
            const Atom found = atoms[i];
            atoms[i] = *end;
            *end++ = found;
        }
    std::sort(atoms, end, [](const Atom& a, const Atom& b) { return a.distance < b.distance; });
    for (const Atom* atom = atoms; atom != end; ++atom) {
        running += static_cast<double>(atom->weight);
        if (running >= enough) return atom->distance;
    }
    return kInfinity;
}

// Tokens nearest to the mean score, until their weights reach typical_p of all; equals in distance go together.
inline void keep_typical(const Weighed& some, const Selection& memory, double typical_p, Kept& kept) {
    auto* atoms = reinterpret_cast<Atom*>(memory.tokens);
    int64_t count = 0;
    double total = 0.0, moment = 0.0;
    some.each_lanes(kept.lowest, [&](int64_t i) {
        alignas(64) float score[kLanes], weight[kLanes];
        const Lanes rough = some.rough(some.logits(i));
        store(score, rough);
        store(weight, weights(rough));
        for (int lane = 0; lane < kLanes && i + lane < some.row.size; ++lane) {
            const float logit = some.row.logits[i + lane];
            if (!kept.is_left({logit, i + lane}, score_of(logit, some.best, some.temperature))) continue;
            atoms[count++] = {logit, score[lane], weight[lane], 0.0f};
            total += static_cast<double>(weight[lane]);
            moment += static_cast<double>(std::nearbyint(weight[lane] * std::max(score[lane], kLowest)));
        }
    });
    kept.mean = static_cast<float>(moment / total);
    for (int64_t i = 0; i < count; ++i) atoms[i].distance = std::abs(atoms[i].score - kept.mean);
    kept.distance = distance_to_reach(atoms, count, typical_p * total);
    float top = -kInfinity;
    for (int64_t i = 0; i < count; ++i)
        if (atoms[i].distance <= kept.distance) top = std::max(top, atoms[i].logit);
    kept.top_score = score_of(top, some.best, some.temperature);
}

inline Kept kept_of(const Weighed& some, const Selection& memory, const Rules& rules) {
    Kept kept{kEverything, rules.least_score};
    kept.best = static_cast<float>(some.best);
    kept.inverse = inverse_of(some.temperature);
    if (some.best == -std::numeric_limits<double>::infinity()) return kept;  // no token is possible
    if (rules.top_n_sigma > 0.0)
        kept.end_at({floor_of(some.row, some.best, rules.top_n_sigma), std::numeric_limits<int64_t>::max()});
    if (rules.top_k > 0 && rules.top_k < some.row.size)
        kept.end_at(last_of_most(some, memory, kept.lowest, rules));
    else if (rules.top_p < 1.0)
        kept.end_at(last_of_nucleus(some, memory, kept.lowest, rules.top_p));
    if (rules.typical_p < 1.0) keep_typical(some, memory, rules.typical_p, kept);
    return kept;
}

inline void draw_kept(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const DrawKept*>(args);
    team.each(step.rows, [&](int64_t row, int thread) {
        const LogitRow logits = row_of(a, row);
        const Selection memory = selection(team, thread, logits);
        const float best = static_cast<float>(a.best[row]);
        const Weighed some{logits, memory.maxima, a.best[row], a.temperature[row], splat(best), splat(inverse_of(a.temperature[row]))};
        const Rules rules{a.top_n_sigma[row], a.top_k[row], a.top_p[row], a.least_score[row], a.typical_p[row]};
        const Kept kept = kept_of(some, memory, rules);
        const Noise noise{a.best[row], a.temperature[row], a.seeds[row], a.positions[row], 0};
        const Token token = draw_in(logits, {0, logits.size}, noise, kept);
        a.found[2 * row] = token.value;
        a.found[2 * row + 1] = static_cast<double>(token.id);
    });
}

}  // namespace rayline::RL_ISA
