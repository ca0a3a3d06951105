// out = x W^T with bf16 weights, for any way to multiply (gemm_fma.h, gemm_dpbf16.h).
//
// packed  [columns / 64 panels][depth / 2][64 columns][2]: a panel holds 64 columns, zeros behind the last, and two
//         neighbours along the depth lie side by side.
//
// Each output is one chain of sums along the depth, cut into `segments` of equal length (1, 2, 4 or 8) that are joined
// pairwise as a binary tree: ((s0 + s1) + (s2 + s3)) + ... So a row's bits do not depend on the rows beside it.
//
// A chunk is one panel. It goes down the depth in blocks, and through all tiles of rows in each (Goto and van de Geijn
// 2008): the first tile leaves the block unpacked to fp32 for the others; sums wait in memory between blocks.
//
//              depth: blocks of 256
//      rows   +-----+-----+-----+--           tile: up to kTileRows rows x tile_lanes(rows) lanes
//      in     | x0  | x1  | x2  |             x: [block][row][256], laid out once for all panels
//      tiles  +-----+-----+-----+--
#pragma once
#include <algorithm>
#include <bit>

#include "abi.h"
#include "team.h"

namespace rayline::RL_ISA {

constexpr int kPanel = 64;
constexpr int kPanelLanes = kPanel / kLanes;
constexpr int kPackedLine = 2 * kLanes;  // packed elements of one lane and one pair
constexpr int kPackedPair = 2 * kPanel;  // packed elements of a panel and one pair
constexpr int kDepthBlock = 256;        // of the depth: 64 columns of it take 64 KiB as fp32
constexpr int kRowBlock = 256;     // rows: their sums and their x of one block take 512 KiB, so the L2 cache holds all
constexpr int kTreeLevels = 4;         // of sums that wait for their neighbour in a tree of 8 segments

constexpr int64_t kSoon = 16 * kPackedPair;  // elements from what is read to what is fetched into the L1 cache

enum class Weights {
    kPacked,    // unpack in registers
    kUnpack,    // and leave the block unpacked
    kUnpacked,  // find it so
};

// One block of the depth for one tile of rows.
template <class Product>
struct ProductTile {
    const typename Product::X* x;  // [rows][Product::kStride]
    const bf16* packed;            // [pairs][64][2]
    float* unpacked;               // [2 pairs][64]
    const bf16* ahead;             // of the next block, what to fetch meanwhile: a few lines with each pair
    int64_t ahead_step;            // elements from pair to pair
    float* sums;                   // [rows][64] on the current level of the tree; the levels below lie before it
    int64_t level_stride;
    int64_t pairs;
    int64_t index;                 // of the tile in its block
    int joins;                     // with the levels below, where a segment ends
    bool is_first;                 // block of its segment
};

// The product of `Rows` rows and `Width` lanes from `lane` on.
template <class Product, int Rows, int Width, Weights kWeights>
void multiply_tile(const ProductTile<Product>& tile, int lane) {
    Lanes acc[Rows][Width];
    float* sums = tile.sums + lane * kLanes;
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Width; ++j)
            acc[i][j] = tile.is_first ? splat(0.0f) : load(sums + i * kPanel + j * kLanes);
    Product::template multiply<Rows, Width, kWeights>(tile, lane, acc);
    for (int join = tile.joins; join > 0; --join) {
        sums -= tile.level_stride;
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) acc[i][j] = load(sums + i * kPanel + j * kLanes) + acc[i][j];
    }
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Width; ++j) store(sums + i * kPanel + j * kLanes, acc[i][j]);
}

// What a call fetches of the next block, line after line: the block is spread over the calls of its first tiles. In any
// other order, or all with the first tile, memory waits while the others compute. A half panel is two lines of each pair.
template <class Product>
void aim_ahead(ProductTile<Product>& tile, const bf16* next, int64_t line, int64_t lines, int first_lane, int lanes) {
    const bool is_whole = lanes == kPanelLanes;
    if (line >= lanes) tile.ahead = tile.packed;
    else tile.ahead = next + (is_whole ? line * tile.pairs : first_lane + line) * kPackedLine;
    tile.ahead_step = line >= lanes ? 0 : is_whole ? lines * kPackedLine : kPackedPair;
}

