"""Paged attention in C++: queries, keys and values out of the projection, into the cache, and through the softmax."""

from torch import Tensor

from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables
from rayline.kernels.context import ForwardContext
from rayline.kernels.program import Operations

BLOCK_MULTIPLE_TOKENS = 16  # tokens of a tile of the cache, as native/attention_cache.h draws it


def write_kv(
    operations: Operations,
    qkv: Tensor,
    shape: AttentionShape,
    rope: RopeTables,
    qk_norm: tuple[Tensor, Tensor] | None,
    eps: float,
    layer: KvLayer,
    context: ForwardContext,
) -> Tensor:
    """`Kernels.write_kv`. Raises ValueError when the kernels cannot lay out such heads or blocks."""
    _check(shape, layer)
    q = qkv.new_empty(len(qkv), shape.heads * shape.head_dim)
    q_norm, k_norm = qk_norm or (None, None)
    operations.call(
        "WriteKv",
        len(qkv),
        context,
        qkv=qkv,
        q_norm=q_norm,
        k_norm=k_norm,
        cos=rope.cos,
        sin=rope.sin,
        q=q,
        keys=layer.keys,
        values=layer.values,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        block_tokens=layer.block_tokens,
        eps=eps,
    )
    return q


def attend(
    operations: Operations,
    q: Tensor,
    shape: AttentionShape,
    layer: KvLayer,
    context: ForwardContext,
    sinks: Tensor | None,
) -> Tensor:
    """`Kernels.attend`. Raises ValueError when the kernels cannot read such heads or blocks."""
    _check(shape, layer)
    out = q.new_empty(q.shape)
    operations.call(
        "Attend",
        len(q),
        context,
        q=q,
        keys=layer.keys,
        values=layer.values,
        sinks=sinks,
        out=out,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        block_tokens=layer.block_tokens,
        window=shape.window or 0,
        scale=shape.scale,
        soft_cap=shape.soft_cap or 0.0,
    )
    return out


def _check(shape: AttentionShape, layer: KvLayer) -> None:
    if shape.head_dim % 16 or layer.block_tokens % BLOCK_MULTIPLE_TOKENS or shape.heads % shape.kv_heads:
        raise ValueError(
            f"head_dim {shape.head_dim} and block_tokens {layer.block_tokens} must be multiples of 16, "
            f"and {shape.heads} heads of {shape.kv_heads} KV heads"
        )
