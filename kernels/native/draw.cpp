#include "draw.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace rayline {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;  // high: 33 bits

}  // namespace

// x = 2^n m with m near 1, log m = 2 atanh(s) with s = (m - 1) / (m + 1): 12 terms of its series.
double log_of(double x) {
    int n;
    double m = std::frexp(x, &n);
    if (m < 0.70710678118654752440) {
        m *= 2.0;
        n -= 1;
    }
    const double f = m - 1.0, s = f / (2.0 + f), z = s * s;
    double p = 0.0;
    for (int term = 25; term >= 3; term -= 2) p = (p + 1.0 / term) * z;
    return n * kLn2High + (n * kLn2Low + (2.0 * s + 2.0 * s * p));
}

// 2^n exp(r) with |r| <= log(2) / 2: Taylor's series.
double exp_of(double x) {
    if (!(x > -700.0)) return 0.0;
    constexpr int kTerms = 14;
    constexpr auto kFactors = [] {
        std::array<double, kTerms> inverse{1.0};
        for (int i = 1; i < kTerms; ++i) inverse[i] = inverse[i - 1] / i;
        return inverse;
    }();
    const double n = std::nearbyint(x * 1.44269504088896338700);
    const double r = (x - n * kLn2High) - n * kLn2Low;
    double p = kFactors[kTerms - 1];
    for (int term = kTerms - 2; term >= 0; --term) p = p * r + kFactors[term];
    return p * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52);
}

uint32_t noise_word(int64_t seed, int64_t position, int64_t id) {
    uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(id / 4), 0, 0};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t first = static_cast<uint64_t>(c[0]) * kPhiloxFirst;
        const uint64_t second = static_cast<uint64_t>(c[2]) * kPhiloxSecond;
        c[0] = static_cast<uint32_t>(second >> 32) ^ c[1] ^ key[0];
        c[2] = static_cast<uint32_t>(first >> 32) ^ c[3] ^ key[1];
        c[1] = static_cast<uint32_t>(second);
        c[3] = static_cast<uint32_t>(first);
        key[0] += kWeylFirst;
        key[1] += kWeylSecond;
    }
    return c[id % 4];
}

// The `most`-th largest maximum is one.
float bound_of_most(float* maxima, int64_t blocks, int64_t most) {
    if (most > blocks) return -std::numeric_limits<float>::infinity();
    float* order = maxima + blocks;
    std::copy(maxima, maxima + blocks, order);
    std::nth_element(order, order + most - 1, order + blocks, std::greater<>());
    return order[most - 1];
}

int64_t tokens_from(float bound, const float* logits, int64_t size, const float* maxima, Token* out) {
    int64_t count = 0;
    for (int64_t first = 0; first < size; first += kBlock) {
        if (maxima[first / kBlock] < bound) continue;
        const int64_t last = std::min(size, first + kBlock);
        for (int64_t id = first; id < last; ++id)
            if (logits[id] >= bound) out[count++] = {logits[id], id};
    }
    std::sort(out, out + count, [](const Token& a, const Token& b) {
        return a.value != b.value ? a.value > b.value : a.id < b.id;
    });
    return count;
}

namespace {

// Scores are counted by how far below 0 they are. A bucket's far edge bounds the weight of what is in it from below.
float bound_by_buckets(const float* logits, int64_t size, const Rules& rules) {
    constexpr int kBuckets = 1024;
    constexpr double kPerUnit = 16.0, kEdge = 1.01;  // more than the fp32 product errs
    const double most = rules.top_k > 0 ? static_cast<double>(rules.top_k) : kInfinity;
    const double enough = rules.top_k == 0 && rules.top_p < 1.0 ? rules.top_p * rules.total : kInfinity;
    const float best = static_cast<float>(rules.best);
    const float scale = static_cast<float>(std::min(kPerUnit / rules.temperature, 1e30));
    int64_t counts[kBuckets] = {};
    for (int64_t id = 0; id < size; ++id) {
        const float bucket = (best - logits[id]) * scale;
        if (bucket < kBuckets) ++counts[static_cast<int>(bucket)];
    }
    double tokens = 0.0, weight = 0.0;
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
        const double below = (bucket + kEdge) / kPerUnit;
        tokens += static_cast<double>(counts[bucket]);
        weight += static_cast<double>(counts[bucket]) * exp_of(-below);
        if (tokens >= most || weight >= enough) return static_cast<float>(rules.best - below * rules.temperature);
    }
    return -std::numeric_limits<float>::infinity();
}

}  // namespace

float bound_of_kept(const float* logits, int64_t size, float* maxima, const Rules& rules) {
    constexpr int64_t kBlocksPerToken = 4;
    const int64_t blocks = (size + kBlock - 1) / kBlock;
    if (rules.top_k > 0 && rules.top_k * kBlocksPerToken <= blocks) return bound_of_most(maxima, blocks, rules.top_k);
    float bound = -std::numeric_limits<float>::infinity();
    if (rules.top_k > 0 || rules.top_p < 1.0) bound = bound_by_buckets(logits, size, rules);
    if (rules.top_k == 0 && rules.min_p > 0.0) {
        const double likely = rules.best + (log_of(rules.min_p) - 1e-3) * rules.temperature;
        bound = std::max(bound, std::nextafter(static_cast<float>(likely), -std::numeric_limits<float>::infinity()));
    }
    return bound;
}

int64_t kept_tokens(const Token* tokens, int64_t count, int64_t size, float bound, const Rules& rules) {
    const int64_t most = rules.top_k > 0 ? std::min(rules.top_k, size) : size;
    const int64_t end = std::min(count, most);
    const auto weight_of = [&](float logit) { return exp_of(score_of(logit, rules.best, rules.temperature)); };
    const auto weight = [&](int64_t i) { return weight_of(static_cast<float>(tokens[i].value)); };
    double total = rules.total;
    if (rules.top_p < 1.0 && rules.top_k > 0) {
        total = 0.0;
        for (int64_t i = 0; i < end; ++i) total += weight(i);
    }
    const double enough = rules.top_p < 1.0 ? rules.top_p * total : kInfinity;
    double running = 0.0;
    for (int64_t i = 0; i < end; ++i) {
        const double mine = weight(i);
        if (mine < rules.min_p) return std::max<int64_t>(1, i);
        running += mine;
        if (running >= enough) return i + 1;
    }
    const bool is_settled = end == most || weight_of(bound) < rules.min_p;
    return is_settled ? std::max<int64_t>(1, end) : count + 1;
}

// A value v of noise reaches winner - score only where v <= exp(score - winner); scores fall, so an old limit holds on.
Token drawn(const Token* tokens, int64_t count, double best, double temperature, int64_t seed, int64_t position) {
    constexpr int64_t kTokensPerLimit = 32;
    Token winner{-std::numeric_limits<double>::infinity(), std::numeric_limits<int64_t>::max()};
    double limit = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < count; ++i) {
        const double score = score_of(static_cast<float>(tokens[i].value), best, temperature);
        if (score + kNoiseMax < winner.value) break;  // and so are all that follow
        if (i % kTokensPerLimit == 0 && score < winner.value)
            limit = exp_of(score - winner.value) * (1.0 + 1e-9) * 0x1p32;
        const uint32_t word = noise_word(seed, position, tokens[i].id);
        if (word > limit) continue;
        const double value = score + gumbel(word);
        if (value > winner.value || (value == winner.value && tokens[i].id < winner.id)) winner = {value, tokens[i].id};
    }
    return winner;
}

}  // namespace rayline
