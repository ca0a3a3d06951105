"""Ranks and stages: numbering, what divides, and stages as balanced as a search over all cuts finds."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.cluster.parallel import Parallel, balanced_stages, divide, ranks
from rayline.protos.errors import ConfigError

sizes = st.integers(1, 5)


@given(sizes, sizes)
def test_ranks_are_numbered_stage_by_stage(tp: int, pp: int) -> None:
    places = ranks(tp, pp)
    assert [place.rank for place in places] == list(range(tp * pp))
    assert {place.world_size for place in places} == {tp * pp}
    assert [place.stage for place in places] == sorted(place.stage for place in places)


@given(sizes, sizes)
def test_exactly_one_rank_reports_and_it_is_on_the_last_stage(tp: int, pp: int) -> None:
    (reporter,) = [place for place in ranks(tp, pp) if place.reports]
    assert reporter.is_last_stage and reporter.tp_rank == 0


@given(sizes, sizes)
def test_each_stage_has_tp_ranks_and_one_is_first_and_one_last(tp: int, pp: int) -> None:
    places = ranks(tp, pp)
    assert sum(place.is_first_stage for place in places) == tp
    assert sum(place.is_last_stage for place in places) == tp


def test_a_lone_rank_is_first_and_last() -> None:
    place = Parallel()
    assert place.is_first_stage and place.is_last_stage and place.reports and place.rank == 0


@given(sizes, sizes)
def test_the_same_rank_of_another_stage_keeps_its_place_inside(tp: int, pp: int) -> None:
    for place in ranks(tp, pp):
        there = place.at_stage(pp - 1)
        assert (there.tp_rank, there.stage) == (place.tp_rank, pp - 1)
        assert there in ranks(tp, pp)


@given(st.integers(0, 1000), st.integers(1, 16))
def test_a_size_is_divided_exactly_or_refused(size: int, parts: int) -> None:
    if size % parts == 0:
        assert divide("heads", size, parts) * parts == size
    else:
        with pytest.raises(ConfigError):
            divide("heads", size, parts)


def test_what_does_not_divide_is_named_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="tp = 3 does not divide num_attention_heads = 32") as refused:
        divide("num_attention_heads", 32, 3)
    assert refused.value.field == "tp"


def heaviest(layers: Sequence[int], first: int, last: int, cuts: Sequence[int]) -> int:
    weights = [sum(layers[a:b]) for a, b in pairwise([0, *cuts, len(layers)])]
    weights[0] += first
    weights[-1] += last
    return max(weights)


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    layers = draw(st.lists(st.integers(1, 50), min_size=1, max_size=9))
    return layers, draw(st.integers(0, 200)), draw(st.integers(0, 200)), draw(st.integers(1, len(layers)))


@given(cuttings())
def test_no_other_cut_has_a_lighter_heaviest_stage(case: tuple[list[int], int, int, int]) -> None:
    layers, first, last, count = case
    stages = balanced_stages(layers, first, last, count)
    found = heaviest(layers, first, last, [stage.start for stage in stages[1:]])
    every = combinations(range(1, len(layers)), count - 1)
    assert found == min(heaviest(layers, first, last, cuts) for cuts in every)


@given(cuttings())
def test_stages_cover_all_layers_in_order_and_none_is_empty(case: tuple[list[int], int, int, int]) -> None:
    layers, first, last, count = case
    stages = balanced_stages(layers, first, last, count)
    assert len(stages) == count and all(stages)
    assert [layer for stage in stages for layer in stage] == list(range(len(layers)))


def test_equal_layers_are_cut_evenly() -> None:
    assert balanced_stages([7] * 8, 0, 0, 4) == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]


def test_a_heavy_embedding_and_head_leave_their_stages_fewer_layers() -> None:
    assert balanced_stages([10] * 8, 20, 20, 3) == [range(0, 2), range(2, 6), range(6, 8)]


def test_more_stages_than_layers_are_refused_with_the_limit_named() -> None:
    with pytest.raises(ConfigError, match="pp = 4 is out of range: the model has 3 layers") as refused:
        balanced_stages([1, 1, 1], 0, 0, 4)
    assert refused.value.field == "pp"
