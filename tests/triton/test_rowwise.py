"""Products of 8-bit weights and activations in Triton's interpreter: the numbers of kernels/rowwise.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import UNITS, Product, numbers, products

from rayline.kernels import rowwise
from rayline.kernels.rowwise import Rowwise
from rayline.kernels.triton_rowwise import BLOCK, EXACT, FEW_ROWS, MANY, linear, rounded


@given(
    st.sampled_from(["fp8", "w8a8"]),
    st.integers(0, 4),
    st.sampled_from([1, 16, 70, BLOCK, BLOCK + 3]),
    st.sampled_from([1e-25, 1.0, 1e15]),
    st.sampled_from([torch.float32, torch.float16]),
)
@settings(max_examples=12)
def test_rows_are_rounded_to_the_bits_of_the_cpu(
    kind: Rowwise, rows: int, depth: int, scale: float, dtype: torch.dtype
) -> None:
    x = numbers(rows, depth, seed=depth) * (scale if dtype == torch.float32 else 3.0)
    x[: rows // 2, 1:] = 0.0
    x[rows // 3 : rows // 2] = 0.0
    ours, theirs = rounded(x.to(dtype), kind), rowwise.round_rows(x.to(dtype), kind)
    assert ours.numbers.view(torch.uint8).equal(theirs[0].view(torch.uint8)) and ours.steps.equal(theirs[1])


ROWS = st.sampled_from([1, 5, FEW_ROWS, FEW_ROWS + 1, MANY.rows + 2])
DEPTHS = st.sampled_from([6, 128, 200, 1100])


@given(st.sampled_from(["fp8", "w8a8"]), products(ROWS, st.integers(1, 140), DEPTHS))
@settings(max_examples=12)
def test_the_product_is_that_of_torch(kind: Rowwise, case: Product) -> None:
    """Whole numbers: the same bits, however the depth is cut."""
    weight = rowwise.pack([case.weight], kind)
    theirs = rowwise.linear(case.x, weight, case.bias, case.is_wide)
    for is_exact, units in ((False, 0), (False, UNITS), (True, UNITS)):
        ours = linear(case.x, weight, case.bias, case.is_wide, is_exact, units)
        case.expect_near(ours, theirs)
        assert kind == "fp8" or ours.equal(theirs)


@pytest.mark.parametrize("kind", ["fp8", "w8a8"])
def test_a_row_of_the_exact_class_has_the_same_bits_in_any_batch(kind: Rowwise) -> None:
    weight, x = rowwise.pack([numbers(70, 1200, seed=1)], kind), numbers(EXACT.rows + 8, 1200)
    whole = linear(x, weight, None, True, True, 0)
    for at in (0, EXACT.rows - 1, EXACT.rows + 3):
        assert linear(x[at : at + 1], weight, None, True, True, UNITS)[0].equal(whole[at])


def test_the_ordinary_class_of_fp8_is_not_exact_so_the_property_can_fail() -> None:
    weight, x = rowwise.pack([numbers(70, 4096, seed=1)], "fp8"), numbers(1, 4096)
    assert not linear(x, weight, None, True, False, UNITS).equal(linear(x, weight, None, True, False, 0))
