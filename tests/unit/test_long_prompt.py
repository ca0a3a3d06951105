"""A long prompt beside streams: what the benchmark reports, of a server whose times are known."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from poison import in_no_time
from transformers import AutoModelForCausalLM

from rayline.deploy.bench.load import Piece
from rayline.deploy.bench.long_prompt import LongPromptPlan, LongPromptReport, run_long_prompt
from rayline.deploy.bench.workload import Job, Shape
from rayline.deploy.model_path import resolve_model
from rayline.protos.errors import ConfigError, Overloaded, RaylineError
from rayline.workers.bench.random_model import RANDOM_SHAPES, write_random_model

PLAN = LongPromptPlan(Shape(4, 50, 50, 0), streams=3, prompt_tokens=500, lead_s=0.4)


class SlowedTarget:
    """A token each 5 ms; five times that while a long prompt is computed, which takes 0.5 s."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.long = 0
        self.prompts: list[tuple[int, ...]] = []
        self.open = 0

    async def run(self, job: Job) -> AsyncIterator[Piece]:
        self.prompts.append(job.prompt_ids)
        if len(job.prompt_ids) == 500:
            if self.fails:
                raise Overloaded("no room")
            self.long = 1
            await asyncio.sleep(0.5)
            self.long = 0
            yield Piece(1)
            return
        self.open += 1
        try:
            for _ in range(job.output_tokens):
                await asyncio.sleep(0.025 if self.long else 0.005)
                yield Piece(1)
        finally:
            self.open -= 1


async def run(target: SlowedTarget) -> LongPromptReport:
    return await run_long_prompt(target, PLAN, asyncio.get_running_loop().time)


def test_the_report_tells_the_phases_apart() -> None:
    target = SlowedTarget()
    report = in_no_time(run(target))
    assert report.ttft_s == pytest.approx(0.5)
    assert report.ratio_p50 == pytest.approx(report.during.p50_ms / report.before.p50_ms) == pytest.approx(5.0)
    assert report.before.p50_ms == pytest.approx(report.after.p50_ms) == pytest.approx(5.0)
    assert target.open == 0, "the streams are ended"
    assert len(set(target.prompts)) == len(target.prompts), "no prompt has a prefix worth caching"


def test_a_long_prompt_that_fails_is_an_error() -> None:
    with pytest.raises(RaylineError, match="no room"):
        in_no_time(run(SlowedTarget(fails=True)))


def test_a_random_model_is_one_that_transformers_loads(tmp_path: Path) -> None:
    folder = tmp_path / "random"
    write_random_model(folder, resolve_model("embedded"), RANDOM_SHAPES["tiny"], 131072)
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert model.config.max_position_embeddings == 131072
    with pytest.raises(ConfigError, match="exists already"):
        write_random_model(folder, resolve_model("embedded"), RANDOM_SHAPES["tiny"], 131072)
