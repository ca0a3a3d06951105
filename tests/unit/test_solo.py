"""Suspects in the scheduler: computed alone until they have gained their tokens, and everybody ends all the same."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, alone, limits

from rayline.protos.blame import PROOF_TOKENS
from rayline.protos.events import Finished, Searched, TokenEvent
from rayline.protos.plan import Plan
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling.reservations import most_blocks


def request(name: str, prompt: int = 6, tokens: int = 12, **more: Any) -> EngineRequest:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=len(name), beam_width=more.pop("width", 0))
    ids = tuple((sum(map(ord, name)) + 3 * place) % 48 + 1 for place in range(prompt))
    return EngineRequest(name, ids, params, **more)


def suspect(name: str, **more: Any) -> EngineRequest:
    return request(name, **{"apart_at": 0} | more)


class Watched:
    """A bench that notes for each plan whose it is and how many plans were in flight when it was made."""

    def __init__(self, *requests: EngineRequest, blocks: int = 64, **changes: Any):
        self.bench = Bench(limits(**changes), blocks)
        self.requests = {each.request_id: each for each in requests}
        self.owners: dict[int, str] = {}
        self.plans: list[tuple[set[str], int]] = []
        self.gained = dict.fromkeys(self.requests, 0)
        for each in requests:
            self.add(each)

    def add(self, each: EngineRequest) -> None:
        self.requests[each.request_id] = each
        self.gained.setdefault(each.request_id, 0)
        self.bench.now_s += 1.0
        self.bench.scheduler.add(each, self.bench.now_s)

    def step(self) -> bool:
        """Fill the ranks and take one result in. False when nothing happened."""
        bench, before = self.bench, len(self.plans)
        while bench.ranks.in_flight < bench.ranks.window:
            in_flight = bench.ranks.in_flight
            named = bench.scheduler.apart
            plan = bench.plan()
            self.owners |= {s.number: s.request.request_id for s in bench.scheduler.live}
            if plan is None:
                break
            self._check(plan, in_flight, named)
        if not bench.ranks.in_flight:
            return len(self.plans) > before
        for event in bench.commit():
            if isinstance(event, TokenEvent):
                self.gained[event.request_id] += 1
            elif isinstance(event, Searched):
                self.gained[event.request_id] = event.tokens
        bench.check()
        return True

    def run(self) -> None:
        idle = 0
        for _ in range(20_000):
            if not self.bench.scheduler.has_work and not self.bench.ranks.in_flight:
                return
            idle = 0 if self.step() else idle + 1
            assert idle < 2, "no progress"
        raise AssertionError("the scheduler never ends")

    def _check(self, plan: Plan, in_flight: int, named: str) -> None:
        """No plan holds a suspect beside others; the first of each is made when none of others is in flight."""
        whose = {self.owners[item.sequence] for item in plan.slices}
        assert named in ("", *whose), "who is named as the only one is computed"
        for name in whose:
            at = self.requests[name].apart_at
            if at is not None and abs(at - self.gained[name] - len(self.requests[name].output_ids)) < PROOF_TOKENS:
                assert whose == {name} == {named}, "a suspect is named before it is planned, and planned alone"
                assert not in_flight or all(owners == whose for owners, _ in self.plans[-in_flight:])
        self.plans.append((whose, in_flight))

    def ends(self) -> dict[str, Finished]:
        return {e.request_id: e for e in self.bench.events if isinstance(e, Finished)}


@pytest.mark.parametrize("depth", [1, 3])
def test_a_suspect_is_computed_alone_until_it_has_gained_its_tokens(depth: int) -> None:
    watched = Watched(request("a", tokens=30), request("b", tokens=30), request("c", tokens=30), depth=depth)
    for _ in range(4):
        watched.step()
    watched.add(suspect("S"))
    watched.run()
    solo = [owners for owners, _ in watched.plans if "S" in owners]
    assert all(owners == {"S"} for owners in solo[:PROOF_TOKENS])
    if depth == 1:
        assert len(solo[PROOF_TOKENS + 1]) > 1, "cleared, it runs beside the others"
    for name in "abcS":
        each = watched.requests[name]
        assert watched.bench.tokens(name) == alone(each.prompt_ids, each.params, 64)


def test_others_make_a_step_between_two_suspects() -> None:
    watched = Watched(request("a", tokens=40), depth=1)
    watched.step()
    for name in ("S1", "S22", "S333"):
        watched.add(suspect(name))
    watched.run()
    firsts = [next(n for n, (owners, _) in enumerate(watched.plans) if name in owners) for name in watched.requests]
    assert firsts == sorted(firsts)
    for one, two in pairwise(firsts[1:]):
        assert any("a" in owners for owners, _ in watched.plans[one:two])


def test_a_resumed_suspect_has_to_gain_its_tokens_anew() -> None:
    watched = Watched(
        request("a", tokens=40), replace(suspect("S", tokens=12, apart_at=3), output_ids=(3, 4, 5)), depth=1
    )
    watched.run()
    solo = [owners for owners, _ in watched.plans if "S" in owners]
    assert solo[:PROOF_TOKENS] == [{"S"}] * PROOF_TOKENS


@pytest.mark.parametrize("depth", [1, 2])
def test_a_suspected_search_is_alone_around_the_place_where_it_was_lost(depth: int) -> None:
    watched = Watched(request("a", tokens=56), suspect("S", width=3, tokens=40, apart_at=20), depth=depth)
    before, there, behind = list[bool](), list[bool](), list[bool]()
    while watched.step():
        tokens = watched.gained["S"]
        is_alone = watched.bench.scheduler.apart == "S"
        (there if abs(tokens - 20) < PROOF_TOKENS else before if tokens < 20 else behind).append(is_alone)
    assert all(there[1:]) and not any(before) and not any(behind[1:])
    assert len(there) >= 2 * PROOF_TOKENS - 1 and before and behind
    assert any(owners == {"a", "S"} for owners, _ in watched.plans[: 2 * PROOF_TOKENS])
    assert isinstance(watched.ends()["S"], Finished)


def test_a_search_that_was_lost_at_once_is_alone_from_the_beginning() -> None:
    watched = Watched(request("a", tokens=40), suspect("S", width=3, tokens=6), depth=2)
    watched.run()
    assert all(owners == {"S"} for owners, _ in watched.plans if "S" in owners)
    assert isinstance(watched.ends()["S"], Finished)


def test_when_a_suspect_is_aborted_the_others_go_on() -> None:
    watched = Watched(request("a", tokens=20), suspect("S"), depth=1)
    while watched.bench.scheduler.apart != "S":
        watched.step()
    watched.bench.scheduler.abort("S")
    assert watched.bench.scheduler.apart == ""
    watched.run()
    assert len(watched.bench.tokens("a")) == 20


def test_a_suspect_never_forks_with_its_siblings() -> None:
    family = [replace(suspect(f"S/{n}"), family="S", prompt_ids=(1, 2, 3, 4, 5)) for n in range(3)]
    watched = Watched(*family, depth=1)
    watched.run()
    assert not any(item.forks for plan in watched.bench.ranks.plans for item in plan.slices)


def test_a_suspected_search_that_lacks_blocks_lets_the_others_go_first() -> None:
    watched = Watched(request("a", tokens=20), blocks=9, max_model_len=28, max_preemptions=1, prefix_caching=False)
    for _ in range(8):
        watched.step()
    watched.add(suspect("S", width=2, tokens=16))
    watched.run()
    assert watched.ends()["S"].preempted.times == 1
    last = max(n for n, (owners, _) in enumerate(watched.plans) if "a" in owners)
    assert any("S" in owners for owners, _ in watched.plans[:last]), "it had begun before"
    assert len(watched.bench.tokens("a")) == 20


mixture = st.lists(
    st.builds(
        dict,
        prompt=st.integers(1, 14),
        tokens=st.integers(1, 12),
        priority=st.integers(-1, 1),
        width=st.sampled_from([0, 0, 0, 2, 3]),
        apart_at=st.sampled_from([None, None, 0, 9, 12]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(mixture, st.integers(7, 24), st.integers(1, 3), st.integers(0, 3), st.integers(0, 5), st.booleans())
def test_whatever_runs_beside_them_suspects_are_alone_and_everybody_ends(
    wanted: list[dict[str, Any]], blocks: int, depth: int, most: int, steps_between: int, caching: bool
) -> None:
    watched = Watched(
        blocks=blocks, depth=depth, max_preemptions=most, prefix_caching=caching, max_model_len=28, max_running=4
    )
    for number, each in enumerate(wanted):
        asked = request(f"r{number}", **each)
        if most_blocks(len(asked.prompt_ids), 28, asked.params.beam_width, 4) > blocks:
            asked = replace(asked, params=replace(asked.params, beam_width=0))
        watched.add(asked)
        for _ in range(steps_between):
            watched.step()
    watched.run()
    assert set(watched.ends()) == set(watched.requests)
    for name, asked in watched.requests.items():
        if not asked.params.beam_width:
            assert watched.bench.tokens(name) == alone(asked.prompt_ids, asked.params, 28)
