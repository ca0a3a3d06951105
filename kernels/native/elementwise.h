// The operations between the products: embedding, RMS norm, addition, SiLU gate. bf16 in and out, fp32 between,
// rounded to bf16 where transformers rounds. One chunk is one row, so a row's bits depend on nothing else.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "abi.h"
#include "functions.h"
#include "gemm.h"
#include "team.h"

namespace rayline::RL_ISA {

// Calls body(row) for all rows; several small rows make one chunk, so that few are worth a second thread.
template <class Body>
void each_row(Team& team, int64_t rows, int64_t row_elements, Body&& body) {
    constexpr int64_t kChunkElements = 8192;
    const int64_t chunk_rows = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, row_elements));
    team.each((rows + chunk_rows - 1) / chunk_rows, [&](int64_t chunk, int) {
        const int64_t last = std::min(rows, (chunk + 1) * chunk_rows);
        for (int64_t row = chunk * chunk_rows; row < last; ++row) body(row);
    });
}

// Calls body(i, count) for the lanes of [0, dim): all but the last time with count = kLanes.
template <class Body>
void each_lanes(int64_t dim, Body&& body) {
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) body(i, kLanes);
    if (i < dim) body(i, static_cast<int>(dim - i));
}

inline void embedding(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const Embedding*>(args);
    const std::size_t bytes = static_cast<std::size_t>(a.dim) * sizeof(bf16);
    each_row(team, step.rows, a.dim, [&](int64_t row) {
        const int64_t id = a.ids[row] - a.first;
        bf16* out = a.out + row * a.dim;
        if (id < 0 || id >= a.size) {
            std::memset(out, 0, bytes);
        } else if (a.packed == 0) {
            std::memcpy(out, a.table + id * a.dim, bytes);
        } else {
            const bf16* column = a.table + id / kPanel * kPanel * a.dim + id % kPanel * 2;
            for (int64_t k = 0; k < a.dim; k += 2) std::memcpy(out + k, column + k * kPanel, 2 * sizeof(bf16));
        }
    });
}

inline void widen_rows(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const Widen*>(args);
    each_row(team, step.rows, a.dim, [&](int64_t row) {
        for (int64_t i = row * a.dim; i < (row + 1) * a.dim; ++i)
            a.out[i] = std::bit_cast<float>(static_cast<uint32_t>(a.x[i]) << 16);
    });
}

// x / rms(x) * weight (Zhang and Sennrich 2019), rounded before the weight is applied.
inline void normalise(const bf16* x, const bf16* weight, bf16* out, int64_t dim, float eps) {
    Lanes squares = splat(0.0f);
    each_lanes(dim, [&](int64_t i, int count) {
        const Lanes v = load_bf16(x + i, count);
        squares = fma(v, v, squares);
    });
    const Lanes inverse = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + eps));
    each_lanes(dim, [&](int64_t i, int count) {
        const Lanes scaled = round_bf16(load_bf16(x + i, count) * inverse);
        store_bf16(out + i, scaled * load_bf16(weight + i, count), count);
    });
}

inline void rms_norm(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const RmsNorm*>(args);
    each_row(team, step.rows, a.dim, [&](int64_t row) {
        const int64_t at = row * a.dim;
        const bf16* x = a.x + at;
        if (a.residual != nullptr) {
            each_lanes(a.dim, [&](int64_t i, int count) {
                store_bf16(a.sum + at + i, load_bf16(x + i, count) + load_bf16(a.residual + at + i, count), count);
            });
            x = a.sum + at;
        }
        normalise(x, a.weight, a.out + at, a.dim, static_cast<float>(a.eps));
    });
}

inline void add(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const Add*>(args);
    each_row(team, step.rows, a.dim, [&](int64_t row) {
        each_lanes(a.dim, [&](int64_t i, int count) {
            const int64_t at = row * a.dim + i;
            store_bf16(a.out + at, load_bf16(a.x + at, count) + load_bf16(a.y + at, count), count);
        });
    });
}

// SwiGLU (Shazeer 2020): silu(gate) * up.
inline void silu_gate(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const SiluGate*>(args);
    each_row(team, step.rows, a.dim, [&](int64_t row) {
        const bf16* gate = a.gate_up + row * 2 * a.dim;
        each_lanes(a.dim, [&](int64_t i, int count) {
            const Lanes opened = round_bf16(silu(load_bf16(gate + i, count)));
            store_bf16(a.out + row * a.dim + i, opened * load_bf16(gate + a.dim + i, count), count);
        });
    });
}

}  // namespace rayline::RL_ISA
