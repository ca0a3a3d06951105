// A row's draw in plain fp64, the same bits for every compiler and CPU. kernels/philox.py and candidates.py say the same
// in torch.
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

// (logit - best) / temperature; 0 where a logit equals the best, infinite ones too.
inline double score_of(float logit, double best, double temperature) {
    return logit == best ? 0.0 : (logit - best) / temperature;
}

// Gumbel noise -log(-log(1 - v)) of a word x: v = (x + 1/2) 2^-32, and 1 - v is exact.
inline double gumbel(uint32_t word) {
    return -log_of(-log_of(1.0 - (static_cast<double>(word) + 0.5) * 0x1p-32));
}

struct Token {
    double value;
    int64_t id;
};

constexpr int64_t kBlock = 64;

// A bound that at least `most` of the logits reach; maxima: of each kBlock of them, and room for a copy behind.
float bound_of_most(float* maxima, int64_t blocks, int64_t most);

// Logits go by (logit descending, id ascending).
inline bool is_better(const Token& a, const Token& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

// The logits from `bound` on, by id; `out` has room for `size`. Returns how many.
int64_t tokens_from(float bound, const float* logits, int64_t size, const float* maxima, Token* out);

// The `most` best of them come first, the last of these in its place.
void select_best(Token* tokens, int64_t count, int64_t most);

void put_in_order(Token* tokens, int64_t count);

}  // namespace rayline
