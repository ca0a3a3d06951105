// Sixteen fp32 numbers in an array, for any CPU; see lanes_avx512.h. Compilers turn the loops into what the CPU has.
#pragma once
#include <cmath>
#include <cstring>

#include "abi.h"

namespace rayline::RL_ISA {

constexpr int kLanes = 16;
constexpr int kLaneRegisters = 8;  // Lanes that a loop can keep in registers
struct Lanes {
    float v[kLanes];
};

template <class F>
inline Lanes lanewise(F f) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = f(i);
    return out;
}

inline Lanes splat(float a) { return lanewise([&](int) { return a; }); }
inline Lanes load(const float* p) { return lanewise([&](int i) { return p[i]; }); }
inline void store(float* p, Lanes a) { std::memcpy(p, a.v, sizeof a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return lanewise([&](int i) { return a.v[i] + b.v[i]; }); }
inline Lanes operator-(Lanes a, Lanes b) { return lanewise([&](int i) { return a.v[i] - b.v[i]; }); }
inline Lanes operator*(Lanes a, Lanes b) { return lanewise([&](int i) { return a.v[i] * b.v[i]; }); }
inline Lanes operator/(Lanes a, Lanes b) { return lanewise([&](int i) { return a.v[i] / b.v[i]; }); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return lanewise([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes max(Lanes a, Lanes b) { return lanewise([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes min(Lanes a, Lanes b) { return lanewise([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes round_even(Lanes a) { return lanewise([&](int i) { return std::nearbyint(a.v[i]); }); }

inline float as_float(uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
inline uint32_t as_bits(float a) {
    uint32_t out;
    std::memcpy(&out, &a, sizeof out);
    return out;
}
inline Lanes power_of_two(Lanes n) {
    return lanewise([&](int i) { return as_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
}
inline Lanes select_first(int count, Lanes a, Lanes b) {
    return lanewise([&](int i) { return i < count ? a.v[i] : b.v[i]; });
}

inline Lanes select_bits(uint32_t bits, Lanes a, Lanes b) {
    return lanewise([&](int i) { return bits >> i & 1 ? a.v[i] : b.v[i]; });
}

struct WideSums {
    double v[kLanes];
};
inline WideSums no_wide_sums() { return {}; }
inline WideSums operator+(WideSums a, Lanes b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] += static_cast<double>(b.v[i]);
    return a;
}
inline double sum(WideSums a) {
    double total = 0.0;
    for (double each : a.v) total += each;
    return total;
}

inline Lanes zero_below(Lanes x, Lanes bound, Lanes a) {
    return lanewise([&](int i) { return x.v[i] >= bound.v[i] ? a.v[i] : 0.0f; });
}
inline float widen(bf16 a) { return as_float(static_cast<uint32_t>(a) << 16); }
inline bf16 narrow(float a) {
    const uint32_t bits = as_bits(a);
    return static_cast<bf16>(a == a ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}
inline Lanes load_bf16(const bf16* p) { return lanewise([&](int i) { return widen(p[i]); }); }
inline void store_bf16(bf16* p, Lanes a) {
    for (int i = 0; i < kLanes; ++i) p[i] = narrow(a.v[i]);
}
inline Lanes load_bf16(const bf16* p, int count) {
    return lanewise([&](int i) { return i < count ? widen(p[i]) : 0.0f; });
}
inline void store_bf16(bf16* p, Lanes a, int count) {
    for (int i = 0; i < count; ++i) p[i] = narrow(a.v[i]);
}
inline Lanes round_bf16(Lanes a) { return lanewise([&](int i) { return widen(narrow(a.v[i])); }); }

inline void load_pairs(const bf16* p, Lanes& even, Lanes& odd) {
    even = lanewise([&](int i) { return widen(p[2 * i]); });
    odd = lanewise([&](int i) { return widen(p[2 * i + 1]); });
}

inline float sum(Lanes a) {
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    return a.v[0];
}
inline float largest(Lanes a) {
    float best = a.v[0];
    for (float other : a.v) best = other > best ? other : best;
    return best;
}

inline void transpose_pairs(const bf16* rows, int64_t stride, bf16* out, int64_t out_stride) {
    for (int p = 0; p < 16; ++p)
        for (int r = 0; r < 16; ++r)
            std::memcpy(out + p * out_stride + 2 * r, rows + r * stride + 2 * p, 2 * sizeof(bf16));
}

constexpr int kTileRows = 4;
constexpr int tile_lanes(int) { return 1; }

// Always inlined: gcc takes a call of a function that only prefetches for one without effect, and drops it.
[[gnu::always_inline]] inline void prefetch(const void* p) { __builtin_prefetch(p); }
[[gnu::always_inline]] inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

struct Words {
    uint32_t v[kLanes];
};
template <class F>
inline Words wordwise(F f) {
    Words out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = f(i);
    return out;
}
inline Words splat_words(uint32_t a) { return wordwise([&](int) { return a; }); }
inline Words load_words(const uint32_t* p) { return wordwise([&](int i) { return p[i]; }); }
inline void store_words(uint32_t* p, Words a) { std::memcpy(p, a.v, sizeof a.v); }
inline Words operator+(Words a, Words b) { return wordwise([&](int i) { return a.v[i] + b.v[i]; }); }
inline Words operator^(Words a, Words b) { return wordwise([&](int i) { return a.v[i] ^ b.v[i]; }); }
inline void multiply(Words a, Words b, Words& high, Words& low) {
    for (int i = 0; i < kLanes; ++i) {
        const uint64_t product = static_cast<uint64_t>(a.v[i]) * b.v[i];
        high.v[i] = static_cast<uint32_t>(product >> 32);
        low.v[i] = static_cast<uint32_t>(product);
    }
}
inline void transpose_fours(Words (&w)[4]) {
    for (int first = 0; first < kLanes; first += 4)
        for (int i = 0; i < 4; ++i)
            for (int j = i + 1; j < 4; ++j) {
                const uint32_t kept = w[i].v[first + j];
                w[i].v[first + j] = w[j].v[first + i];
                w[j].v[first + i] = kept;
            }
}
inline Lanes upper_bits(Words a) { return lanewise([&](int i) { return static_cast<float>(a.v[i] >> 8); }); }
inline uint32_t at_most(Lanes a, Lanes b) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a.v[i] <= b.v[i]) << i;
    return bits;
}

}  // namespace rayline::RL_ISA
