"""Weights of 4 or 8 bits in Triton, with exact activations: the numbers of kernels/quantise.py in another order.

class      rows a tile     depth
ordinary   16, or 128      few rows: up to 8 leaves, each by programs of its own; many: one chain
exact      32              the leaves the weight was laid out with, joined as a tree
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayline.kernels.backend import Weight
from rayline.kernels.native_quant import BITS, DEFAULT_GROUPS, Weights
from rayline.kernels.quantise import Quantised, quantise
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_product import Result, Tile
from rayline.kernels.triton_quant_code import byte_rows, quantised_tiles

FEW_ROWS = 16
LEAST_LEAF_GROUPS = 4  # that are worth a program of their own
MOST_LEAVES = 8


FEW, MANY, EXACT = Tile(FEW_ROWS, 64, 4, 4), Tile(128, 128, 8, 3), Tile(32, 64, 4, 4)
_BYTES = Variant((("GROUP", DEFAULT_GROUPS["int8"]),), warps=1)


def _variant(tile: Tile, weights: str) -> Variant:
    return tile.variant(BITS=BITS[weights], GROUP=DEFAULT_GROUPS[weights], JOIN=int(tile is EXACT))


QUANTISED_TILES = Kernel(
    quantised_tiles,
    {"x": "*T", "numbers": "*u8", "scales": "*fp32", "zeros": "*u8", "bias": "*T", "out": "*T", "wide": "*fp32"}
    | dict.fromkeys(("rows", "leaves", "leaf_groups", "has_bias", "is_wide", "is_split"), "i32")
    | {"columns": "i32:16", "depth": "i32:16"},
    [_variant(tile, weights) for tile in (FEW, MANY, EXACT) for weights in BITS],
)
BYTE_ROWS = Kernel(
    byte_rows,
    {"ids": "*i64", "numbers": "*u8", "scales": "*fp32", "out": "*T"}
    | dict.fromkeys(("first", "columns", "depth"), "i32:16"),
    [_BYTES],
)
KERNELS = (QUANTISED_TILES, BYTE_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedWeight(Weight):
    """`data` as the kernels read it: numbers uint8, scales fp32, zeros uint8 (those of 8 bits are not read).

    dtype: of the weight before it was rounded.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor
    dtype: torch.dtype


def pack(parts: Sequence[Tensor], weights: Weights, segments: int) -> QuantisedWeight:
    """Quantise and lay out the rows [N_i, K] of parts of any float dtype.

    segments: 1, 2, 4 or 8 runs of ceil(groups / segments) groups, joined as a tree (kernels/tree.py); 0: the depth is
    cut nowhere else, so as many as there are groups for.
    """
    bits, group = BITS[weights], DEFAULT_GROUPS[weights]
    rounded = [quantise(part, bits, group) for part in parts]
    numbers = torch.cat([_numbers(each) for each in rounded], dim=1)
    scales = torch.cat([each.scales for each in rounded]).T.contiguous()
    zeros = [each.zeros for each in rounded if each.zeros is not None]
    flat = [numbers.flatten(), scales.flatten().view(torch.uint8)]
    if zeros:
        flat.append(torch.cat(zeros).T.flatten())
    sizes = [len(part) for part in flat]
    # Triton reads 16 bytes at once where a pointer allows it.
    data = torch.cat([functional.pad(part, (0, -len(part) % 16)) for part in flat])
    pieces = torch.split(data, [size + -size % 16 for size in sizes])
    views = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
    groups, columns = scales.shape
    leaves = segments or (MOST_LEAVES if groups >= MOST_LEAVES else 1)
    return QuantisedWeight(
        data, columns, parts[0].shape[1], leaves, weights, group,
        numbers=views[0], scales=views[1].view(torch.float32), zeros=views[-1], dtype=parts[0].dtype,
    )  # fmt: skip


def _numbers(quantised: Quantised) -> Tensor:
    """uint8 [groups, N, bytes of a group]; inputs behind the last are 0."""
    columns, depth = quantised.q.shape
    group = quantised.group
    zeros = torch.full_like(quantised.scales, 128) if quantised.zeros is None else quantised.zeros
    groups = zeros.shape[1]
    whole = zeros.to(torch.uint8)[:, :, None].expand(columns, groups, group).flatten(1).clone()
    whole[:, :depth] = quantised.q
    grouped = whole.view(columns, groups, group).transpose(0, 1)
    if quantised.bits == 8:
        return grouped.contiguous()
    low, high = grouped.chunk(2, dim=2)
    return (low | (high << 4)).contiguous()


def linear(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None, is_wide: bool, is_exact: bool, units: int
) -> Tensor:
    """x W^T + bias in x's dtype, or in fp32 without bias. x [T, K] -> [T, N].

    is_exact: a row's bits depend on that row alone. units: processors to fill with programs.
    """
    rows, columns = len(x), weight.columns
    tile = EXACT if is_exact else FEW if rows <= FEW_ROWS else MANY
    result = Result.of(x, columns, bias, is_wide)
    tiles = tile.number(rows, columns)
    groups = -(-weight.depth // weight.group)
    is_scarce = tiles < 2 * units
    leaves = weight.segments if is_exact else min(MOST_LEAVES, groups // LEAST_LEAF_GROUPS) if is_scarce else 1
    is_split = is_scarce and leaves > 1
    wide = x.new_empty((leaves, rows, columns), dtype=torch.float32) if is_split else result.wide
    QUANTISED_TILES.launch(
        (tiles, leaves if is_split else 1), _variant(tile, weight.format),
        x=x, numbers=weight.numbers, scales=weight.scales, zeros=weight.zeros,
        bias=result.out if bias is None else bias, out=result.out, wide=wide,
        rows=rows, leaves=leaves, leaf_groups=-(-groups // max(leaves, 1)), has_bias=int(bias is not None),
        is_wide=int(is_wide), is_split=int(is_split), columns=columns, depth=weight.depth,
    )  # fmt: skip
    if is_split:
        result.join(wide)
    return result.tensor


def embedding(ids: Tensor, weight: QuantisedWeight, first: int) -> Tensor:
    """`Kernels.embedding` of a weight of 8 bits, rounded to its dtype."""
    out = torch.empty((len(ids), weight.depth), dtype=weight.dtype, device=ids.device)
    BYTE_ROWS.launch(
        (len(ids), -(-weight.depth // weight.group)), _BYTES,
        ids=ids, numbers=weight.numbers, scales=weight.scales, out=out,
        first=first, columns=weight.columns, depth=weight.depth,
    )  # fmt: skip
    return out
