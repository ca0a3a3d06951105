"""Norms, gate, embedding, rope and cache write in Triton's interpreter against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayline.kernels import triton_elementwise
from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables
from rayline.kernels.context import ForwardContext
from rayline.kernels.rope import inverse_frequencies, rope_tables
from rayline.kernels.torch_kernels import TorchKernels

TORCH = TorchKernels()
DTYPES = st.sampled_from([torch.float32, torch.float16])
ROWS = st.integers(1, 4)
WIDTHS = st.sampled_from([1, 16, 37, 1023, 1024, 1500])


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expect_equal(ours: Tensor, theirs: Tensor) -> None:
    """Within two roundings: of the last bit of a sum, and of the dtype it falls into."""
    assert ours.dtype == theirs.dtype
    rounding = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=2 * rounding, atol=4 * rounding)


@given(ROWS, WIDTHS, DTYPES)
@settings(max_examples=10)
def test_norms(rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual = (numbers(rows, width, dtype=dtype, seed=seed) for seed in (1, 2))
    weight = numbers(width, dtype=dtype, seed=3)
    expect_equal(triton_elementwise.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    ours, theirs = (k.add_rms_norm(x, residual, weight, 1e-5) for k in (triton_elementwise, TORCH))
    expect_equal(ours[0], theirs[0])
    assert ours[1].equal(theirs[1])


@given(ROWS, WIDTHS, DTYPES)
@settings(max_examples=10)
def test_the_gate(rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = numbers(rows, 2 * width, dtype=dtype) * 4
    expect_equal(triton_elementwise.silu_gate(gate_up), TORCH.silu_gate(gate_up))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), WIDTHS, st.integers(0, 20))
@settings(max_examples=10)
def test_an_embedding_gives_zeros_outside_of_its_shard(ids: list[int], width: int, first: int) -> None:
    table = numbers(11, width, dtype=torch.float16)
    at = torch.tensor(ids)
    assert triton_elementwise.embedding(at, table, first).equal(TORCH.embedding(at, TORCH.table(table), first))


@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=4, unique=True),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([6, 64, 80, 256]),
    st.booleans(),
    DTYPES,
)
@settings(max_examples=15)
def test_rope_and_cache_write(
    positions: list[int], kv_heads: int, group: int, head_dim: int, has_norms: bool, dtype: torch.dtype
) -> None:
    block_tokens, blocks = 16, 8
    shape = AttentionShape(kv_heads * group, kv_heads, head_dim, 1.0)
    width = (shape.heads + 2 * kv_heads) * head_dim
    rope = RopeTables(*rope_tables(inverse_frequencies(head_dim, 10_000.0), 100))
    norms = tuple(numbers(head_dim, dtype=dtype, seed=seed) + 1 for seed in (8, 9)) if has_norms else None
    nothing = torch.empty(0, dtype=torch.int64)
    at = torch.tensor(positions)
    context = ForwardContext(at, (at * 5 + 3) % (block_tokens * blocks), (0, len(at)), (91,), nothing, nothing)
    qkv = numbers(len(at), width, dtype=dtype)
    results = []
    for kernels in (triton_elementwise, TORCH):
        keys, values = (torch.zeros(blocks, block_tokens * kv_heads * head_dim, dtype=dtype) for _ in range(2))
        layer = KvLayer(keys, values, block_tokens, kv_heads, head_dim)
        q = kernels.write_kv(qkv, shape, rope, norms, 1e-5, layer, context)  # type: ignore[arg-type]
        results.append((q, keys, values))
    for ours, theirs in zip(*results, strict=True):
        expect_equal(ours, theirs)


@pytest.mark.parametrize("has_norms", [False, True])
def test_a_token_that_only_fills_the_batch_writes_nothing(has_norms: bool) -> None:
    layer = KvLayer(torch.zeros(2, 16 * 16), torch.zeros(2, 16 * 16), 16, 1, 16)
    rope = RopeTables(*rope_tables(inverse_frequencies(16, 10_000.0), 9))
    norms = (torch.ones(16), torch.ones(16)) if has_norms else None
    nothing = torch.empty(0, dtype=torch.int64)
    context = ForwardContext(torch.tensor([3, 0]), torch.tensor([3, -1]), (0, 1, 2), (4, 1), nothing, nothing)
    shape = AttentionShape(1, 1, 16, 1.0)
    triton_elementwise.write_kv(torch.ones(2, 48), shape, rope, norms, 1e-5, layer, context)
    for cache in (layer.keys, layer.values):
        assert cache.view(32, 16).abs().sum(1).nonzero().flatten().tolist() == [3]
