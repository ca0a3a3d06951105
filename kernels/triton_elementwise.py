"""Norms, gate, embedding, rope and cache write in Triton: one launch each, a row's bits its own."""

import torch
from torch import Tensor

from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables
from rayline.kernels.context import ForwardContext
from rayline.kernels.triton_elementwise_code import embedding_rows, rms_norm_rows, silu_gate_rows, write_kv_rows
from rayline.kernels.triton_launch import Kernel, Variant

_BLOCK = 1024
_ROW = Variant((("BLOCK", _BLOCK),))
_PLAIN_NORM = Variant((("BLOCK", _BLOCK),), absent=("residual", "total"))
_HALVES = (32, 64, 128)  # of a head, with padding

RMS_NORM_ROWS = Kernel(
    rms_norm_rows,
    dict.fromkeys(("x", "residual", "weight", "out", "total"), "*T") | {"eps": "fp32", "dim": "i32:16"},
    [_PLAIN_NORM, _ROW],
)
SILU_GATE_ROWS = Kernel(silu_gate_rows, {"gate_up": "*T", "out": "*T", "dim": "i32:16"}, [_ROW])
EMBEDDING_ROWS = Kernel(
    embedding_rows,
    {"ids": "*i64", "table": "*T", "out": "*T", "first": "i32:16", "size": "i32:16", "dim": "i32:16"},
    [_ROW],
)
WRITE_KV_ROWS = Kernel(
    write_kv_rows,
    dict.fromkeys(("qkv", "q_norm", "k_norm"), "*T")
    | {"cos": "*fp32", "sin": "*fp32", "positions": "*i64", "slots": "*i64"}
    | dict.fromkeys(("q", "keys", "values"), "*T")
    | {"eps": "fp32", "heads": "i32", "kv_heads": "i32", "head_dim": "i32:16"},
    [Variant((("HALF", half),), warps=1, absent=absent) for half in _HALVES for absent in ((), ("q_norm", "k_norm"))],
)
KERNELS = (RMS_NORM_ROWS, SILU_GATE_ROWS, EMBEDDING_ROWS, WRITE_KV_ROWS)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`Kernels.rms_norm` of x [T, D]."""
    out = torch.empty_like(x)
    RMS_NORM_ROWS.launch((len(x),), _PLAIN_NORM, x=x, weight=weight, out=out, eps=eps, dim=x.shape[1])
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`Kernels.add_rms_norm`, x and residual [T, D]."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    RMS_NORM_ROWS.launch(
        (len(x),), _ROW, x=x, residual=residual, weight=weight, out=out, total=total, eps=eps, dim=x.shape[1]
    )
    return out, total


def silu_gate(gate_up: Tensor) -> Tensor:
    """`Kernels.silu_gate`."""
    dim = gate_up.shape[1] // 2
    out = gate_up.new_empty(len(gate_up), dim)
    SILU_GATE_ROWS.launch((len(gate_up), -(-dim // _BLOCK)), _ROW, gate_up=gate_up, out=out, dim=dim)
    return out


def embedding(ids: Tensor, table: Tensor, first: int) -> Tensor:
    """`Kernels.embedding` of a plain table [N, K]."""
    size, dim = table.shape
    out = table.new_empty(len(ids), dim)
    grid = (len(ids), -(-dim // _BLOCK))
    EMBEDDING_ROWS.launch(grid, _ROW, ids=ids, table=table, out=out, first=first, size=size, dim=dim)
    return out


def write_kv(
    qkv: Tensor,
    shape: AttentionShape,
    rope: RopeTables,
    qk_norm: tuple[Tensor, Tensor] | None,
    eps: float,
    layer: KvLayer,
    context: ForwardContext,
) -> Tensor:
    """`Kernels.write_kv`. A layer's order is [blocks, block_tokens, kv_heads, head_dim]."""
    q = qkv.new_empty(len(qkv), shape.heads * shape.head_dim)
    half = next(half for half in _HALVES if 2 * half >= shape.head_dim)
    norms = {} if qk_norm is None else {"q_norm": qk_norm[0], "k_norm": qk_norm[1]}
    WRITE_KV_ROWS.launch(
        (len(qkv), shape.heads + 2 * shape.kv_heads),
        Variant((("HALF", half),), warps=1, absent=() if norms else ("q_norm", "k_norm")),
        qkv=qkv, **norms, cos=rope.cos, sin=rope.sin, positions=context.positions, slots=context.slots,
        q=q, keys=layer.keys, values=layer.values, eps=eps,
        heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
    )  # fmt: skip
    return q
