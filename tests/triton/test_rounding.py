"""Activations rounded in the launch that makes them have the bits of that launch followed by one that rounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayline.kernels import triton_elementwise
from rayline.kernels.rowwise import RoundedRows, Rowwise
from rayline.kernels.triton_rounding import add_rms_norm, rms_norm, silu_gate
from rayline.kernels.triton_rowwise import rounded

KINDS = st.sampled_from(["fp8", "w8a8"])
DTYPES = st.sampled_from([torch.float32, torch.float16])
ROWS = st.integers(0, 3)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expect_bits(ours: RoundedRows, theirs: RoundedRows) -> None:
    assert ours.dtype == theirs.dtype and ours.numbers.dtype == theirs.numbers.dtype
    assert ours.numbers.view(torch.uint8).equal(theirs.numbers.view(torch.uint8))
    assert ours.steps.equal(theirs.steps)


@given(KINDS, ROWS, st.sampled_from([1, 16, 1023, 1024, 2500]), DTYPES)
@settings(max_examples=12)
def test_norms(kind: Rowwise, rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual = (numbers(rows, width, dtype=dtype, seed=seed) for seed in (1, 2))
    x[:1] = 0.0
    weight = numbers(width, dtype=dtype, seed=3)
    alone = triton_elementwise.rms_norm(x, weight, 1e-5)
    expect_bits(rms_norm(x, weight, 1e-5, kind), rounded(alone, kind))
    normed, total = triton_elementwise.add_rms_norm(x, residual, weight, 1e-5)
    ours = add_rms_norm(x, residual, weight, 1e-5, kind)
    expect_bits(ours[0], rounded(normed, kind))
    assert ours[1].equal(total)


@given(KINDS, ROWS, st.sampled_from([1, 16, 4096, 4099]), DTYPES)
@settings(max_examples=8)
def test_the_gate(kind: Rowwise, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = numbers(rows, 2 * width, dtype=dtype) * 4
    gate_up[:1] = 0.0
    expect_bits(silu_gate(gate_up, kind), rounded(triton_elementwise.silu_gate(gate_up), kind))


@pytest.mark.parametrize("kind", ["fp8", "w8a8"])
def test_a_number_that_is_not_there_is_no_part_of_the_largest(kind: Rowwise) -> None:
    """Rows of which the block is filled up behind their end, in memory that goes on with larger ones."""
    gate_up = torch.full((2, 6), 100.0)
    gate_up[0] = 0.5
    ours = silu_gate(gate_up, kind)
    assert ours.steps[0] < 1e-2 < ours.steps[1]
