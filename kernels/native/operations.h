// All operations compiled for one instruction set, by name. Included once by each isa_*.cpp.
#pragma once
#include "attention.h"
#include "collectives.h"
#include "edits.h"
#include "elementwise.h"
#include "functions.h"
#include "gemm_fma.h"
#include "gemm_pack.h"
#include "isa.h"
#include "probe.h"
#include "quant_gemm.h"
#include "quant_gemm_a8.h"
#include "quant_pack.h"
#include "rope.h"
#include "truncation.h"
#include "vocabulary.h"

namespace rayline::RL_ISA {

constexpr NamedOperation kOperations[] = {
    {"ReadProbe", read_probe}, {"FmaProbe", fma_probe}, {"Bf16Probe", bf16_probe}, {"Int8Probe", int8_probe},
    {"Embedding", embedding}, {"RmsNorm", rms_norm},        {"Add", add},
    {"SiluGate", silu_gate},  {"PackLinear", pack_linear},  {"Linear", linear},
    {"WriteKv", write_kv},    {"Attend", attend},      {"Widen", widen_rows},
    {"SumPartials", sum_partials}, {"GatherColumns", gather_columns},
    {"BestToken", best_token}, {"TopTokens", top_tokens}, {"ExpSum", exp_sum}, {"DrawToken", draw_token},
    {"DrawKept", draw_kept}, {"Logprobs", logprobs}, {"LogSoftmax", log_softmax},
    {"EditLogits", edit_logits}, {"RestoreLogits", restore_logits},
    {"MaskLogits", mask_logits}, {"RestoreRows", restore_rows},
    {"LinearQuantised", quant::linear_quantised},
    {"LinearQuantisedA8", quant::linear_quantised_a8},
    {"PackQuantised", quant::pack_quantised},
    {"PackIntegers", quant::pack_integers},
    {"EmbeddingQuantised", quant::embedding_quantised},
};

}  // namespace rayline::RL_ISA
