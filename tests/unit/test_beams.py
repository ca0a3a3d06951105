"""Beam search against transformers.generate: ids and scores, on small random models in fp32."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.protos.events import Beam, EngineEvent, Finished
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.local_launch import LocalLauncher

VOCAB = 61
ENDS = (2, 5, 6, 7)
TIE = 2e-4  # scores nearer than this may come in either order: logits differ by rounding


@dataclass(frozen=True)
class Asked:
    """A search as both sides are asked for it."""

    prompt: tuple[int, ...]
    width: int
    best: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    most: int = 12
    least: int = 0
    ends: tuple[int, ...] = (2,)
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            beam_width=self.width,
            n=self.best,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,  # type: ignore[arg-type]
            max_tokens=self.most,
            min_tokens=self.least,
            stop_token_ids=tuple(token for token in self.ends if token != 2),
            ignore_eos=2 not in self.ends,
            seed=0,
            **dict(self.more),
        )


class Oracle:
    """transformers' own generate."""

    def __init__(self, path: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self.model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def search(self, asked: Asked) -> list[tuple[tuple[int, ...], float]]:
        """(output ids, score), best first. One hypothesis more than wanted tells ties at the cut."""
        out = self.model.generate(
            torch.tensor([asked.prompt]),
            attention_mask=torch.ones(1, len(asked.prompt), dtype=torch.int64),
            do_sample=False,
            num_beams=asked.width,
            num_return_sequences=asked.width,
            length_penalty=asked.length_penalty,
            early_stopping=asked.early_stopping,
            max_new_tokens=asked.most,
            min_new_tokens=asked.least or None,
            eos_token_id=list(asked.ends) or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **dict(asked.more),
        )
        texts = [_cut(row[len(asked.prompt) :].tolist(), asked.ends) for row in out.sequences]
        return list(zip(texts, out.sequences_scores.tolist(), strict=True))


def _cut(tokens: list[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Without the padding behind the end."""
    for at, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: at + 1])
    return tuple(tokens)


def random_asked(rng: random.Random) -> Asked:
    width = rng.choice([2, 2, 3, 4, 5, 8])
    most = rng.randint(1, 16)
    return Asked(
        prompt=tuple(rng.randrange(8, VOCAB) for _ in range(rng.randint(1, 20))),
        width=width,
        best=rng.randint(1, width),
        length_penalty=rng.choice([1.0, 1.0, 0.0, -1.0, 0.5, 2.0, 5.0, -3.0]),
        early_stopping=rng.choice([False, True, "never"]),
        most=most,
        least=rng.choice([0, 0, 0, rng.randint(0, most)]),
        ends=rng.choice([(2,), (2, 5), ENDS, (5, 6), (2, 5, 6, 7, 8, 9, 10, 11, 12, 13), ()]),
    )


def start(path: Path, parallel: ParallelSection | None = None, **engine: Any) -> StartedGroup:
    options: dict[str, Any] = {"max_running": 32, "max_step_tokens": 64, "threads": 1, "kv_bytes": 2**21}
    section = EngineSection(**options | engine)
    parallel = parallel or ParallelSection()
    launcher = LocalLauncher() if parallel.tp * parallel.pp > 1 else None
    spec = GroupSpec("g", "m", path, "float32", 128, section, parallel, max_waiting=1000)
    return start_group(spec, launcher, lambda *_: None)


def run(group: StartedGroup, requests: Sequence[EngineRequest]) -> list[EngineEvent]:
    for request in requests:
        group.engine.add(request)
    events: list[EngineEvent] = []
    while group.engine.has_work:
        events += group.engine.step()
    group.engine.scheduler.pool.check([])
    return events


def search(group: StartedGroup, wishes: Sequence[Asked]) -> list[tuple[Beam, ...]]:
    events = run(group, [EngineRequest(str(i), asked.prompt, asked.params) for i, asked in enumerate(wishes)])
    found = {event.request_id: event.beams for event in events if isinstance(event, Finished)}
    return [found[str(i)] for i in range(len(wishes))]


@dataclass
class Comparison:
    """Counts of searches by outcome; `wrong` holds a line for each that no tie excuses."""

    equal: int = 0
    tied: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, asked: Asked, ours: tuple[Beam, ...], theirs: list[tuple[tuple[int, ...], float]]) -> None:
        wanted = theirs[: asked.best]
        if [beam.token_ids for beam in ours] == [ids for ids, _ in wanted]:
            self.equal += 1
        elif all(abs(beam.score - score) < TIE for beam, (_, score) in zip(ours, wanted, strict=True)):
            self.tied += 1  # other texts of the same scores
        else:
            self.wrong.append(f"{asked}:\n  {[(b.token_ids, b.score) for b in ours]}\n  {wanted}")
        for beam, (ids, score) in zip(ours, wanted, strict=True):
            if beam.token_ids == ids and abs(beam.score - score) > TIE * max(1.0, abs(score)):
                self.wrong.append(f"{asked}: score {beam.score}, not {score}")


def compare(group: StartedGroup, oracle: Oracle, wishes: Sequence[Asked]) -> Comparison:
    comparison = Comparison()
    for asked, ours in zip(wishes, search(group, wishes), strict=True):
        comparison.add(asked, ours, oracle.search(asked))
    return comparison


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint("llama", vocab_size=VOCAB)


@pytest.fixture(scope="module")
def oracle(path: Path) -> Oracle:
    return Oracle(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_searches_find_what_transformers_finds(path: Path, oracle: Oracle, seed: int) -> None:
    rng = random.Random(seed)
    found = compare(start(path), oracle, [random_asked(rng) for _ in range(60)])
    assert not found.wrong, "\n".join(found.wrong)
    assert found.tied <= 1
