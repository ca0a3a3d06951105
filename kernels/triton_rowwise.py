"""Products of 8-bit weights and activations in Triton: the numbers of kernels/rowwise.py.

              few rows                     many rows                      exact class
FP8           16 a tile, depth in parts    torch._scaled_mm, or 128       32 a tile, the whole depth in one piece
whole numbers 16 a tile, depth in parts    128 a tile                     as the ordinary class: sums are exact
"""

import torch
from torch import Tensor

from rayline.kernels.rowwise import (
    DTYPES,
    LEAST_FP8_CAPABILITY,
    RoundedRows,
    RowWeight,
    Rowwise,
    fits_scaled_product,
    scaled_product,
)
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_product import Result, Tile
from rayline.kernels.triton_rowwise_code import join_rows, round_rows, row_tiles

FEW_ROWS = 16
MOST_PARTS = 8
LEAST_PART = 512  # inputs that are worth a program of their own
DEPTH = 128  # of a tile
BLOCK = 4096

KINDS: tuple[Rowwise, ...] = ("fp8", "w8a8")
NUMBERS: dict[Rowwise, str] = {"fp8": "*fp8e4nv", "w8a8": "*i8"}
IS_FLOAT: dict[Rowwise, int] = {"fp8": 1, "w8a8": 0}
LEAST_CAPABILITY: dict[Rowwise, int] = {"fp8": LEAST_FP8_CAPABILITY, "w8a8": 0}
FEW, MANY, EXACT = Tile(FEW_ROWS, 64, 4, 4), Tile(128, 128, 8, 3), Tile(32, 64, 4, 4)
_ROUND = {kind: Variant((("BLOCK", BLOCK), ("IS_FLOAT", IS_FLOAT[kind])), warps=8) for kind in KINDS}
_JOIN = {kind: Variant((("BLOCK", 1024), ("IS_FLOAT", IS_FLOAT[kind]))) for kind in KINDS}
_PLACES = {"bias": "*T", "out": "*T", "wide": "*fp32"}


def _variant(tile: Tile, kind: Rowwise) -> Variant:
    return tile.variant(BLOCK_K=DEPTH, IS_FLOAT=IS_FLOAT[kind])


ROUND_ROWS = {
    kind: Kernel(
        round_rows,
        {"x": "*T", "numbers": NUMBERS[kind], "steps": "*fp32", "depth": "i32:16"},
        [_ROUND[kind]],
        LEAST_CAPABILITY[kind],
    )
    for kind in KINDS
}
ROW_TILES = {
    kind: Kernel(
        row_tiles,
        {"x": NUMBERS[kind], "steps": "*fp32", "weight": NUMBERS[kind], "scales": "*fp32"}
        | _PLACES
        | {"parts": "*fp32"}
        | dict.fromkeys(("rows", "leaf_depth", "has_bias", "is_wide", "is_split"), "i32")
        | {"columns": "i32:16", "depth": "i32:16"},
        [_variant(tile, kind) for tile in ((FEW, MANY, EXACT) if kind == "fp8" else (FEW, MANY))],
        LEAST_CAPABILITY[kind],
    )
    for kind in KINDS
}
JOIN_ROWS = {
    kind: Kernel(
        join_rows,
        {"parts": "*fp32", "steps": "*fp32", "scales": "*fp32"}
        | _PLACES
        | dict.fromkeys(("numbers", "count", "has_bias", "is_wide"), "i32")
        | {"columns": "i32:16"},
        [_JOIN[kind]],
    )
    for kind in KINDS
}
KERNELS = (*ROUND_ROWS.values(), *ROW_TILES.values(), *JOIN_ROWS.values())


def rounded(x: Tensor, kind: Rowwise) -> RoundedRows:
    """`rowwise.round_rows` in one launch."""
    numbers = torch.empty(x.shape, dtype=DTYPES[kind], device=x.device)
    steps = torch.empty(len(x), dtype=torch.float32, device=x.device)
    ROUND_ROWS[kind].launch((len(x),), _ROUND[kind], x=x.contiguous(), numbers=numbers, steps=steps, depth=x.shape[1])
    return RoundedRows(numbers, steps, x.dtype)


def linear(
    x: Tensor | RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool, is_exact: bool, units: int
) -> Tensor:
    """x W^T + bias in x's dtype, or in fp32 without bias. x [T, K] -> [T, N].

    is_exact: a row's bits depend on that row alone. units: processors to fill with programs.
    """
    kind = weight.kind
    if isinstance(x, Tensor):
        x = rounded(x, kind)
    count = len(x.numbers)
    is_by_torch = kind == "fp8" and x.numbers.is_cuda and x.dtype == torch.bfloat16 and fits_scaled_product(weight)
    if is_by_torch and count > FEW_ROWS and not is_exact and not is_wide:
        return scaled_product(x.numbers, x.steps, weight, x.dtype, bias)
    is_one_form = is_exact and kind == "fp8"
    tile = EXACT if is_one_form else FEW if count <= FEW_ROWS else MANY
    tiles = tile.number(count, weight.columns)
    parts = 1 if is_one_form or tiles >= 2 * units else max(1, min(MOST_PARTS, weight.depth // LEAST_PART))
    return _multiplied(x, weight, bias, is_wide, tile, parts)


def _multiplied(
    x: RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool, tile: Tile, parts: int
) -> Tensor:
    """The depth is cut into `parts`."""
    kind, rows, columns = weight.kind, len(x.numbers), weight.columns
    result = Result.of(x.numbers, columns, bias, is_wide, x.dtype)
    leaf_depth = -(-weight.depth // (parts * DEPTH)) * DEPTH
    sums = x.steps.new_empty((parts, rows, columns) if parts > 1 else (1, 1, 1))
    places = {"bias": result.out if bias is None else bias, "out": result.out, "wide": result.wide}
    flags = {"has_bias": int(bias is not None), "is_wide": int(is_wide)}
    ROW_TILES[kind].launch(
        (tile.number(rows, columns), parts), _variant(tile, kind), x=x.numbers, steps=x.steps, weight=weight.numbers,
        scales=weight.scales, **places, parts=sums, rows=rows, leaf_depth=leaf_depth, **flags, is_split=int(parts > 1),
        columns=columns, depth=weight.depth,
    )  # fmt: skip
    if parts > 1:
        JOIN_ROWS[kind].launch(
            (-(-rows * columns // _JOIN[kind]["BLOCK"]),), _JOIN[kind], parts=sums, steps=x.steps,
            scales=weight.scales, **places, numbers=rows * columns, count=parts, **flags, columns=columns,
        )  # fmt: skip
    return result.tensor
