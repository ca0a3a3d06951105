"""What `rayline chaos` makes of its cases, which it runs, which it cannot, and what it calls a leak."""

import random
from dataclasses import replace

import pytest

from rayline.deploy.chaos.case import Case, CaseResult, Scene, StreamResult
from rayline.deploy.chaos.footprint import Footprint, Holding, leaks
from rayline.deploy.chaos.matrix import impossible_in, plan
from rayline.deploy.chaos.pairs import Fault, Pair, Target, pairs
from rayline.deploy.chaos.report import lost, rows, spread
from rayline.deploy.chaos.transcript import Transcript
from rayline.deploy.chaos.workload import traffic, workloads
from rayline.protos.errors import InternalError, Unavailable
from rayline.protos.events import Started

KILLED = Pair(Target.RANK, Fault.KILL)
STOPPED = Pair(Target.CONTROLLER, Fault.STOP)


def result(pair: Pair, back_s: float | None, *streams: StreamResult) -> CaseResult:
    return CaseResult(Case(pair, "greedy", 10), streams, back_s)


def stream(losses: int, pause_s: float | None, *complaints: str) -> StreamResult:
    return StreamResult("greedy", losses, pause_s, complaints)


# ---- what is run


def test_all_pairs_are_asked_for_unless_some_are_named() -> None:
    assert len(pairs((), ())) == len(Target) * len(Fault)
    assert pairs(("rank",), ("stop", "kill")) == (Pair(Target.RANK, Fault.STOP), KILLED)


def test_a_plan_holds_every_workload_and_position_of_each_pair_that_can_be_run() -> None:
    planned = plan([KILLED, STOPPED], ["greedy", "beam"], [10, 20, 30], lambda pair: "no" if pair == STOPPED else None)
    assert len(set(planned.cases)) == len(planned.cases) == 6
    assert {case.pair for case in planned.cases} == {KILLED}
    assert [(skipped.pair, skipped.reason) for skipped in planned.skipped] == [(STOPPED, "no")]


def test_a_short_run_has_seen_each_pair_and_each_workload() -> None:
    every = pairs((), ("kill",))
    names = [workload.name for workload in workloads(50)]
    planned = plan(every, names, [10, 20], lambda pair: None)
    first = planned.cases[: len(every)]
    assert {case.pair for case in first} == set(every) and {case.workload for case in first} == set(names)
    assert len(set(planned.cases)) == len(planned.cases) == len(every) * len(names) * 2


def test_a_run_of_as_many_rounds_as_positions_has_seen_each_pair_at_each() -> None:
    every = pairs((), ("kill",))
    planned = plan(every, ["greedy", "beam"], [10, 20, 30], lambda pair: None)
    rounds = planned.cases[: len(every) * 3]
    assert {(case.pair, case.position) for case in rounds} == {(pair, at) for pair in every for at in (10, 20, 30)}


def test_exceptions_are_raised_where_work_is_done_alone() -> None:
    raised = {target for target in Target if Pair(target, Fault.EXCEPTION).pointless is None}
    assert raised == {Target.RANK, Target.LEADER}


def test_what_nobody_ends_is_not_waited_for_to_end() -> None:
    going_on = {pair for pair in pairs((), ()) if not pair.is_lasting}
    cut = {pair for pair in pairs((), ("cut",))}
    assert going_on == {Pair(Target.RAYLET, Fault.STOP), Pair(Target.CONTROLLER, Fault.STOP), *cut}


class Elsewhere:
    """A deployment that somebody else started."""

    nodes = None
    network = None


def test_a_foreign_cluster_loses_no_node_and_no_wire() -> None:
    reason = impossible_in(Elsewhere())  # type: ignore[arg-type]
    refused = {pair for pair in pairs((), ()) if pair.pointless is None and reason(pair) is not None}
    assert refused == {Pair(Target.RAYLET, Fault.KILL), *pairs((), ("cut",))}


def test_every_workload_is_a_valid_request_whose_bits_are_fixed() -> None:
    for workload in (*workloads(50), traffic(0, 50), traffic(7, 50)):
        workload.spec("r", "").check()
        assert workload.params.seed is not None and workload.params.max_tokens is not None
    assert [w.name for w in workloads(50) if w.is_silent] == ["beam"]


# ---- what it amounts to


def test_rows_count_lost_streams_and_time_those_that_moved() -> None:
    cases = [
        result(KILLED, 9.0, stream(1, 0.4), stream(0, 0.1), stream(2, 0.8), stream(1, None)),
        result(STOPPED, 8.0, stream(0, 0.2), stream(0, 0.3)),
        result(KILLED, 11.0, stream(0, 0.1, "it failed")),
    ]
    killed, stopped = rows(cases)
    assert (killed.pair, killed.cases, killed.streams, killed.lost, killed.moved) == (KILLED, 2, 5, 1, 3)
    assert killed.next_token == spread([0.4, 0.8]) and killed.back == spread([9.0, 11.0])
    assert stopped.moved == 0 and stopped.next_token == spread([0.2, 0.3]), "nobody moved: all are looked at"
    assert [(r.case.pair, s.complaints) for r, s in lost(cases)] == [(KILLED, ("it failed",))]


def test_percentiles_of_nothing_are_nothing() -> None:
    assert spread([]) is None
    assert spread([2.0]) is not None


# ---- leaks

BEFORE = Footprint(0, 0, {"RankActor": 8}, {"router": Holding(1, 100 * 2**20, 60)}, ())


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (replace(BEFORE, requests=2), "2 requests are still there"),
        (replace(BEFORE, held_blocks=3), "3 KV blocks"),
        (replace(BEFORE, actors={"RankActor": 9}), "9 actors RankActor, 8 before"),
        (replace(BEFORE, actors={"RankActor": 8, "Other": 1}), "1 actors Other, 0 before"),
        (replace(BEFORE, holdings={"router": Holding(1, 200 * 2**20, 60)}), "router: 200 MiB, 100 before"),
        (replace(BEFORE, holdings={"router": Holding(1, 100 * 2**20, 99)}), "router: 99 file descriptors, 60 before"),
        (replace(BEFORE, leftovers=("rayline-x",)), "shared memory rayline-x"),
    ],
)
def test_what_stays_is_a_leak(after: Footprint, said: str) -> None:
    assert [leak for leak in leaks(BEFORE, after) if said in leak]


def test_less_of_anything_and_a_little_more_of_what_fluctuates_is_none() -> None:
    assert leaks(BEFORE, BEFORE) == ()
    calmer = Footprint(0, 0, {}, {"router": Holding(1, 110 * 2**20, 65), "new": Holding(1, 2**40, 10**6)}, ())
    assert leaks(BEFORE, calmer) == ()


# ---- lost or refused


def test_who_was_told_at_once_that_nobody_can_serve_it_lost_nothing() -> None:
    scene = Scene(Elsewhere(), None, workloads(10), 1, 0, random.Random(0))  # type: ignore[arg-type]
    refused = Transcript("greedy", 0.0, error=Unavailable("no group"))
    assert scene.judged(refused, 0.0) == StreamResult("greedy", 0, None, (), is_refused=True)
    begun = Transcript("greedy", 0.0, [1.0], [Started("r", "cpu", True, 3)], Unavailable("no group"))
    assert scene.judged(begun, 0.0).complaints
    broken = Transcript("greedy", 0.0, error=InternalError("a bug"))
    assert scene.judged(broken, 0.0).complaints
