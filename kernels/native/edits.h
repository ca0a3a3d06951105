// Rows of logits changed in place before tokens are chosen, and put back afterwards: kernels/edits.py says the same in
// torch. Each rank changes its part of the vocabulary.
#pragma once
#include <cmath>
#include <cstring>

#include "abi.h"
#include "team.h"
#include "vocabulary.h"

namespace rayline::RL_ISA {

inline float penalised(float logit, float count, float repetition, float frequency, float presence) {
    const float repeated = logit > 0.0f ? logit / repetition : logit * repetition;
    if (!(count > 0.0f)) return repeated;
    const float less = repeated - frequency * count;
    return less - presence;
}

inline void edit_logits(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const EditLogits*>(args);
    team.each(step.rows, [&](int64_t row, int) {
        float* logits = a.logits + a.index[row] * a.width;
        for (int64_t i = a.seen_starts[row]; i < a.seen_starts[row + 1]; ++i) {
            const int64_t at = a.seen[i] - a.first;
            if (at < 0 || at >= a.size) continue;
            a.seen_saved[i] = logits[at];
            logits[at] = penalised(logits[at], a.counts[i], a.repetition[row], a.frequency[row], a.presence[row]);
        }
        for (int64_t i = a.added_starts[row]; i < a.added_starts[row + 1]; ++i) {
            const int64_t at = a.added[i] - a.first;
            if (at < 0 || at >= a.size) continue;
            a.added_saved[i] = logits[at];
            logits[at] = a.bias[i] == -kInfinity ? -kInfinity : logits[at] + a.bias[i];
        }
    });
}

// Backwards, for an id may have been changed more than once.
inline void restore_logits(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const RestoreLogits*>(args);
    team.each(step.rows, [&](int64_t row, int) {
        float* logits = a.logits + a.index[row] * a.width;
        const auto restore = [&](const int64_t* starts, const int64_t* ids, const float* saved) {
            for (int64_t i = starts[row + 1]; i-- > starts[row];) {
                const int64_t at = ids[i] - a.first;
                if (at >= 0 && at < a.size) logits[at] = saved[i];
            }
        };
        restore(a.added_starts, a.added, a.added_saved);
        restore(a.seen_starts, a.seen, a.seen_saved);
    });
}

// Sixteen bits from bit `first` on, a multiple of 16; zeros behind the last word.
inline uint32_t mask_bits(const int32_t* mask, int64_t words, int64_t first) {
    if (first / 32 >= words) return 0;
    return static_cast<uint32_t>(mask[first / 32]) >> (first % 32) & 0xffffu;
}

inline void keep_only(float* logits, int64_t size, int64_t at) {
    const float kept = at >= 0 && at < size ? logits[at] : 0.0f;
    for (int64_t i = 0; i < size; ++i) logits[i] = -kInfinity;
    if (at >= 0 && at < size) logits[at] = kept == -kInfinity ? 0.0f : kept;
}

inline void mask_logits(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const MaskLogits*>(args);
    team.each(step.rows, [&](int64_t row, int) {
        float* logits = a.logits + a.index[row] * a.width;
        float* saved = a.saved + row * a.size;
        const int32_t* mask = a.masks + row * a.words;
        const Lanes none = splat(-kInfinity);
        const int64_t whole = a.size / kLanes * kLanes;
        for (int64_t i = 0; i < whole; i += kLanes) {
            const Lanes here = load(logits + i);
            store(saved + i, here);
            const uint32_t bits = mask_bits(mask, a.words, a.first + i);
            if (bits != 0xffffu) store(logits + i, select_bits(bits, here, none));
        }
        for (int64_t i = whole; i < a.size; ++i) {
            saved[i] = logits[i];
            if ((mask_bits(mask, a.words, a.first + whole) >> (i - whole) & 1) == 0) logits[i] = -kInfinity;
        }
        if (a.forced[row] >= 0) keep_only(logits, a.size, a.forced[row] - a.first);
    });
}

inline void restore_rows(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const RestoreRows*>(args);
    team.each(step.rows, [&](int64_t row, int) {
        std::memcpy(a.logits + a.index[row] * a.width, a.saved + row * a.size, static_cast<std::size_t>(a.size) * sizeof(float));
    });
}

}  // namespace rayline::RL_ISA
