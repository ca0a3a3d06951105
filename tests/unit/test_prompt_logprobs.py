"""Logprobs of prompts against transformers: whole, in chunks, preempted, over ranks and stages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.protos.events import EngineEvent, PromptScores
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.local_launch import LocalLauncher

PROMPTS = [tuple((37 * i * i + 11 * n) % 1003 for i in range(n)) for n in (2, 50, 33, 200)]


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint("llama")


@pytest.fixture(scope="module")
def logprobs(path: Path) -> list[torch.Tensor]:
    """Of each prompt, fp32 [tokens, vocabulary]: row i tells of token i + 1."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0].log_softmax(-1) for prompt in PROMPTS]


def start(path: Path, parallel: ParallelSection | None = None, **engine: Any) -> StartedGroup:
    options: dict[str, Any] = {
        "decode_stretch": 1000.0,
        "max_running": 8,
        "max_step_tokens": 512,
        "threads": 1,
        "kv_bytes": 2**22,
    }
    section = EngineSection(**options | engine)
    parallel = parallel or ParallelSection()
    launcher = LocalLauncher() if parallel.tp * parallel.pp > 1 else None
    return start_group(
        GroupSpec("g", "m", path, "float32", 256, section, parallel, max_waiting=64), launcher, lambda *_: None
    )


def ask(group: StartedGroup, tops: Sequence[int], tokens: int = 4) -> list[PromptScores]:
    for number, (prompt, top) in enumerate(zip(PROMPTS, tops, strict=True)):
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, seed=0, prompt_logprobs=top)
        group.engine.add(EngineRequest(str(number), prompt, params))
    events: list[EngineEvent] = []
    while group.engine.has_work:
        events += group.engine.step()
    group.engine.scheduler.pool.check([])
    return [event for event in events if isinstance(event, PromptScores)]


def assert_equal(found: Sequence[PromptScores], tops: Sequence[int], wanted: Sequence[torch.Tensor]) -> None:
    for number, (prompt, top) in enumerate(zip(PROMPTS, tops, strict=True)):
        told = [score for event in found if event.request_id == str(number) for score in event.tokens]
        assert [own.token_id for own, _ in told] == list(prompt[1:])
        for row, (own, best) in zip(wanted[number], told, strict=False):
            assert own.logprob == pytest.approx(float(row[own.token_id]), abs=1e-4)
            values, _ = row.topk(top)
            assert [other.logprob for other in best] == pytest.approx(values.tolist(), abs=1e-4)
            assert all(float(row[other.token_id]) == pytest.approx(other.logprob, abs=1e-4) for other in best)


LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in chunks": {"max_step_tokens": 17},
    "in slots": {"kv_cache": "static"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_prompt_token_has_the_logprob_of_transformers(
    path: Path, logprobs: list[torch.Tensor], layout: dict[str, Any]
) -> None:
    tops = [0, 5, 20, 3]
    assert_equal(ask(start(path, **layout), tops), tops, logprobs)


def test_a_preempted_prompt_is_scored_once(path: Path, logprobs: list[torch.Tensor]) -> None:
    token_bytes = 2 * 3 * 2 * 20 * 4  # keys and values x layers x KV heads x head dim x float32
    group = start(path, kv_bytes=20 * 16 * token_bytes, block_tokens=16, max_step_tokens=29)
    found = ask(group, [1, 1, 1, 1], tokens=100)
    assert group.engine.scheduler.stats.preemptions > 0
    assert_equal(found, [1, 1, 1, 1], logprobs)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_ranks_and_stages_score_alike(path: Path, logprobs: list[torch.Tensor], tp: int, pp: int) -> None:
    group = start(path, ParallelSection(tp, pp, 1), max_step_tokens=40)
    try:
        found = ask(group, [2, 2, 2, 2])
    finally:
        group.engine.close()
    assert_equal(found, [2, 2, 2, 2], logprobs)
