// Weights of 4 or 8 bits in groups along the depth: w = scale (q - zero).
//
// packed  [columns / 64 panels][groups] blocks, one after another as a product reads them. A block is one group of
//         the 64 columns of a panel:
//             [64] words       fp32 scale whose low 4 bits are the zero of 4-bit weights; 8-bit weights have zero 128
//             [group / step][64 columns] words      step = 8 for 4 bits, 4 for 8 bits
//         word, 8 bits    | k + 3 | k + 2 | k + 1 |   k   |
//         word, 4 bits    | k + 7   k + 3 | k + 6   k + 2 | k + 5   k + 1 | k + 4    k  |
//
// A scale keeps 20 of its 24 bits, so scale (q - zero) is exact in fp32, and scales of fp16 checkpoints fit. Columns
// behind the last and inputs behind the depth are zeros.
#pragma once
#include "abi.h"

namespace rayline::RL_ISA::quant {

constexpr int kBlockColumns = 64;
constexpr int kBlockLanes = kBlockColumns / kLanes;
constexpr int kWordBytes = 4;
constexpr int kRowOfWords = kBlockColumns * kWordBytes;
constexpr int32_t kScaleMask = ~15;

template <int Bits>
constexpr int kWordDepth = 32 / Bits;

inline int64_t groups_of(int64_t depth, int64_t group) { return (depth + group - 1) / group; }
inline int64_t block_bytes(int64_t bits, int64_t group) { return kRowOfWords + kBlockColumns * group * bits / 8; }
inline int64_t panels_of(int64_t columns) { return (columns + kBlockColumns - 1) / kBlockColumns; }

// Nibble of a word that holds input k + step.
constexpr int nibble_of(int step) { return step < 4 ? 2 * step : 2 * (step - 4) + 1; }

// q - centre of input k + Step of the words at p.
template <int Bits, int Step>
inline Lanes weight_at(const uint8_t* p) {
    if constexpr (Bits == 4) return centred_nibble_at<nibble_of(Step)>(p);
    else return centred_byte_at<Step>(p);
}

inline Lanes scale_of(Words word) { return as_lanes(word & words(kScaleMask)); }

// For a loop that reads a line here now and goes on line by line.
inline __attribute__((always_inline)) void prefetch_ahead(const uint8_t* p) {
    prefetch_far(p + 16384);
    prefetch(p + 2048);
}
// The part of `bytes` bytes from p on that falls to tiles [first, last) of `all`.
inline __attribute__((always_inline)) void prefetch_part(const uint8_t* p, int64_t bytes, int64_t first, int64_t last, int64_t all) {
    for (int64_t at = bytes * first / all / 64 * 64; at < bytes * last / all; at += 64) prefetch_far(p + at);
}

}  // namespace rayline::RL_ISA::quant
