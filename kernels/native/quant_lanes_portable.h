// Sixteen 32-bit words in an array; see quant_lanes_avx512.h.
#pragma once
#include <cmath>
#include <cstring>

#include "lanes_portable.h"

namespace rayline::RL_ISA::quant {

struct Words {
    uint32_t v[kLanes];
};
constexpr int kTileRows = 2;
constexpr int kTileLanes = 1;

template <class F>
inline Words wordwise(F f) {
    Words out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = f(i);
    return out;
}

inline Words words(int32_t a) { return wordwise([&](int) { return static_cast<uint32_t>(a); }); }
// A word's byte 0 is the first in memory, on any CPU.
inline Words load_words(const uint8_t* p) {
    return wordwise([&](int i) {
        const uint8_t* b = p + 4 * i;
        return uint32_t{b[0]} | uint32_t{b[1]} << 8 | uint32_t{b[2]} << 16 | uint32_t{b[3]} << 24;
    });
}
inline void store_words(uint8_t* p, Words a) {
    for (int i = 0; i < 4 * kLanes; ++i) p[i] = static_cast<uint8_t>(a.v[i / 4] >> 8 * (i % 4));
}
inline Words operator&(Words a, Words b) { return wordwise([&](int i) { return a.v[i] & b.v[i]; }); }
template <int Bits>
inline Words shift_right(Words a) {
    return wordwise([&](int i) { return a.v[i] >> Bits; });
}
inline Lanes as_lanes(Words a) { return lanewise([&](int i) { return as_float(a.v[i]); }); }
inline Lanes to_lanes(Words a) { return lanewise([&](int i) { return static_cast<float>(static_cast<int32_t>(a.v[i])); }); }

template <int I>
inline Lanes centred_nibble(Words a) {
    return to_lanes(shift_right<4 * I>(a) & words(15)) - splat(8.0f);
}
template <int I>
inline Lanes centred_nibble_at(const uint8_t* p) {
    return centred_nibble<I>(load_words(p));
}
template <int I>
inline Lanes centred_byte_at(const uint8_t* p) {
    return to_lanes(shift_right<8 * I>(load_words(p)) & words(255)) - splat(128.0f);
}

inline void store_bytes(uint8_t* p, Lanes a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(a.v[i])));
}

inline Words dot4(Words acc, Words a, Words b) {
    return wordwise([&](int i) {
        int32_t sum = static_cast<int32_t>(acc.v[i]);
        for (int shift = 0; shift < 32; shift += 8)
            sum += static_cast<int32_t>(a.v[i] >> shift & 255) * static_cast<int8_t>(b.v[i] >> shift & 255);
        return static_cast<uint32_t>(sum);
    });
}

}  // namespace rayline::RL_ISA::quant
