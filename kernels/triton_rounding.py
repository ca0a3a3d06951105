"""Activations rounded to 8 bits in the launch that makes them."""

import torch
from torch import Tensor

from rayline.kernels.rowwise import DTYPES, LEAST_FP8_CAPABILITY, RoundedRows, Rowwise
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_rounding_code import gate_and_round_rows, norm_and_round_rows

_NORM_BLOCK, _GATE_BLOCK = 1024, 4096


def _norm_variant(is_float: bool, has_residual: bool) -> Variant:
    sizes = (("BLOCK", _NORM_BLOCK), ("IS_FLOAT", int(is_float)))
    return Variant(sizes, absent=() if has_residual else ("residual", "total"))


def _gate_variant(is_float: bool) -> Variant:
    return Variant((("BLOCK", _GATE_BLOCK), ("IS_FLOAT", int(is_float))), warps=8)


def _kernels(is_float: bool) -> tuple[Kernel, Kernel]:
    """To norm, to gate."""
    places = {"numbers": "*fp8e4nv" if is_float else "*i8", "steps": "*fp32"}
    least = LEAST_FP8_CAPABILITY if is_float else 0
    norm = dict.fromkeys(("x", "residual", "weight"), "*T") | places | {"total": "*T", "eps": "fp32", "dim": "i32:16"}
    return (
        Kernel(norm_and_round_rows, norm, [_norm_variant(is_float, each) for each in (False, True)], least),
        Kernel(gate_and_round_rows, {"gate_up": "*T"} | places | {"dim": "i32:16"}, [_gate_variant(is_float)], least),
    )


_OF = {"fp8": _kernels(True), "w8a8": _kernels(False)}
KERNELS = (*_OF["fp8"], *_OF["w8a8"])


def rms_norm(x: Tensor, weight: Tensor, eps: float, kind: Rowwise) -> RoundedRows:
    """`rowwise.round_rows` of `Kernels.rms_norm`. x [T, D]."""
    rows = _room(x, x.shape[1], kind)
    _OF[kind][0].launch(
        (len(x),), _norm_variant(kind == "fp8", False), x=x, weight=weight, numbers=rows.numbers, steps=rows.steps,
        eps=eps, dim=x.shape[1],
    )  # fmt: skip
    return rows


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, kind: Rowwise) -> tuple[RoundedRows, Tensor]:
    """`rowwise.round_rows` of `Kernels.add_rms_norm`, and the sum. x and residual [T, D]."""
    rows, total = _room(x, x.shape[1], kind), torch.empty_like(x)
    _OF[kind][0].launch(
        (len(x),), _norm_variant(kind == "fp8", True), x=x, residual=residual, weight=weight, numbers=rows.numbers,
        steps=rows.steps, total=total, eps=eps, dim=x.shape[1],
    )  # fmt: skip
    return rows, total


def silu_gate(gate_up: Tensor, kind: Rowwise) -> RoundedRows:
    """`rowwise.round_rows` of `Kernels.silu_gate`. gate_up [T, 2 I]."""
    dim = gate_up.shape[1] // 2
    rows = _room(gate_up, dim, kind)
    _OF[kind][1].launch(
        (len(gate_up),), _gate_variant(kind == "fp8"), gate_up=gate_up, numbers=rows.numbers, steps=rows.steps, dim=dim
    )
    return rows


def _room(x: Tensor, dim: int, kind: Rowwise) -> RoundedRows:
    numbers = torch.empty((len(x), dim), dtype=DTYPES[kind], device=x.device)
    return RoundedRows(numbers, torch.empty(len(x), dtype=torch.float32, device=x.device), x.dtype)