// Lanes first .. last of the panel.
template <class Product, int Rows, Weights kWeights>
void multiply_lanes(ProductTile<Product> tile, int first, int last) {
    constexpr int kWidth = tile_lanes(Rows);
    const int lanes = last - first, width = std::min(kWidth, lanes), calls = lanes / width;
    const bf16* next = tile.ahead;
    for (int call = 0; call < calls; ++call) {
        int64_t line = tile.index * calls + call;
        if constexpr (kWeights == Weights::kPacked) line *= width;
        aim_ahead(tile, next, line, kWeights == Weights::kPacked ? width : 1, first, lanes);
        const int lane = first + call * width;
        if constexpr (kWidth == kPanelLanes)
            if (width < kWidth) return multiply_tile<Product, Rows, kWidth / 2, kWeights>(tile, lane);
        multiply_tile<Product, Rows, kWidth, kWeights>(tile, lane);
    }
}

template <class Product, Weights kWeights, int Rows = kTileRows>
void multiply_rows(int64_t rows, const ProductTile<Product>& tile, int first, int last) {
    if constexpr (Rows > 0) {
        if (rows == Rows) multiply_lanes<Product, Rows, kWeights>(tile, first, last);
        else multiply_rows<Product, kWeights, Rows - 1>(rows, tile, first, last);
    }
}

template <class Product>
void multiply_tile_rows(int64_t rows, const ProductTile<Product>& tile, int64_t tiles, int first, int last) {
    if constexpr (Product::kUnpacks) {
        if (tiles == 1) multiply_rows<Product, Weights::kPacked>(rows, tile, first, last);
        else if (tile.index == 0) multiply_rows<Product, Weights::kUnpack>(rows, tile, first, last);
        else multiply_rows<Product, Weights::kUnpacked>(rows, tile, first, last);
    } else {
        multiply_rows<Product, Weights::kPacked>(rows, tile, first, last);
    }
}

// A panel, or one half of it: the panels that do not divide by the number of threads are halved.
struct PanelChunks {
    int64_t panels;
    int64_t whole;

    int64_t count() const { return whole + 2 * (panels - whole); }
    int64_t panel(int64_t chunk) const { return chunk < whole ? chunk : whole + (chunk - whole) / 2; }
    int first_lane(int64_t chunk) const {
        return chunk < whole ? 0 : static_cast<int>((chunk - whole) % 2) * kPanelLanes / 2;
    }
    int lanes(int64_t chunk) const { return chunk < whole ? kPanelLanes : kPanelLanes / 2; }
};

// Up to kRowBlock rows of a product.
template <class Product>
struct RowBlock {
    const Linear& a;
    int64_t first;
    int64_t rows;
    int64_t segment;         // its length, even
    int64_t segment_blocks;
    typename Product::X* x;  // [segments * segment_blocks][rows][Product::kStride]

    int64_t blocks() const { return a.segments * segment_blocks; }
    // Where block `b` starts and ends along the depth; the last segments of a small depth are empty.
    int64_t start(int64_t b) const {
        return std::min(a.depth, b / segment_blocks * segment + b % segment_blocks * kDepthBlock);
    }
    int64_t end(int64_t b) const {
        return std::min(std::min(a.depth, start(b) + kDepthBlock), (b / segment_blocks + 1) * segment);
    }

    void lay_out(int64_t b) const {
        for (int64_t row = 0; row < rows; ++row)
            Product::lay_out(a.x + (first + row) * a.depth + start(b), end(b) - start(b),
                             x + (b * rows + row) * Product::kStride);
    }

