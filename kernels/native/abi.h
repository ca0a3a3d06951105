// What crosses the border between Python and the kernels: plain structs of 8-byte fields.
//
// kernels/library.py reads the structs below from this file, so their fields are written once. A pointer to const
// is read, another one is written; the recorder plans buffers by that. `rows` of an operation is Step::rows.
#pragma once
#include <cstdint>

namespace rayline {

using bf16 = std::uint16_t;
using std::int32_t;
using std::int64_t;
using std::uint8_t;

class Team;
class Exchange;

// One forward pass, as ForwardContext draws it.
struct Step {
    int64_t rows;              // rows that each operation computes
    int64_t sequences;         // S
    const int64_t* positions;  // [rows]
    const int64_t* slots;      // [rows]
    const int64_t* starts;     // [S + 1]
    const int64_t* lens;       // [S]
    const int32_t* tables;     // [S, table_width]
    int64_t table_width;
};

// Probes of the machine (probe.h): each sums up or multiplies as fast as it can, chunk by chunk.
struct ReadProbe {
    const float* data;  // [size]
    float* sums;        // [ceil(size / chunk)]
    int64_t size;
    int64_t chunk;      // elements that one thread reads in a row
};

struct FmaProbe {
    int64_t chunks;
    int64_t rounds;       // steps of each chain in a chunk
    int64_t* operations;  // [chunks]: multiplications and additions done
    float* results;       // [chunks]
};

struct Bf16Probe {
    int64_t chunks;
    int64_t rounds;
    int64_t* operations;  // [chunks], zeros where the CPU has no bf16 dot product
};

struct Int8Probe {
    int64_t chunks;
    int64_t rounds;
    int64_t* operations;  // [chunks], zeros where the CPU has no int8 dot product
};

struct Embedding {
    const int64_t* ids;   // [rows]
    const bf16* table;    // [size, dim]: the rows first .. first + size of the vocabulary
    bf16* out;            // [rows, dim]; zeros for an id outside
    int64_t dim;
    int64_t first;
    int64_t size;
    int64_t packed;       // 1: the table is packed as gemm.h says
};

struct Widen {
    const bf16* x;  // [rows, dim]
    float* out;     // the same numbers
    int64_t dim;
};

struct RmsNorm {
    const bf16* x;         // [rows, dim]
    const bf16* residual;  // [rows, dim] or null
    const bf16* weight;    // [dim]
    bf16* out;             // [rows, dim]
    bf16* sum;             // [rows, dim]: x + residual; null without residual
    int64_t dim;
    double eps;
};

struct Add {
    const bf16* x;  // [rows, dim]
    const bf16* y;
    bf16* out;
    int64_t dim;
};

struct SiluGate {
    const bf16* gate_up;  // [rows, 2 dim], gate first
    bf16* out;            // [rows, dim]
    int64_t dim;
};

// out = x W^T (+ bias). W is packed as gemm.h says; bf16 or fp32 comes out.
struct Linear {
    const bf16* x;       // [rows, depth]
    const bf16* weight;  // packed [columns, depth]
    const bf16* bias;    // [columns] or null
    bf16* out;           // [rows, columns] or null
    float* out_fp32;     // the same, unrounded, or null
    int64_t columns;
    int64_t depth;       // even
    int64_t segments;    // leaves of the summation tree along the depth
};

struct PackLinear {
    const bf16* source;  // [columns, depth], rows `stride` elements apart
    bf16* packed;        // the whole matrix
    int64_t columns;
    int64_t depth;       // even
    int64_t stride;
    int64_t first;       // column of the whole matrix where these begin
};

// Queries and keys normed and turned, keys and values put into the cache as attention_cache.h says.
struct WriteKv {
    const bf16* qkv;     // [rows, (heads + 2 kv_heads) head_dim]
    const bf16* q_norm;  // [head_dim] or null
    const bf16* k_norm;  // [head_dim] or null
    const float* cos;    // [positions, head_dim / 2]
    const float* sin;
    bf16* q;             // [rows, heads, head_dim]
    bf16* keys;          // paged
    bf16* values;
    int64_t heads;
    int64_t kv_heads;
    int64_t head_dim;    // a multiple of 16
    int64_t block_tokens;  // a multiple of 16
    double eps;
};

// softmax(q k^T scale) v over the keys at a query's own and earlier positions.
struct Attend {
    const bf16* q;       // [rows, heads, head_dim]
    const bf16* keys;    // paged
    const bf16* values;
    const float* sinks;  // [heads] or null
    bf16* out;           // [rows, heads, head_dim]
    int64_t heads;
    int64_t kv_heads;
    int64_t head_dim;
    int64_t block_tokens;
    int64_t window;      // newest keys a query sees, itself included; 0 for all
    double scale;
    double soft_cap;     // 0 for none
};

// out = the ranks' partials joined pairwise by rank, + bias.
struct SumPartials {
    Exchange* exchange;
    const float* partial;  // [rows, dim]
    const bf16* bias;      // [dim] or null
    bf16* out;             // [rows, dim]
    int64_t dim;
};

// The ranks' columns side by side.
struct GatherColumns {
    Exchange* exchange;
    const float* shard;  // [rows, columns]
    float* out;          // [rows, ranks * columns]
    int64_t columns;
};

// Sampling. Each works on the rows `index` [rows] of logits [.., width], of which the columns 0 .. size are the
// vocabulary's ids from `first` on. `found` holds pairs (value, id); values that are equal go by the lowest id.

// The largest logit.
struct BestToken {
    const float* logits;
    const int64_t* index;
    double* found;  // [rows, 2]
    int64_t width;
    int64_t size;
    int64_t first;
};

// The `most` largest logits in order; pairs (-inf, 0) where there are fewer.
struct TopTokens {
    const float* logits;
    const int64_t* index;
    double* found;  // [rows, most, 2]
    int64_t most;
    int64_t width;
    int64_t size;
    int64_t first;
};

// Sum of exp((logit - best) / temperature) over segments of a fixed length, joined pairwise.
struct ExpSum {
    const float* logits;
    const int64_t* index;
    const double* best;         // [rows]
    const double* temperature;  // [rows]
    double* sum;                // [rows]
    int64_t width;
    int64_t size;
    int64_t segment;
};

// The largest (logit - best) / temperature + noise; best is that of the whole vocabulary.
struct DrawToken {
    const float* logits;
    const int64_t* index;
    const double* best;
    const double* temperature;
    const int64_t* seeds;      // [rows]
    const int64_t* positions;  // [rows]
    double* found;             // [rows, 2]
    int64_t width;
    int64_t size;
    int64_t first;
};

// The same over what the rules of kernels/truncation.py keep of whole rows.
struct DrawKept {
    const float* logits;
    const int64_t* index;
    const double* best;
    const double* temperature;
    const int64_t* seeds;
    const int64_t* positions;
    const double* top_n_sigma;  // 0: off
    const int64_t* top_k;       // 0: off
    const double* top_p;        // 1: off
    const double* least_score;  // of min-p; -inf: off
    const double* typical_p;    // 1: off
    double* found;              // [rows, 2]
    int64_t width;
    int64_t size;
};

// logit - best - log(total), rounded to fp32.
struct Logprobs {
    const double* logits;  // [rows, columns]
    const double* best;    // [rows]
    const double* total;   // [rows]
    double* out;           // [rows, columns]
    int64_t columns;
};

// The same of all logits: of a beam's tokens.
struct LogSoftmax {
    const float* logits;
    const int64_t* index;
    const double* best;
    const double* total;
    float* out;  // [rows, size]
    int64_t width;
    int64_t size;
};

// Penalties, biases and bans of kernels/edits.py, in place: those of row r from starts[r] to starts[r + 1]. What stood
// in their places is saved.
struct EditLogits {
    float* logits;
    const int64_t* index;
    const int64_t* seen_starts;   // [rows + 1]
    const int64_t* seen;          // ids under penalties
    const float* counts;          // of each in the output
    const float* repetition;      // [rows]
    const float* frequency;       // [rows]
    const float* presence;        // [rows]
    const int64_t* added_starts;  // [rows + 1]
    const int64_t* added;         // ids
    const float* bias;            // of each; -inf bans
    float* seen_saved;
    float* added_saved;
    int64_t width;
    int64_t size;
    int64_t first;
};

struct RestoreLogits {
    float* logits;
    const int64_t* index;
    const int64_t* seen_starts;
    const int64_t* seen;
    const int64_t* added_starts;
    const int64_t* added;
    const float* seen_saved;
    const float* added_saved;
    int64_t width;
    int64_t size;
    int64_t first;
};

// -inf where a mask's bit is 0, and everywhere but at the forced id. The rows are saved before.
struct MaskLogits {
    float* logits;
    const int64_t* index;
    const int32_t* masks;   // [rows, words]: bit i % 32 of word i / 32 is id i
    const int64_t* forced;  // [rows]; -1: none
    float* saved;           // [rows, size]
    int64_t words;
    int64_t width;
    int64_t size;
    int64_t first;
};

struct RestoreRows {
    float* logits;
    const int64_t* index;
    const float* saved;
    int64_t width;
    int64_t size;
};

// out = x W^T (+ bias). W is packed as quant_layout.h says; bf16 or fp32 comes out.
struct LinearQuantised {
    const bf16* x;          // [rows, depth]
    const uint8_t* weight;  // packed [columns, depth]
    const bf16* bias;       // [columns] or null
    bf16* out;              // [rows, columns] or null
    float* out_fp32;        // the same, unrounded, or null
    int64_t columns;
    int64_t depth;
    int64_t segments;       // leaves of the summation tree, each a whole number of groups
    int64_t bits;           // 4 or 8
    int64_t group;          // 32, 64 or 128
};

// The same with activations rounded to 8 bits a row and group.
struct LinearQuantisedA8 {
    const bf16* x;          // [rows, depth]
    const uint8_t* weight;  // packed [columns, depth]
    const bf16* bias;       // [columns] or null
    bf16* out;              // [rows, columns] or null
    float* out_fp32;        // the same, unrounded, or null
    int64_t columns;
    int64_t depth;
    int64_t segments;       // leaves of the summation tree, each a whole number of groups
    int64_t bits;           // 4 or 8
    int64_t group;          // 32, 64 or 128
};

struct PackQuantised {
    const bf16* source;  // [columns, depth], rows `stride` elements apart
    uint8_t* packed;     // the whole weight: `columns` of it are laid out, from column `first` on
    int64_t columns;
    int64_t depth;
    int64_t stride;
    int64_t first;
    int64_t bits;
    int64_t group;
};

struct PackIntegers {
    const uint8_t* q;       // [columns, depth]
    const float* scales;    // [columns, groups]
    const uint8_t* zeros;   // [columns, groups]; null for 8 bits, whose zero is 128
    uint8_t* packed;
    int64_t columns;
    int64_t depth;
    int64_t first;
    int64_t bits;
    int64_t group;
};

struct EmbeddingQuantised {
    const int64_t* ids;    // [rows]
    const uint8_t* table;  // packed [size, dim]: the rows first .. first + size of the vocabulary
    bf16* out;             // [rows, dim]; zeros for an id outside
    int64_t dim;
    int64_t first;
    int64_t size;
    int64_t bits;
    int64_t group;
};

using Operation = void (*)(Team&, const Step&, const void* args);

struct Call {
    Operation operation;
    const void* args;
};

}  // namespace rayline
