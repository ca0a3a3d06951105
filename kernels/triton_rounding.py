"""Activations rounded to 8 bits in the launch that makes them."""

import torch
from torch import Tensor

from rayline.kernels.rowwise import DTYPES, RoundedRows, Rowwise
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_rounding_code import gate_and_round_rows, norm_and_round_rows
from rayline.kernels.triton_rowwise import IS_FLOAT, KINDS, LEAST_CAPABILITY, NUMBERS

_NORM_BLOCK, _GATE_BLOCK = 1024, 4096
_GATE = {kind: Variant((("BLOCK", _GATE_BLOCK), ("IS_FLOAT", IS_FLOAT[kind])), warps=8) for kind in KINDS}


def _norm_variant(kind: Rowwise, has_residual: bool) -> Variant:
    sizes = (("BLOCK", _NORM_BLOCK), ("IS_FLOAT", IS_FLOAT[kind]))
    return Variant(sizes, absent=() if has_residual else ("residual", "total"))


NORM_AND_ROUND = {
    kind: Kernel(
        norm_and_round_rows,
        dict.fromkeys(("x", "residual", "weight"), "*T")
        | {"numbers": NUMBERS[kind], "steps": "*fp32", "total": "*T", "eps": "fp32", "dim": "i32:16"},
        [_norm_variant(kind, has_residual) for has_residual in (False, True)],
        LEAST_CAPABILITY[kind],
    )
    for kind in KINDS
}
GATE_AND_ROUND = {
    kind: Kernel(
        gate_and_round_rows,
        {"gate_up": "*T", "numbers": NUMBERS[kind], "steps": "*fp32", "dim": "i32:16"},
        [_GATE[kind]],
        LEAST_CAPABILITY[kind],
    )
    for kind in KINDS
}
KERNELS = (*NORM_AND_ROUND.values(), *GATE_AND_ROUND.values())


def rms_norm(x: Tensor, weight: Tensor, eps: float, kind: Rowwise) -> RoundedRows:
    """`rowwise.round_rows` of `Kernels.rms_norm`. x [T, D]."""
    rows = _room(x, x.shape[1], kind)
    NORM_AND_ROUND[kind].launch(
        (len(x),), _norm_variant(kind, False), x=x, weight=weight, numbers=rows.numbers, steps=rows.steps,
        eps=eps, dim=x.shape[1],
    )  # fmt: skip
    return rows


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, kind: Rowwise) -> tuple[RoundedRows, Tensor]:
    """`rowwise.round_rows` of `Kernels.add_rms_norm`, and the sum. x and residual [T, D]."""
    rows, total = _room(x, x.shape[1], kind), torch.empty_like(x)
    NORM_AND_ROUND[kind].launch(
        (len(x),), _norm_variant(kind, True), x=x, residual=residual, weight=weight, numbers=rows.numbers,
        steps=rows.steps, total=total, eps=eps, dim=x.shape[1],
    )  # fmt: skip
    return rows, total


def silu_gate(gate_up: Tensor, kind: Rowwise) -> RoundedRows:
    """`rowwise.round_rows` of `Kernels.silu_gate`. gate_up [T, 2 I]."""
    dim = gate_up.shape[1] // 2
    rows = _room(gate_up, dim, kind)
    GATE_AND_ROUND[kind].launch(
        (len(gate_up),), _GATE[kind], gate_up=gate_up, numbers=rows.numbers, steps=rows.steps, dim=dim
    )
    return rows


def _room(x: Tensor, dim: int, kind: Rowwise) -> RoundedRows:
    numbers = torch.empty((len(x), dim), dtype=DTYPES[kind], device=x.device)
    return RoundedRows(numbers, torch.empty(len(x), dtype=torch.float32, device=x.device), x.dtype)
