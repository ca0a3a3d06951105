"""The batch-invariant product in Triton's interpreter: against fp64, and its bits against themselves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.tree import join_pairwise
from rayline.kernels.triton_product import leaves_of, product

UNITS = 50


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(rows: Tensor, leaves: int) -> Weight:
    return Weight(rows, *rows.shape, leaves)


@given(
    st.integers(1, 150),
    st.integers(1, 200),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([2, 24, 64, 70]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16]),
)
@settings(max_examples=15)
def test_the_product(
    rows: int, columns: int, leaves: int, leaf: int, has_bias: bool, is_wide: bool, dtype: torch.dtype
) -> None:
    depth = leaves * leaf
    x, w = numbers(rows, depth).to(dtype), numbers(columns, depth, seed=1).to(dtype)
    bias = numbers(columns, seed=2).to(dtype) if has_bias and not is_wide else None
    exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
    results = [product(x, weight(w, leaves), bias, is_wide, units) for units in (0, UNITS)]
    assert results[0].equal(results[1]), "split or not, the additions are the same"
    assert results[0].dtype == (torch.float32 if is_wide else dtype)
    rounding = torch.finfo(results[0].dtype).eps
    torch.testing.assert_close(results[0].double(), exact, rtol=rounding, atol=2e-6 * depth)


@given(st.integers(1, 130), st.sampled_from([384, 560]), st.data())
@settings(max_examples=15)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(rows: int, depth: int, data: st.DataObject) -> None:
    w = weight(numbers(160, depth, seed=1), 8)
    x = numbers(rows, depth)
    whole = product(x, w, None, True, 0)
    at = data.draw(st.integers(0, rows - 1))
    assert product(x[at : at + 1], w, None, True, UNITS)[0].equal(whole[at])


def test_ranks_that_hold_whole_leaves_join_to_the_bits_of_one() -> None:
    x, w = numbers(5, 1024), numbers(40, 1024, seed=1)
    whole = product(x, weight(w, 8), None, True, UNITS)
    for ranks in (2, 4, 8):
        each = 1024 // ranks
        cut = [slice(rank * each, (rank + 1) * each) for rank in range(ranks)]
        parts = [product(x[:, c].contiguous(), weight(w[:, c].contiguous(), 8 // ranks), None, True, 0) for c in cut]
        assert join_pairwise(torch.stack(parts)).equal(whole)
    chain = product(x, weight(w, 1), None, True, 0)
    assert not chain.equal(whole), "another order gives other bits, so the property can fail"


def test_a_depth_that_nobody_cuts_gets_eight_leaves_where_they_are_even() -> None:
    assert [leaves_of(depth) for depth in (4096, 1024 + 128, 1000)] == [8, 8, 1]
