"""A step is launched while the one before runs: on a device that computes late, nothing is read too early."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing_kernels import DrawingKernels
from late_device import Late, LateDevice

from rayline.cluster.config import AsyncScheduling, EngineSection, ParallelSection
from rayline.kernels import edits, sampling
from rayline.protos.events import Failed, Finished, PromptScores, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams, TokenRules
from rayline.workers import batch, cache, token_feed, worker
from rayline.workers.group import GroupSpec, start_group
from rayline.workers.in_process import InProcess
from rayline.workers.step_clock import StepClock
from rayline.workers.steps import Steps

PLAIN: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "noise": {"temperature": 0.9},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "temperature": 0.0},
    "bans": {"logit_bias": ((30, 2.0), (31, -4.0)), "no_repeat_ngram_size": 3, "min_tokens": 9},
    "lists": {"allowed_token_ids": tuple(range(5, 600)), "temperature": 0.7},
    "top-k": {"top_k": 4},
    "logprobs": {"logprobs": 2},
    "prompt logprobs": {"prompt_logprobs": 1},
}
SEARCH: dict[str, Any] = {"beam_width": 3, "n": 2}


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint("llama", num_hidden_layers=2)


@pytest.fixture(autouse=True)
def drawing_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "build", lambda *_: DrawingKernels())


@dataclass
class Run:
    """What a group told, request by request."""

    tokens: dict[str, list[tuple[int, float | None]]]
    scores: dict[str, list[tuple[int, float]]]
    ends: dict[str, Finished | Failed]

    @property
    def texts(self) -> dict[str, list[int]]:
        return {request_id: [token for token, _ in tokens] for request_id, tokens in self.tokens.items()}


@contextmanager
def computing(device: LateDevice, steps: Steps) -> Iterator[None]:
    """Keys and values, and whatever a step copies to its device, lie on `device`."""
    for layer in steps._stage.cache.layers:
        for name in ("keys", "values"):
            object.__setattr__(layer, name, device.own(getattr(layer, name)))
    steps._mark = device.mark
    steps.clock = StepClock()
    with pytest.MonkeyPatch.context() as patch:
        for module in (batch, cache, edits, token_feed):
            patch.setattr(module, "to_device", lambda tensor, _: device.own(tensor))
        yield


def play(
    path: Path,
    requests: Sequence[EngineRequest],
    scheduling: AsyncScheduling,
    device: LateDevice | None = None,
    blocks: int = 100,
    between: Callable[[Any, int], None] = lambda engine, step: None,
) -> Run:
    """device: which computes the steps; None for this CPU, at once."""
    block_bytes = 2 * 2 * 2 * 20 * 4 * 4  # keys and values, 2 layers, 2 heads of 20 fp32 numbers, 4 tokens
    section = EngineSection(
        block_tokens=4, kv_bytes=blocks * block_bytes, max_step_tokens=24, max_running=8, decode_stretch=1000.0,
        threads=1, kernels="torch", async_scheduling=scheduling,
    )  # fmt: skip
    spec = GroupSpec("g", "tiny", path, "float32", 0, section, ParallelSection(), max_waiting=100)
    engine = start_group(spec, None, lambda *_: None).engine
    assert isinstance(engine.pipeline, InProcess)
    for request in requests:
        engine.add(request)
    names = [request.request_id for request in requests]
    run = Run({name: [] for name in names}, {name: [] for name in names}, {})
    with nullcontext() if device is None else computing(device, engine.pipeline._steps):
        for step in count(1):
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    run.tokens[event.request_id].append((event.token_id, event.logprob))
                elif isinstance(event, PromptScores):
                    run.scores[event.request_id] += [(own.token_id, own.logprob) for own, _ in event.tokens]
                elif isinstance(event, Finished | Failed):
                    run.ends[event.request_id] = event
            if not engine.has_work:
                break
            between(engine, step)
    engine.scheduler.pool.check([])
    return run


def request(name: str, length: int = 9, rules: TokenRules | None = None, **params: Any) -> EngineRequest:
    base: dict[str, Any] = {"max_tokens": 14, "seed": length, "ignore_eos": True}
    prompt = tuple(5 + (7 * length + 13 * at) % 900 for at in range(length))
    return EngineRequest(name, prompt, SamplingParams(**(base | params)), rules=rules or TokenRules())


@torch.inference_mode()
def test_a_number_of_the_late_device_is_not_there_before_it_is_waited_for() -> None:
    """Else the tests below could not fail."""
    device = LateDevice()
    x = device.own(torch.arange(4))
    doubled = x * 2
    x.add_(1)
    mark = device.mark()
    assert isinstance(doubled, Late) and doubled.number is None and not mark.is_reached()
    later = torch.cat((doubled, x))[1:]
    mark.wait()
    assert device.waits == 0 and device.behind == [2]
    assert doubled.tolist() == [0, 2, 4, 6] and device.waits == 0
    assert later.tolist() == [2, 4, 6, 1, 2, 3, 4] and device.waits == 1
    assert int(doubled.sum()) == 12 and device.waits == 2


@pytest.mark.parametrize("kinds", [["greedy"], list(PLAIN)], ids=["greedy", "all"])
def test_nothing_is_read_between_the_launch_of_a_step_and_that_of_the_next(path: Path, kinds: list[str]) -> None:
    """Each time the host waits for a step the next one has been launched behind it."""
    requests = [request(kind, 5 + 9 * at, **PLAIN[kind]) for at, kind in enumerate(kinds)]
    device = LateDevice()
    ahead = play(path, requests, "always", device)
    assert device.waits == 0
    assert len(device.behind) >= 14 and all(behind > 50 for behind in device.behind[:-1]) and device.behind[-1] == 0
    assert ahead.texts == play(path, requests, "never").texts
    assert all(len(tokens) == 14 for tokens in ahead.texts.values())


def test_without_it_the_device_has_nothing_to_do_when_a_step_is_over(path: Path) -> None:
    device = LateDevice()
    run = play(path, [request("one")], "never", device)
    assert device.waits == 0 and set(device.behind) == {0}
    assert run.texts == play(path, [request("one")], "always").texts


def test_scores_of_prompts_and_candidates_of_beams_are_not_awaited_either(path: Path) -> None:
    """A search goes on once its leader has chosen, but nobody waits for it meanwhile."""
    requests = [request("plain", 7), request("scored", 30, **PLAIN["prompt logprobs"]), request("beams", 16, **SEARCH)]
    device = LateDevice()
    ahead = play(path, requests, "always", device)
    assert device.waits == 0
    assert len([behind for behind in device.behind if behind > 50]) > 10
    eager = play(path, requests, "never")
    assert ahead.texts == eager.texts
    assert [token for token, _ in ahead.scores["scored"]] == [token for token, _ in eager.scores["scored"]]
    assert len(ahead.scores["scored"]) == 29
    for (_, mine), (_, theirs) in zip(ahead.scores["scored"], eager.scores["scored"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    mine, theirs = (run.ends["beams"] for run in (ahead, eager))
    assert isinstance(mine, Finished) and isinstance(theirs, Finished) and len(mine.beams) == 2
    assert [beam.token_ids for beam in mine.beams] == [beam.token_ids for beam in theirs.beams]


def test_a_score_that_is_read_while_it_is_sampled_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's own scores are."""
    monkeypatch.setattr(DrawingKernels, "score", lambda _, *given: sampling.score(*given))
    device = LateDevice()
    play(path, [request("plain", 7), request("scored", 30, **PLAIN["prompt logprobs"])], "always", device)
    assert device.waits > 0


