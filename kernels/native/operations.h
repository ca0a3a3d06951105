// All operations compiled for one instruction set, by name. Included once by each isa_*.cpp.
#pragma once
#include "functions.h"
#include "attention.h"
#include "elementwise.h"
#include "gemm.h"
#include "isa.h"
#include "rope.h"
#include "quant_gemm.h"
#include "quant_gemm_a8.h"
#include "quant_pack.h"

namespace rayline::RL_ISA {

constexpr NamedOperation kOperations[] = {
    {"Embedding", embedding}, {"RmsNorm", rms_norm},        {"Add", add},
    {"SiluGate", silu_gate},  {"PackLinear", pack_linear},  {"Linear", linear},
    {"WriteKv", write_kv},    {"Attend", attend},
    {"LinearQuantised", linear_quantised},
    {"LinearQuantisedA8", linear_quantised_a8},
    {"PackQuantised", pack_quantised},
    {"PackIntegers", pack_integers},
    {"EmbeddingQuantised", embedding_quantised},
};

}  // namespace rayline::RL_ISA
