// A row's draw in plain fp64, the same bits for every compiler and CPU: noise, weights, and what top-k, top-p and
// min-p keep. kernels/philox.py, candidates.py and truncation.py say the same in torch.
#pragma once
#include <cstdint>

namespace rayline {

// Bounds of the noise, rounded outwards: v = 1 - 2^-33 gives -log(33 log 2), v = 2^-33 gives 33 log 2 - 2^-34.
constexpr double kNoiseMin = -3.1300;
constexpr double kNoiseMax = 22.8739;

constexpr uint32_t kPhiloxFirst = 0xD2511F53, kPhiloxSecond = 0xCD9E8D57;  // multipliers
constexpr uint32_t kWeylFirst = 0x9E3779B9, kWeylSecond = 0xBB67AE85;      // added to the key each round
constexpr int kPhiloxRounds = 10;

double log_of(double x);  // x > 0 and normal
double exp_of(double x);  // x <= 0

// (logit - best) / temperature; 0 where a logit equals the best, infinite ones too.
inline double score_of(float logit, double best, double temperature) {
    return logit == best ? 0.0 : (logit - best) / temperature;
}

// Gumbel noise -log(-log(1 - v)) of a word x: v = (x + 1/2) 2^-32, and 1 - v is exact.
inline double gumbel(uint32_t word) {
    return -log_of(-log_of(1.0 - (static_cast<double>(word) + 0.5) * 0x1p-32));
}

// The word of one vocabulary id (Salmon, Moraes, Dror, Shaw 2011): key = seed, counter = (position, id / 4, 0, 0).
uint32_t noise_word(int64_t seed, int64_t position, int64_t id);

struct Token {
    double value;
    int64_t id;
};

constexpr int64_t kBlock = 64;

// A bound that at least `most` of the logits reach; maxima: of each kBlock of them, and room for a copy behind.
float bound_of_most(float* maxima, int64_t blocks, int64_t most);

// The logits from `bound` on in order of (logit descending, id ascending); `out` has room for `size`. Returns how many.
int64_t tokens_from(float bound, const float* logits, int64_t size, const float* maxima, Token* out);

// One row of DrawKept. total: of exp(score), for top-p without top-k.
struct Rules {
    double best, temperature, total;
    int64_t top_k;        // 0: off
    double top_p, min_p;  // 1, 0: off
};

// A bound that all logits reach which the rules keep, and many of the others do not.
float bound_of_kept(const float* logits, int64_t size, float* maxima, const Rules& rules);

// How many of the first `count` tokens in order (of `size` in all) the rules keep; more than `count` when more tokens
// are needed to tell. All others are below `bound`.
int64_t kept_tokens(const Token* tokens, int64_t count, int64_t size, float bound, const Rules& rules);

// The token of the largest score + noise.
Token drawn(const Token* tokens, int64_t count, double best, double temperature, int64_t seed, int64_t position);

}  // namespace rayline
