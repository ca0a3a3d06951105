#include "draw.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace rayline {
namespace {

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
    return count;
}

// Here and not in a header: the linker keeps one copy of these, which every CPU must be able to run.
void select_best(Token* tokens, int64_t count, int64_t most) {
    if (most < count) std::nth_element(tokens, tokens + most - 1, tokens + count, is_better);
}

void put_in_order(Token* tokens, int64_t count) { std::sort(tokens, tokens + count, is_better); }

}  // namespace rayline
