// Where a token's key and value lie in the paged cache. A block holds, for each KV head, tiles of 16 tokens:
//
// keys    [block][KV head][tile][head_dim / 2][16 tokens][2]     one load has a pair of dimensions of all tokens
// values  [block][KV head][tile][8 token pairs][head_dim][2]     one load has 16 dimensions of a pair of tokens
//
// so both products of attention read whole cache lines in order, and neither needs a sum across lanes.
#pragma once
#include "abi.h"

namespace rayline::RL_ISA {

constexpr int kPieceTokens = 16;
static_assert(kPieceTokens == kLanes);

struct PagedLayer {
    int64_t kv_heads, head_dim, block_tokens;

    int64_t piece_elements() const { return kPieceTokens * head_dim; }
    // Offset of the tile with token `place` of a block.
    int64_t piece(int64_t block, int64_t kv_head, int64_t place) const {
        const int64_t block_pieces = block_tokens / kPieceTokens;
        return ((block * kv_heads + kv_head) * block_pieces + place / kPieceTokens) * piece_elements();
    }
};

}  // namespace rayline::RL_ISA
