"""Beam search against transformers.generate: ids and scores, on small random models in fp32."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.protos.errors import InvalidRequest
from rayline.protos.events import Beam, EngineEvent, Failed, Finished, FinishReason, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams, TokenRules
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
    options: dict[str, Any] = {
        "decode_stretch": 1000.0,
        "max_running": 32,
        "max_step_tokens": 64,
        "threads": 1,
        "kv_bytes": 2**21,
    }
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


def test_processed_logprobs_are_searched_as_transformers_searches_them(path: Path, oracle: Oracle) -> None:
    rng = random.Random(100)
    wishes = []
    for _ in range(60):
        asked = random_asked(rng)
        edits = {"repetition_penalty": rng.choice([1.0, 1.3, 0.8]), "no_repeat_ngram_size": rng.choice([0, 1, 2, 3])}
        wishes.append(replace(asked, more=tuple(edits.items())))
    found = compare(start(path), oracle, wishes)
    assert not found.wrong, "\n".join(found.wrong)
    assert found.tied <= 1


def sampled(count: int, tokens: int = 24) -> list[EngineRequest]:
    params = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True)
    return [EngineRequest(f"s{i}", (9 + i, 8, 7), replace(params, seed=i)) for i in range(count)]


def tokens(events: Sequence[EngineEvent], request_id: str) -> list[int]:
    return [e.token_id for e in events if isinstance(e, TokenEvent) and e.request_id == request_id]


LAYOUTS: dict[str, dict[str, Any]] = {
    "beside samples": {},
    "without prefix cache": {"prefix_caching": False},
    "in blocks of 3 tokens": {"block_tokens": 3},
    "in slots": {"kv_cache": "static"},
    "in few blocks": {"kv_bytes": 2 * 3 * 2 * 20 * 4 * 16 * 17, "block_tokens": 16},
    "few tokens a step": {"max_step_tokens": 9, "max_running": 9},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_searches_in_one_batch_with_samples(path: Path, oracle: Oracle, layout: dict[str, Any]) -> None:
    rng = random.Random(7)
    wishes = [random_asked(rng) for _ in range(12)]
    crowd = sampled(6)
    group = start(path, **layout)
    beams = [EngineRequest(str(i), asked.prompt, asked.params) for i, asked in enumerate(wishes)]
    mixed = [request for pair in zip(beams, crowd, strict=False) for request in pair] + beams[len(crowd) :]
    events = run(group, mixed)
    found = Comparison()
    ends = {event.request_id: event.beams for event in events if isinstance(event, Finished)}
    for number, asked in enumerate(wishes):
        found.add(asked, ends[str(number)], oracle.search(asked))
    assert not found.wrong, "\n".join(found.wrong)
    assert all(len(tokens(events, request.request_id)) == 24 for request in crowd)
    if "kv_bytes" in layout:
        assert group.engine.scheduler.stats.preemptions > 0
    assert group.engine.scheduler.stats.copied_blocks > 0


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_stages_find_the_same(path: Path, oracle: Oracle, tp: int, pp: int) -> None:
    rng = random.Random(tp * 10 + pp)
    group = start(path, ParallelSection(tp, pp, 1))
    try:
        wishes = [random_asked(rng) for _ in range(20)]
        for request in sampled(4):
            group.engine.add(request)
        found = compare(group, oracle, wishes)
    finally:
        group.engine.close()
    assert not found.wrong, "\n".join(found.wrong)


def test_a_beam_tells_why_it_ended_and_its_logprobs_sum_to_its_score(path: Path, oracle: Oracle) -> None:
    rng = random.Random(5)
    wishes = [replace(random_asked(rng), length_penalty=1.0, ends=ENDS, least=0) for _ in range(20)]
    found = search(start(path), wishes)
    reasons = set()
    for asked, beams in zip(wishes, found, strict=True):
        for beam in beams:
            ended = beam.token_ids[-1] in ENDS
            assert beam.reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
            assert beam.stop_token == (beam.token_ids[-1] if ended else None)
            assert ended or len(beam.token_ids) == asked.most
            assert abs(sum(beam.logprobs) / len(beam.token_ids) - beam.score) < 1e-4
            reasons.add(beam.reason)
    assert len(reasons) == 2, "both kinds of end were seen"


def test_one_beam_is_greedy(path: Path) -> None:
    """transformers takes num_beams = 1 for greedy search; so does the arithmetic."""
    group = start(path)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0)
    events = run(group, [EngineRequest("g", (8, 9, 10), params)])
    (beams,) = search(group, [Asked((8, 9, 10), width=1, ends=())])
    assert beams[0].token_ids == tuple(tokens(events, "g"))


def test_masks_that_leave_fewer_texts_than_beams_give_fewer(path: Path) -> None:
    group = start(path)
    params = SamplingParams(beam_width=4, n=4, max_tokens=3, allowed_token_ids=(9,), seed=0)
    events = run(group, [EngineRequest("r", (8,), params)])
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert [beam.token_ids for beam in end.beams] == [(9, 9, 9)]


def test_masks_that_leave_no_text_at_all_are_the_requests_own_failure(path: Path) -> None:
    group = start(path)
    params = SamplingParams(beam_width=2, max_tokens=3, allowed_token_ids=(9,), seed=0)
    events = run(group, [EngineRequest("r", (8,), params, rules=TokenRules(bad_words=((9,),))), *sampled(1)])
    (end,) = [event for event in events if isinstance(event, Failed)]
    assert isinstance(end.error, InvalidRequest) and "no text is left" in end.error.message
    assert len(tokens(events, "s0")) == 24


def test_length_penalties_at_their_ends_break_nothing(path: Path) -> None:
    wishes = [Asked((8, 9), 3, 3, penalty, early) for penalty in (100.0, -100.0) for early in (True, False, "never")]
    for beams in search(start(path), wishes):
        assert len(beams) == 3 and all(beam.token_ids for beam in beams)
