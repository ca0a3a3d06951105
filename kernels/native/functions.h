// exp and what is built on it, from operations that round alike everywhere: the same bits on any CPU.
#pragma once
#include "abi.h"

namespace rayline::RL_ISA {

// 2^n times a polynomial in f, where x log2(e) = n + f and |f| <= 1/2 (Cephes' coefficients): within 2 units in the
// last place for x in [-87.3, 88]; 0 below, the value at 88 above.
inline Lanes exp(Lanes x) {
    const Lanes low = splat(-87.3f);
    const Lanes inside = min(max(x, low), splat(88.0f));
    const Lanes n = round_even(inside * splat(1.44269504f));
    Lanes r = fma(n, splat(-0.693359375f), inside);
    r = fma(n, splat(2.12194440e-4f), r);
    Lanes p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    return zero_below(x, low, p * power_of_two(n));
}

inline Lanes silu(Lanes x) { return x / (splat(1.0f) + exp(splat(0.0f) - x)); }

}  // namespace rayline::RL_ISA
