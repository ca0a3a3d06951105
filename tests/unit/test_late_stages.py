"""Stages launch steps before the ones before have come: on late devices with late links nothing is read too early."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing_kernels import DrawingKernels
from late_stages import Call, LateStages, LateStaging, Stuck, passes

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.protos.events import Failed, Finished, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers import group, lines, stages, steps
from rayline.workers.group import GroupSpec
from rayline.workers.models.config import ModelConfig

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "noise": {"temperature": 0.9},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "temperature": 0.0},
    "logprobs": {"logprobs": 2},
    "short": {"max_tokens": 3},
}
SEARCH: dict[str, Any] = {"beam_width": 3, "n": 2}


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint("llama", num_hidden_layers=3)


def request(name: str, length: int, **params: Any) -> EngineRequest:
    base: dict[str, Any] = {"max_tokens": 10, "seed": length, "ignore_eos": True}
    prompt = tuple(5 + (7 * length + 13 * at) % 900 for at in range(length))
    return EngineRequest(name, prompt, SamplingParams(**(base | params)))


MIXTURE = [request(kind, 5 + 9 * at, **params) for at, (kind, params) in enumerate(KINDS.items())]


@dataclass
class Run:
    """What a group told of each request, and its ranks."""

    told: dict[str, list[Any]]
    logprobs: dict[str, list[float]]
    ranks: LateStages

    def says(self, other: "Run") -> bool:
        """Whether its requests were answered as the same ones of another run: torch adds in an order of its own."""
        return self.told == {name: other.told[name] for name in self.told} and all(
            mine == pytest.approx(other.logprobs[name], abs=1e-4) for name, mine in self.logprobs.items()
        )


def play(
    path: Path, requests: Sequence[EngineRequest], pp: int, window: int = 2, seed: int = 0, blocks: int = 100
) -> Run:
    """blocks: of the KV cache, 4 tokens each."""
    section = EngineSection(
        block_tokens=4, kv_bytes=1, max_step_tokens=24, max_running=8, decode_stretch=1000.0, threads=1, kernels="torch"
    )
    spec = GroupSpec("g", "tiny", path, "float32", 0, section, ParallelSection(1, pp, 1), max_waiting=100)
    config = ModelConfig.load(path)
    ranks = LateStages(group._rank_specs(spec, config, "float32"), DrawingKernels(), window, seed)
    loaded = dict(enumerate(ranks.load()))
    most = max(each.block_bytes for each in loaded.values())
    spec = replace(spec, engine=replace(section, kv_bytes=blocks * most))
    kv = group._kv_plan(spec, config, loaded)
    ranks.allocate(kv.blocks)
    pipeline: Any = ranks
    engine = group._engine(spec, config, kv, pipeline, lambda: 0.0)
    told: dict[str, list[Any]] = {each.request_id: [] for each in requests}
    logprobs: dict[str, list[float]] = {each.request_id: [] for each in requests}
    for each in requests:
        engine.add(each)
    with ranks.computing():
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    told[event.request_id].append(event.token_id)
                    logprobs[event.request_id].append(event.logprob or 0.0)
                elif isinstance(event, Finished | Failed):
                    told[event.request_id] += [event.reason] if isinstance(event, Finished) else [str(event.error)]
                    told[event.request_id] += [each.token_ids for each in getattr(event, "beams", ())]
    engine.scheduler.pool.check([])
    return Run(told, logprobs, ranks)


@pytest.fixture(scope="module")
def alone(path: Path) -> Run:
    """One stage, one step after the other."""
    return play(path, [*MIXTURE, request("search", 16, **SEARCH)], pp=1, window=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pp", [2, 3])
def test_no_host_waits_but_at_the_end_of_steps(path: Path, alone: Run, pp: int, seed: int) -> None:
    """Whichever rank goes on next: steps are launched behind the one that is awaited, on every stage."""
    run = play(path, MIXTURE, pp, seed=seed)
    assert run.says(alone)
    assert [device.waits for device in run.ranks.devices] == [0] * pp and not run.ranks.broken
    for device in run.ranks.devices:
        ahead = [behind > 20 for behind in device.behind]
        assert len(ahead) > 20 and sum(ahead) / len(ahead) > 0.6, ahead


def test_without_it_nothing_lies_behind_the_step_that_is_awaited(path: Path, alone: Run) -> None:
    run = play(path, MIXTURE, pp=2, window=1)
    assert run.says(alone)
    assert all(behind < 20 for device in run.ranks.devices for behind in device.behind)


@pytest.mark.parametrize("pp", [2, 3])
def test_preempted_sequences_are_computed_again_from_tokens_that_are_on_their_way(
    path: Path, alone: Run, pp: int
) -> None:
    run = play(path, MIXTURE, pp, seed=7, blocks=26)
    assert run.says(alone)
    assert not run.ranks.broken


def test_beams_wait_for_the_leader_and_answer_the_same(path: Path, alone: Run) -> None:
    requests = [*MIXTURE[:2], request("search", 16, **SEARCH)]
    run = play(path, requests, pp=2, seed=3)
    assert run.says(alone)


@pytest.mark.parametrize("pp", [2, 3])
def test_calls_that_waited_for_their_other_end_would_all_come_through(path: Path, pp: int) -> None:
    """So NCCL may hold up the host at any call, as it does at the first one of a group."""
    calls = play(path, MIXTURE, pp, seed=pp).ranks.calls
    assert all(len(each) > 30 for each in calls)
    assert passes(calls)


def test_an_order_that_would_not_come_through_is_found() -> None:
    one, other = Call("hidden", 1), Call("tokens", 0)
    assert passes([[other, one], [other, one]]) and not passes([[one, other], [other, one]])
    assert not passes([[one], []])


# ---- what these tests find


def test_a_receive_that_is_posted_as_soon_as_its_plan_is_known_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage would ask for hidden states that need tokens which it has not sent."""

    def foresee(self: Any, shape: Any, dtype: Any) -> None:
        if self._lines.hidden_in is not None:
            self._lines.hidden_in.expect(shape, dtype)

    monkeypatch.setattr(stages.StageLinks, "foresee", foresee)
    assert not passes(play(path, MIXTURE, pp=2).ranks.calls)


