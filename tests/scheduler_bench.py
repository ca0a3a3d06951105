"""A scheduler over simulated ranks, stepped by hand: for tests of what it plans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from simulated_ranks import SimulatedRanks, next_token

from rayline.protos.events import EngineEvent, Failed, Finished, PromptScores, TokenEvent
from rayline.protos.plan import Plan
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.scheduler import Scheduler, SchedulerLimits

VOCAB = 50
EOS = 49


def limits(**changes: Any) -> SchedulerLimits:
    base = dict(block_tokens=4, max_model_len=64, max_step_tokens=16, max_running=8, max_waiting=100)
    return SchedulerLimits(**(base | changes))


@dataclass
class Bench:
    """A scheduler, its pool and a simulated rank, stepped by hand."""

    limits: SchedulerLimits = field(default_factory=limits)
    blocks: int = 64
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.blocks)
        self.scheduler = Scheduler(self.limits, self.pool, frozenset({EOS}))
        self.ranks = SimulatedRanks(
            self.blocks, self.limits.block_tokens, VOCAB, self.limits.depth + 1, frozenset({EOS})
        )
        self.events: list[EngineEvent] = []

    def add(self, request_id: str, prompt: int | tuple[int, ...] = 4, priority: int = 0, **params: Any) -> None:
        ids = tuple(range(1, prompt + 1)) if isinstance(prompt, int) else prompt
        sampling = SamplingParams(**({"max_tokens": 4, "ignore_eos": True, "seed": 0} | params))
        self.now_s += 1.0
        self.scheduler.add(EngineRequest(request_id, ids, sampling, priority=priority), self.now_s)

    def plan(self) -> Plan | None:
        plan = self.scheduler.plan(self.now_s)
        if plan is not None:
            self.ranks.submit(plan)
        return plan

    def commit(self) -> list[EngineEvent]:
        events = self.scheduler.commit(self.ranks.next_result())
        self.events += events
        return events

    def step(self) -> Plan | None:
        while self.ranks.in_flight < self.ranks.window and self.plan():
            self.check()
        last = self.ranks.plans[-1] if self.ranks.in_flight else None
        if self.ranks.in_flight:
            self.commit()
        self.check()
        return last

    def run(self) -> None:
        for _ in range(10_000):
            if not self.scheduler.has_work and not self.ranks.in_flight:
                return
            before = (len(self.events), len(self.ranks.plans), self.ranks.in_flight)
            self.step()
            assert before != (len(self.events), len(self.ranks.plans), self.ranks.in_flight), "no progress"
        raise AssertionError("the scheduler never ends")

    def play(
        self, data: st.DataObject, draw: Callable[[str], Sequence[EngineRequest]], most_actions: int
    ) -> tuple[dict[str, EngineRequest], set[str]]:
        """Add what `draw(name)` gives, abort and step in any order, run to the end: requests, ids of the aborted."""
        requests: dict[str, EngineRequest] = {}
        aborted: set[str] = set()
        for number in range(data.draw(st.integers(1, most_actions))):
            action = data.draw(st.sampled_from(["add", "add", "step", "step", "abort"]))
            if action == "add":
                self.now_s += data.draw(st.sampled_from([0.0, 1.0]))
                for request in draw(f"r{number}"):
                    requests[request.request_id] = request
                    self.scheduler.add(request, self.now_s)
            elif action == "abort" and requests:
                request_id = data.draw(st.sampled_from(sorted(requests)))
                if ended := self.scheduler.abort(request_id):
                    aborted.add(request_id)
                    self.events += ended
            else:
                self.step()
            self.check()
        self.run()
        assert self.pool.available == self.blocks
        assert all(len(self.ends(request_id)) == 1 for request_id in requests)
        return requests, aborted

    def check(self) -> None:
        self.pool.check([sequence.blocks for sequence in self.scheduler.live])

    def tokens(self, request_id: str) -> list[int]:
        return [e.token_id for e in self.events if isinstance(e, TokenEvent) and e.request_id == request_id]

    def scores(self, request_id: str) -> list[PromptScores]:
        return [e for e in self.events if isinstance(e, PromptScores) and e.request_id == request_id]

    def ends(self, request_id: str) -> list[Finished | Failed]:
        return [e for e in self.events if isinstance(e, Finished | Failed) and e.request_id == request_id]

    def finished(self, request_id: str) -> Finished:
        (end,) = [e for e in self.events if isinstance(e, Finished) and e.request_id == request_id]
        return end


def alone(prompt: tuple[int, ...], params: SamplingParams, max_model_len: int) -> list[int]:
    """What the simulated model answers to a request that runs by itself."""
    tokens, outputs = list(prompt), []
    while len(outputs) < (params.max_tokens or max_model_len) and len(tokens) < max_model_len:
        outputs.append(next_token(tuple(tokens), VOCAB, params.seed or 0))
        tokens.append(outputs[-1])
        if outputs[-1] in params.stop_token_ids or (outputs[-1] == EOS and not params.ignore_eos):
            break
    return outputs