def test_preempted_ended_and_aborted_requests_leave_the_others_as_they_are(path: Path) -> None:
    """Blocks are given away while the step that still writes to them is on its way."""
    requests = [request(f"r{at}", 6 + 5 * at, max_tokens=20 + at % 3) for at in range(5)]
    stops = play(path, [requests[0]], "never").texts["r0"][6]
    requests.append(request("stops", 6, max_tokens=20, stop_token_ids=(stops,)))
    gone: list[str] = []

    def abort(engine: Any, step: int) -> None:
        if step == 8:
            gone.extend(event.request_id for event in engine.abort("r3"))

    device = LateDevice()
    ahead = play(path, requests, "always", device, blocks=26, between=abort)
    assert gone == ["r3"] and device.waits == 0
    for each in requests:
        alone = play(path, [each], "never").texts[each.request_id]
        said = ahead.texts[each.request_id]
        assert said == (alone[: len(said)] if each.request_id == "r3" else alone)
    assert ahead.texts["stops"][-1] == stops and len(ahead.texts["stops"]) < 20


def test_a_sequence_that_has_no_token_left_is_refused_and_harms_no_other(path: Path) -> None:
    nothing = request("none", 8, TokenRules(bad_words=((40,),)), allowed_token_ids=(40,))
    device = LateDevice()
    run = play(path, [request("plain", 7), nothing], "always", device)
    assert isinstance(run.ends["none"], Failed) and run.texts["none"] == [] and device.waits == 0
    assert run.texts["plain"] == play(path, [request("plain", 7)], "never").texts["plain"]