def test_a_buffer_that_is_written_again_before_it_was_sent_is_found(
    path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As captured steps write theirs."""
    buffers: dict[Any, Any] = {}
    send = stages.StageLinks.send_hidden

    def reused(self: Any, hidden: Any) -> None:
        buffer = buffers.setdefault((self, hidden.shape), hidden)
        send(self, buffer if buffer is hidden else buffer.copy_(hidden))

    monkeypatch.setattr(stages.StageLinks, "send_hidden", reused)
    assert not play(path, MIXTURE, pp=2).says(alone)


def test_a_buffer_that_is_given_back_before_it_was_sent_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(self: Any, tensor: Any) -> None:
        dist: Any = lines.dist
        dist.isend(self._staging.out(tensor), self._peer, group=self._group)

    monkeypatch.setattr(lines.Line, "send", send)
    with pytest.raises(AssertionError, match="given back before it was sent"):
        play(path, MIXTURE, pp=2)


def test_received_memory_that_is_not_kept_until_it_is_read_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = steps.Step
    monkeypatch.setattr(steps, "Step", lambda *fields: step(*fields[:-1], ()))
    with pytest.raises(AssertionError, match="given back before it was filled"):
        play(path, MIXTURE, pp=2)


@torch.inference_mode()
def test_memory_that_is_given_back_between_its_launches_and_their_end_is_found() -> None:
    staging = LateStaging(torch.device("cpu"))
    for is_early in (False, True):
        room: Any = staging.room((2,), torch.int64)
        room.cell.number = torch.tensor([3, 4])
        more = room + 1
        if not is_early:
            staging.late.run(len(staging.late.queue))
        del room
        assert len(staging.broken) == is_early
    assert more.tolist() == [4, 5]


def test_a_stage_that_waits_for_tokens_of_plans_it_was_not_given_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.StageLinks, "send_tokens", lambda *_: None)
    with pytest.raises(Stuck):
        play(path, MIXTURE, pp=2)
