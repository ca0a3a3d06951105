// What this machine can do at most: read bandwidth and arithmetic rates, against which the other operations are held.
#pragma once
#include <algorithm>

#include "abi.h"
#include "team.h"

namespace rayline {

// Independent chains of dot products in 512-bit registers, each `rounds` long (probe.cpp). Return the multiplications
// and additions done, 0 where this CPU has no such instruction.
int64_t chain_bf16_dots(int64_t rounds);
int64_t chain_int8_dots(int64_t rounds);

namespace RL_ISA {

inline void read_probe(Team& team, const Step&, const void* args) {
    constexpr int kChains = 8;
    constexpr int64_t kBlock = kChains * kLanes;
    constexpr int64_t kAhead = 1024;  // 4 KiB; the prefetchers of the hardware stop at the end of a page
    const auto& a = *static_cast<const ReadProbe*>(args);
    team.each((a.size + a.chunk - 1) / a.chunk, [&](int64_t chunk, int) {
        const int64_t last = std::min(a.size, (chunk + 1) * a.chunk);
        Lanes total[kChains];
        for (auto& lanes : total) lanes = splat(0.0f);
        for (int64_t i = chunk * a.chunk; i + kBlock <= last; i += kBlock)
            for (int j = 0; j < kChains; ++j) {
                prefetch(a.data + i + kAhead + j * kLanes);
                total[j] = total[j] + load(a.data + i + j * kLanes);
            }
        for (int j = 1; j < kChains; ++j) total[0] = total[0] + total[j];
        a.sums[chunk] = sum(total[0]);
    });
}

// As many chains as there are registers for: one Lanes is a register where it is aligned as one, or else several.
inline void fma_probe(Team& team, const Step&, const void* args) {
    constexpr int kChains = alignof(Lanes) == sizeof(Lanes) ? 12 : 5;
    const auto& a = *static_cast<const FmaProbe*>(args);
    team.each(a.chunks, [&](int64_t chunk, int) {
        const Lanes factor = splat(0.5f), term = splat(static_cast<float>(chunk));
        Lanes total[kChains];
        for (auto& lanes : total) lanes = term;
        for (int64_t round = 0; round < a.rounds; ++round)
            for (auto& lanes : total) lanes = fma(lanes, factor, term);
        for (int j = 1; j < kChains; ++j) total[0] = total[0] + total[j];
        a.results[chunk] = sum(total[0]);
        a.operations[chunk] = a.rounds * kChains * kLanes * 2;
    });
}

inline void bf16_probe(Team& team, const Step&, const void* args) {
    const auto& a = *static_cast<const Bf16Probe*>(args);
    team.each(a.chunks, [&](int64_t chunk, int) { a.operations[chunk] = chain_bf16_dots(a.rounds); });
}

inline void int8_probe(Team& team, const Step&, const void* args) {
    const auto& a = *static_cast<const Int8Probe*>(args);
    team.each(a.chunks, [&](int64_t chunk, int) { a.operations[chunk] = chain_int8_dots(a.rounds); });
}

}  // namespace RL_ISA
}  // namespace rayline
