"""Products of 8-bit weights and activations in Triton: the numbers of kernels/rowwise.py.

              few rows                     many rows                      exact class
FP8           16 a tile, depth in parts    torch._scaled_mm, or 128       32 a tile, the whole depth in one piece
whole numbers 16 a tile, depth in parts    128 a tile                     as the ordinary class: sums are exact
"""

from dataclasses import dataclass

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
from rayline.kernels.triton_product import Result
from rayline.kernels.triton_rowwise_code import join_rows, round_rows, row_tiles

FEW_ROWS = 16
MOST_PARTS = 8
LEAST_PART = 512  # inputs that are worth a program of their own
DEPTH = 128  # of a tile
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of a program."""

    rows: int
    columns: int
    warps: int
    stages: int

    def variant(self, is_float: bool) -> Variant:
        sizes = (("BLOCK_M", self.rows), ("BLOCK_N", self.columns), ("BLOCK_K", DEPTH), ("IS_FLOAT", int(is_float)))
        return Variant(sizes, self.warps, self.stages)


FEW, MANY, EXACT = Tile(FEW_ROWS, 64, 4, 4), Tile(128, 128, 8, 3), Tile(32, 64, 4, 4)
_ROUND = {is_float: Variant((("BLOCK", BLOCK), ("IS_FLOAT", int(is_float))), warps=8) for is_float in (False, True)}
_JOIN = {is_float: Variant((("BLOCK", 1024), ("IS_FLOAT", int(is_float)))) for is_float in (False, True)}


def _kernels(is_float: bool) -> tuple[Kernel, Kernel, Kernel]:
    """To round, to multiply, to join."""
    number = "*fp8e4nv" if is_float else "*i8"
    least = LEAST_FP8_CAPABILITY if is_float else 0
    places = {"bias": "*T", "out": "*T", "wide": "*fp32"}
    flags = dict.fromkeys(("has_bias", "is_wide"), "i32")
    return (
        Kernel(
            round_rows,
            {"x": "*T", "numbers": number, "steps": "*fp32", "depth": "i32:16"},
            [_ROUND[is_float]],
            least,
        ),
        Kernel(
            row_tiles,
            {"x": number, "steps": "*fp32", "weight": number, "scales": "*fp32"}
            | places
            | {"parts": "*fp32", "rows": "i32", "leaf_depth": "i32"}
            | flags
            | {"is_split": "i32", "columns": "i32:16", "depth": "i32:16"},
            [tile.variant(is_float) for tile in ((FEW, MANY, EXACT) if is_float else (FEW, MANY))],
            least,
        ),
        Kernel(
            join_rows,
            {"parts": "*fp32", "steps": "*fp32", "scales": "*fp32"}
            | places
            | {"numbers": "i32", "count": "i32"}
            | flags
            | {"columns": "i32:16"},
            [_JOIN[is_float]],
        ),
    )


_OF = {"fp8": _kernels(True), "w8a8": _kernels(False)}
KERNELS = (*_OF["fp8"], *_OF["w8a8"])


def rounded(x: Tensor, kind: Rowwise) -> RoundedRows:
    """`rowwise.round_rows` in one launch."""
    numbers = torch.empty(x.shape, dtype=DTYPES[kind], device=x.device)
    steps = torch.empty(len(x), dtype=torch.float32, device=x.device)
    _OF[kind][0].launch(
        (len(x),), _ROUND[kind == "fp8"], x=x.contiguous(), numbers=numbers, steps=steps, depth=x.shape[1]
    )
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
    tiles = -(-count // tile.rows) * -(-weight.columns // tile.columns)
    parts = 1 if is_one_form or tiles >= 2 * units else max(1, min(MOST_PARTS, weight.depth // LEAST_PART))
    return _multiplied(x, weight, bias, is_wide, tile, tiles, parts)


def _multiplied(
    x: RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool, tile: Tile, tiles: int, parts: int
) -> Tensor:
    """The depth is cut into `parts`."""
    is_float, rows, columns = weight.kind == "fp8", len(x.numbers), weight.columns
    _, multiply, join = _OF[weight.kind]
    result = Result.of(x.numbers, columns, bias, is_wide, x.dtype)
    leaf_depth = -(-weight.depth // (parts * DEPTH)) * DEPTH
    sums = x.steps.new_empty((parts, rows, columns) if parts > 1 else (1, 1, 1))
    places = {"bias": result.out if bias is None else bias, "out": result.out, "wide": result.wide}
    flags = {"has_bias": int(bias is not None), "is_wide": int(is_wide)}
    multiply.launch(
        (tiles, parts), tile.variant(is_float), x=x.numbers, steps=x.steps, weight=weight.numbers, scales=weight.scales,
        **places, parts=sums, rows=rows, leaf_depth=leaf_depth, **flags, is_split=int(parts > 1), columns=columns,
        depth=weight.depth,
    )  # fmt: skip
    if parts > 1:
        join.launch(
            (-(-rows * columns // _JOIN[is_float]["BLOCK"]),), _JOIN[is_float], parts=sums, steps=x.steps,
            scales=weight.scales, **places, numbers=rows * columns, count=parts, **flags, columns=columns,
        )  # fmt: skip
    return result.tensor
