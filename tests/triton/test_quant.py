"""Products with rounded weights in Triton's interpreter, against the rounded weight's own values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import UNITS, Product, numbers, products
from torch import Tensor

from rayline.kernels.native_quant import BITS, DEFAULT_GROUPS, Weights
from rayline.kernels.quantise import dequantise, quantise
from rayline.kernels.tree import join_pairwise
from rayline.kernels.triton_quant import QuantisedWeight, embedding, linear, pack


def values(rows: Tensor, weights: Weights) -> Tensor:
    return dequantise(quantise(rows, BITS[weights], DEFAULT_GROUPS[weights])).double()


ROWS = st.sampled_from([1, 5, 16, 17, 40, 130])
DEPTHS = st.sampled_from([6, 64, 200, 512, 1100])


@given(st.sampled_from(["int4", "int8"]), products(ROWS, st.integers(1, 150), DEPTHS))
@settings(max_examples=15)
def test_the_product(weights: Weights, case: Product) -> None:
    w, half = case.weight, case.columns // 2
    weight = pack([w[:half], w[half:]] if half else [w], weights, 0)
    theirs = case.of(case.x, values(w, weights))
    for is_exact in (False, True):
        for units in (0, UNITS):
            case.expect_near(linear(case.x, weight, case.bias, case.is_wide, is_exact, units), theirs)


@given(st.sampled_from(["int4", "int8"]), st.integers(1, 70), st.data())
@settings(max_examples=10)
def test_a_row_of_the_exact_class_has_the_same_bits_in_any_batch(
    weights: Weights, rows: int, data: st.DataObject
) -> None:
    weight, x = pack([numbers(70, 1200, seed=1)], weights, 0), numbers(rows, 1200)
    assert weight.segments == 8
    whole = linear(x, weight, None, True, True, 0)
    at = data.draw(st.integers(0, rows - 1))
    assert linear(x[at : at + 1], weight, None, True, True, UNITS)[0].equal(whole[at])


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_ranks_that_hold_whole_leaves_join_to_the_bits_of_one(weights: Weights) -> None:
    x, w = numbers(3, 2048), numbers(40, 2048, seed=1)
    whole = linear(x, pack([w], weights, 8), None, True, True, UNITS)
    for ranks in (2, 4, 8):
        cut = [slice(rank * 2048 // ranks, (rank + 1) * 2048 // ranks) for rank in range(ranks)]
        parts = [linear(x[:, c].contiguous(), pack([w[:, c]], weights, 8 // ranks), None, True, True, 0) for c in cut]
        assert join_pairwise(torch.stack(parts)).equal(whole)
    assert not linear(x, pack([w], weights, 1), None, True, True, 0).equal(whole)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.sampled_from([6, 128, 300]), st.integers(0, 20))
@settings(max_examples=10)
def test_an_embedding_reads_the_same_values(ids: list[int], depth: int, first: int) -> None:
    rows, at = numbers(20, depth), torch.tensor(ids)
    theirs = torch.stack([values(rows, "int8")[i - first] if 0 <= i - first < 20 else torch.zeros(depth) for i in ids])
    assert embedding(at, pack([rows], "int8", 0), first).equal(theirs.float())


def test_a_weight_counts_all_its_bytes() -> None:
    weight = pack([numbers(256, 1024)], "int4", 0)
    assert isinstance(weight, QuantisedWeight)
    assert weight.bytes == 256 * 1024 // 2 + 256 * 16 * 5
