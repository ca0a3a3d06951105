"""What ranks agree on before they compute: whether steps are captured, and which."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from threaded_ranks import ThreadedRank, on_all_ranks

from rayline.cluster.parallel import Parallel
from rayline.protos.errors import InternalError
from rayline.workers.agreement import all_succeed, check_alike
from rayline.workers.collectives import Alone
from rayline.workers.rank import with_graphs
from rayline.workers.spec import RankSpec

CPU = torch.device("cpu")


def raising() -> str:
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize(
    ("attempt", "everyone"),
    [(lambda: "", True), (lambda: "no", False), (raising, False)],
    ids=["can", "says no", "raises"],
)
def test_one_rank_is_enough_to_say_no(attempt: Callable[[], str], everyone: bool) -> None:
    def run(rank: ThreadedRank) -> bool:
        return all_succeed(rank, CPU, attempt if rank.rank == 1 else lambda: "")

    assert on_all_ranks(3, run) == [everyone] * 3


def test_ranks_with_other_limits_do_not_start() -> None:
    def run(rank: ThreadedRank) -> str:
        check_alike(rank, CPU, "rows", (64, 16))
        with pytest.raises(InternalError, match="differ in rows and width") as refused:
            check_alike(rank, CPU, "rows and width", (64, 16 + rank.rank))
        return str(refused.value)

    assert on_all_ranks(2, run)[0].endswith("[[64, 16], [64, 17]]")


@dataclass
class Graphs:
    """Captures nothing and calls again. fails: while capturing. stale: a replay computes nothing."""

    fails: bool = False
    stale: bool = False
    replayed: int = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay() -> None:
            self.replayed += 1
            function()

        return (lambda: None) if self.stale else replay


def captured(problem: dict[str, Any], by_host: bool = False) -> list[tuple[bool, int]]:
    def run(rank: ThreadedRank) -> tuple[bool, int]:
        rank.is_by_host = by_host
        graphs = Graphs(**problem) if rank.rank == 1 else Graphs(stale=problem.get("stale", False))
        spec = RankSpec(Path(), "float16", "cpu", Parallel(rank.rank, 2), 1, 16, 0, graph_rows=8)
        return with_graphs(spec, rank, graphs).graph_rows == 8, graphs.replayed

    return on_all_ranks(2, run)


def test_steps_are_captured_where_replayed_sums_are_right() -> None:
    assert captured({}) == [(True, 3)] * 2


def test_a_rank_that_cannot_capture_makes_all_do_without() -> None:
    """Before any of them replays: it would wait for that one in vain."""
    assert captured({"fails": True}) == [(False, 0)] * 2


def test_graphs_whose_sums_stay_what_they_were_are_not_used() -> None:
    assert captured({"stale": True}) == [(False, 0)] * 2


def test_what_goes_by_way_of_the_host_is_not_even_tried(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert captured({}, by_host=True) == [(False, 0)] * 2
    assert "by way of the host" in caplog.text


def test_a_rank_alone_has_nobody_to_ask() -> None:
    spec = RankSpec(Path(), "float16", "cpu", Parallel(), 1, 16, 0, graph_rows=8)
    recorder: Any = None
    assert with_graphs(spec, Alone(), recorder) is spec
