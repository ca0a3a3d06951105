"""The batch-invariant product in Triton's interpreter: against fp64, and its bits against themselves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import UNITS, Product, numbers, products
from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.tree import join_pairwise
from rayline.kernels.triton_product import leaves_of, product


def weight(rows: Tensor, leaves: int) -> Weight:
    return Weight(rows, *rows.shape, leaves)


DEPTHS = st.sampled_from([16, 24 * 8, 64 * 8, 70 * 8])


@given(products(st.integers(1, 150), st.integers(1, 200), DEPTHS), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=15)
def test_the_product(case: Product, leaves: int) -> None:
    results = [product(case.x, weight(case.weight, leaves), case.bias, case.is_wide, units) for units in (0, UNITS)]
    assert results[0].equal(results[1]), "split or not, the additions are the same"
    case.expect_near(results[0], case.of(case.x, case.weight))


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
