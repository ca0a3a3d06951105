"""Products of 8-bit weights and activations on CPUs, by torch, against fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import Product, numbers, products

from rayline.kernels.rowwise import DTYPES, LARGEST, RowWeight, Rowwise, linear, pack, round_rows, values
from rayline.kernels.torch_kernels import RowwiseTorchKernels, TorchKernels

KINDS: tuple[Rowwise, ...] = ("fp8", "w8a8")
HALF_STEP = {"fp8": 2.0**-4, "w8a8": 0.5 / 127}  # of a number (FP8), of the row's largest (whole numbers)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
kinds = st.sampled_from(KINDS)


@given(kinds, st.integers(0, 9), st.integers(1, 80), st.floats(1e-20, 1e20), st.integers(0, 99))
@settings(max_examples=40)
def test_rows_are_rounded_to_the_nearest_within_half_a_step(
    kind: Rowwise, rows: int, depth: int, scale: float, seed: int
) -> None:
    x = numbers(rows, depth, seed=seed) * scale
    rounded, steps = round_rows(x, kind)
    assert rounded.dtype == DTYPES[kind] and steps.shape == (rows,)
    most = x.abs().amax(-1, keepdim=True)
    assert bool((rounded.float().abs().amax(-1) == LARGEST[kind]).all())
    off = (rounded.float() * steps[:, None] - x).abs()
    # FP8's numbers below 2^-6 lie as far apart as those from there to 2^-5.
    allowed = most * HALF_STEP[kind] if kind == "w8a8" else x.abs() * HALF_STEP[kind] + most / 448 * 2.0**-10
    assert bool((off <= allowed * 1.0001).all())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_of_next_to_nothing_stay_zeros(kind: Rowwise) -> None:
    rounded, steps = round_rows(torch.tensor([[0.0, 0.0], [1e-38, -1e-38]]), kind)
    assert not rounded.float().any() and bool((steps < 1e-30).all())


# torch 2.13 multiplies whole numbers wrongly over a depth of 1, which no model has.
@given(kinds, products(st.integers(0, 20), st.integers(1, 60), st.integers(2, 200), FLOATS))
@settings(max_examples=75)
def test_a_product_is_that_of_the_rounded_numbers(kind: Rowwise, case: Product) -> None:
    half = case.columns // 2
    weight = pack([case.weight[:half], case.weight[half:]], kind)
    rounded, steps = round_rows(case.x, kind)
    theirs = case.of(rounded.double() * steps[:, None].double(), values(weight))
    case.expect_near(linear(case.x, weight, case.bias, case.is_wide), theirs)


@pytest.mark.parametrize(("kind", "most"), [("fp8", 0.05), ("w8a8", 0.02)])
def test_what_rounding_costs(kind: Rowwise, most: float) -> None:
    """Of normally distributed numbers."""
    x, w = numbers(40, 2048), numbers(300, 2048, seed=1)
    exact = x @ w.T
    off = (linear(x, pack([w], kind), None, True) - exact).norm() / exact.norm()
    assert most / 4 < float(off) < most


def test_sums_of_whole_numbers_have_no_order() -> None:
    """A row alone has the bits it has among others; torch's own products of these numbers do not promise that."""
    x, weight = numbers(64, 1030).bfloat16(), pack([numbers(77, 1030, seed=1)], "w8a8")
    whole = linear(x, weight, None, True)
    for at in (0, 13, 63):
        assert linear(x[at : at + 1], weight, None, True)[0].equal(whole[at])
    shuffled = torch.randperm(1030)
    again = RowWeight(
        weight.data, 77, 1030, 1, "w8a8", numbers=weight.numbers[:, shuffled].contiguous(), scales=weight.scales
    )
    assert linear(x[:, shuffled], again, None, True).equal(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_rounded_and_the_vocabulary_is_not(kind: Rowwise) -> None:
    kernels, plain = RowwiseTorchKernels(kind), TorchKernels()
    rows, x = numbers(48, 32, seed=1).bfloat16(), numbers(3, 32).bfloat16()
    layer = kernels.pack([rows], 8)
    assert isinstance(layer, RowWeight) and layer.format == kind and layer.bytes == 48 * 32 + 48 * 4
    assert kernels.linear_fp32(x, layer).dtype == torch.float32
    for lay_out in ("head", "tied"):
        mine, theirs = getattr(kernels, lay_out)(rows), getattr(plain, lay_out)(rows)
        assert kernels.linear_fp32(x, mine).equal(plain.linear_fp32(x, theirs))
        assert kernels.linear(x, mine).equal(plain.linear(x, theirs))
