"""Ranks in processes of their own that sum and gather through memory they share."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exchange_rank as ranks_do
import pytest
import torch
from native import library_or_skip
from torch import Tensor

from rayline.kernels.exchange import Exchange, RankLost, new_file
from rayline.kernels.library import Library
from rayline.kernels.program import Operations, Team
from rayline.kernels.tree import join_pairwise
from rayline.workers.collectives import SharedMemoryGroup

RANKS = 4
PROGRAM = Path(__file__).parents[1] / "exchange_rank.py"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the ranks that lived wrote down; the last one killed itself."""
    library_or_skip()
    directory = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(PROGRAM), str(directory)]
    running = [
        subprocess.Popen([*command, str(rank), str(RANKS)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        errors = [process.communicate(timeout=250)[1] for process in running]
        codes = [process.returncode for process in running]
        assert codes == [0] * (RANKS - 1) + [-signal.SIGKILL], "\n".join(errors)
    finally:
        for process in running:
            process.kill()
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(RANKS - 1)]


def each_result(outcomes: list[dict[str, Any]], what: str) -> Iterator[tuple[int, tuple[int, int], Tensor]]:
    """(number of ranks, shape, result) of all ranks, instruction sets and shapes."""
    for outcome in outcomes:
        for (ranks, _isa), results in outcome["results"].items():
            for shape, result in zip(ranks_do.SHAPES, results, strict=True):
                yield ranks, shape, result[what]


def partials(ranks: int, shape: tuple[int, int]) -> Tensor:
    return torch.stack([ranks_do.numbers(rank, *shape) for rank in range(ranks)])


def test_a_sum_has_the_bits_of_the_ranks_partials_joined_pairwise(outcomes: list[dict[str, Any]]) -> None:
    for ranks, shape, total in each_result(outcomes, "sum"):
        assert torch.equal(total, join_pairwise(partials(ranks, shape)).to(torch.bfloat16)), (ranks, shape)


def test_a_bias_is_added_before_the_only_rounding(outcomes: list[dict[str, Any]]) -> None:
    for ranks, shape, total in each_result(outcomes, "sum with bias"):
        wanted = join_pairwise(partials(ranks, shape)) + ranks_do.bias_of(shape[1])
        assert torch.equal(total, wanted.to(torch.bfloat16)), (ranks, shape)


def test_the_partials_are_such_that_another_order_of_the_sum_has_other_bits() -> None:
    parts = partials(4, (200, 2048))
    in_a_row = (((parts[0] + parts[1]) + parts[2]) + parts[3]).to(torch.bfloat16)
    assert not torch.equal(in_a_row, join_pairwise(parts).to(torch.bfloat16))


def test_gathered_columns_lie_side_by_side_by_rank(outcomes: list[dict[str, Any]]) -> None:
    for ranks, shape, gathered in each_result(outcomes, "gathered"):
        assert torch.equal(gathered, torch.cat(list(partials(ranks, shape)), dim=1)), (ranks, shape)


def test_sums_can_be_part_of_a_recorded_program(outcomes: list[dict[str, Any]]) -> None:
    wanted = join_pairwise(partials(RANKS, (8, 40)))[:5] + ranks_do.bias_of(40)
    assert all(torch.equal(outcome["recorded"], wanted.to(torch.bfloat16)) for outcome in outcomes)


def test_thousands_of_sums_are_right_whoever_comes_late(outcomes: list[dict[str, Any]]) -> None:
    assert [outcome["wrong"] for outcome in outcomes] == [0] * len(outcomes)


def test_when_a_rank_is_killed_the_others_are_told_at_once(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        message, took_s, next_message = outcome["lost"]
        assert message == next_message == "another rank of this stage ended or gave up"
        assert took_s < 60, "they would have waited for five minutes"


def test_the_shared_file_has_no_name_once_the_ranks_have_met(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["mapped"]
        assert all(line.endswith(" (deleted)") for line in outcome["mapped"])


@pytest.fixture
def pair() -> Iterator[tuple[Library, Path]]:
    """A file for two ranks, both of which the test plays itself."""
    library = library_or_skip()
    path = new_file(library, 2)
    yield library, path
    path.unlink()


def group(library: Library, exchange: Exchange) -> SharedMemoryGroup:
    return SharedMemoryGroup(Operations(Team(library, 1)), exchange)


def test_a_rank_that_lives_but_does_not_come_is_waited_for_only_so_long(pair: tuple[Library, Path]) -> None:
    first, second = (Exchange(*pair, ranks=2, rank=rank, patience_s=0.2) for rank in range(2))
    with pytest.raises(RankLost, match="in time"):
        group(pair[0], first).sum_tree(torch.ones(1, 4), None, torch.bfloat16)
    with pytest.raises(RankLost, match="gave up"):
        group(pair[0], second).sum_tree(torch.ones(1, 4), None, torch.bfloat16)


def test_the_ranks_sum_what_a_slower_one_brings_later(pair: tuple[Library, Path]) -> None:
    first, second = (group(pair[0], Exchange(*pair, ranks=2, rank=rank)) for rank in range(2))
    late = threading.Timer(0.1, lambda: second.sum_tree(torch.full((1, 4), 2.0), None, torch.bfloat16))
    late.start()
    assert first.sum_tree(torch.ones(1, 4), None, torch.bfloat16).tolist() == [[3.0] * 4]
    late.join()


def test_sums_are_rounded_to_bf16_and_to_nothing_else(pair: tuple[Library, Path]) -> None:
    with pytest.raises(TypeError, match="float32"):
        group(pair[0], Exchange(*pair, ranks=2, rank=0)).sum_tree(torch.ones(1, 4), None, torch.float32)


def test_a_file_that_is_not_there_is_not_mapped(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="could not be mapped"):
        Exchange(library_or_skip(), tmp_path / "missing", ranks=2, rank=0)