    // Chunk `chunk`; `soon` is the one that its thread is likely to take next.
    void multiply(const PanelChunks& chunks, int64_t chunk, int64_t soon, float* unpacked, float* sums) const {
        const int first_lane = chunks.first_lane(chunk), last_lane = first_lane + chunks.lanes(chunk);
        const bf16* weight = a.weight + chunks.panel(chunk) * kPanel * a.depth;
        const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
        ProductTile<Product> tile;
        tile.unpacked = unpacked;
        tile.level_stride = rows * kPanel;
        for (int64_t b = 0; b < blocks(); ++b) {
            const auto s = static_cast<uint64_t>(b / segment_blocks);
            tile.packed = weight + start(b) * kPanel;
            tile.pairs = (end(b) - start(b)) / 2;
            tile.is_first = b % segment_blocks == 0;
            tile.joins = (b + 1) % segment_blocks == 0 ? std::countr_one(s) : 0;
            tile.ahead = b + 1 < blocks() ? weight + start(b + 1) * kPanel
                                          : a.weight + chunks.panel(soon) * kPanel * a.depth;
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
                tile.index = t;
                tile.x = x + (b * rows + row) * Product::kStride;
                tile.sums = sums + (std::popcount(s) * rows + row) * kPanel;
                multiply_tile_rows(count, tile, tiles, first_lane, last_lane);
            }
        }
        for (int64_t row = 0; row < rows; ++row)
            for (int lane = first_lane; lane < last_lane; ++lane)
                finish(first + row, chunks.panel(chunk) * kPanel + lane * kLanes, sums + row * kPanel + lane * kLanes);
    }

    void finish(int64_t row, int64_t column, const float* sums) const {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, a.columns - column));
        if (count <= 0) return;
        const int64_t at = row * a.columns + column;
        if (a.out_fp32 != nullptr) {
            std::copy(sums, sums + count, a.out_fp32 + at);
            return;
        }
        const Lanes y = load(sums);
        store_bf16(a.out + at, a.bias == nullptr ? y : y + load_bf16(a.bias + column, count), count);
    }
};

template <class Product>
void multiply_row_block(Team& team, const Linear& a, int64_t first, int64_t rows) {
    constexpr int64_t kWorthSharing = 1 << 15;  // elements of x
    using X = typename Product::X;
    const int64_t segment = (a.depth + 2 * a.segments - 1) / (2 * a.segments) * 2;
    const int64_t segment_blocks = std::max<int64_t>(1, (segment + kDepthBlock - 1) / kDepthBlock);
    RowBlock<Product> block{a, first, rows, segment, segment_blocks, nullptr};
    const auto elements = static_cast<std::size_t>(block.blocks() * rows * Product::kStride);
    block.x = reinterpret_cast<X*>(team.shared(elements * sizeof(X)));
    if (rows * a.depth >= kWorthSharing) team.each(block.blocks(), [&](int64_t b, int) { block.lay_out(b); });
    else for (int64_t b = 0; b < block.blocks(); ++b) block.lay_out(b);

    constexpr int64_t kUnpackedFloats = Product::kUnpacks ? kDepthBlock * kPanel : 0;
    const auto bytes = static_cast<std::size_t>(kUnpackedFloats + kTreeLevels * rows * kPanel) * sizeof(float);
    for (int thread = 0; thread < team.size(); ++thread) team.scratch(thread, bytes);  // memory runs out here or never
    const int64_t panels = (a.columns + kPanel - 1) / kPanel;
    const PanelChunks chunks{panels, panels / team.size() * team.size()};
    team.each(chunks.count(), [&](int64_t chunk, int thread) {
        float* unpacked = reinterpret_cast<float*>(team.scratch(thread, bytes));
        const int64_t soon = std::min(chunk + team.size(), chunks.count() - 1);
        block.multiply(chunks, chunk, soon, unpacked, unpacked + kUnpackedFloats);
    });
}

template <class Product>
void multiply(Team& team, const Step& step, const void* args) {
    const auto& a = *static_cast<const Linear*>(args);
    const int64_t row_blocks = (step.rows + kRowBlock - 1) / kRowBlock;
    for (int64_t i = 0; i < row_blocks; ++i) {
        const int64_t first = step.rows * i / row_blocks;
        multiply_row_block<Product>(team, a, first, step.rows * (i + 1) / row_blocks - first);
    }
}

}  // namespace rayline::RL_ISA
