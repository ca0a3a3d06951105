"""Promise 1: the bits of logits, tokens and logprobs follow from model, numerics class and request alone."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_decoder import Logits, Slice, same_bits
from exact_engine import alone, differences, longest_tokens, run_alone, start
from exact_plants import SumsByBatch, noise_by_row
from exact_requests import (
    SHORT_TOKENS,
    VOCAB_SIZE,
    Arrival,
    Asked,
    Limits,
    arrivals,
    choices,
    fitting,
    limits,
    text,
)
from hypothesis import Phase, find, given, settings
from hypothesis.errors import NoSuchExample
from native import library_or_skip, native_kernels
from torch import Tensor

from rayline.cluster.config import AsyncScheduling, KernelWish, ParallelSection
from rayline.kernels.library import DOT_PRODUCT_ISA, ISAS, load
from rayline.kernels.program import Operations, Team
from rayline.protos.types import SamplingParams
from rayline.workers import last_stage, worker
from rayline.workers.group import StartedGroup
from rayline.workers.local_launch import LocalLauncher

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "mistral, window of 37, 2 KV heads": {"family": "mistral", "sliding_window": 37, "num_key_value_heads": 2},
    "qwen2, tied, biases": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3, tied, one KV head": {"family": "qwen3", "tie_word_embeddings": True, "num_key_value_heads": 1},
}
Make = Callable[[str], Path]


def class_name() -> str:
    """The numerics class of all these groups here: no tp, no pp, no threads in it."""
    return f"cpu-{load().numerics}-bfloat16"


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Iterator[Make]:
    """Checkpoints of MODELS by name, each made once."""
    library_or_skip()
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = random_checkpoint(dtype="bfloat16", **SHAPE | MODELS[name])
        return made[name]

    threads = torch.get_num_threads()
    yield make
    torch.set_num_threads(threads)


# ---- any mixture of requests, on one rank


@pytest.mark.parametrize("model", MODELS)
@given(mixture=arrivals(), engine=limits())
@settings(max_examples=6)
def test_no_mixture_of_requests_changes_a_bit_of_an_answer(
    checkpoint: Make, model: str, mixture: Sequence[Arrival], engine: Limits
) -> None:
    path, mixture = checkpoint(model), fitting(mixture, engine)
    group = start(path, engine, longest_tokens(mixture))
    assert (group.info.numerics, group.info.exact) == (class_name(), True)
    assert not differences(group, mixture, partial(alone, path))


def crowd(count: int = 8, **params: Any) -> tuple[Arrival, ...]:
    """Requests with a common beginning, more than the cache holds to their ends."""
    base = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=60, ignore_eos=True, logprobs=5)
    own = [Asked(((0, 40), (i, 5 + i)), replace(base, **{"seed": i} | params)) for i in range(count)]
    return tuple(Arrival(asked, after_steps=i % 3) for i, asked in enumerate(own))


@pytest.mark.parametrize("model", MODELS)
def test_chunks_prefix_hits_and_preemptions_together_change_no_bit(checkpoint: Make, model: str) -> None:
    path = checkpoint(model)
    group = start(path, Limits(max_step_tokens=23, max_running=8, spare_blocks=5, threads=2), SHORT_TOKENS // 2)
    assert not differences(group, crowd(), partial(alone, path))
    stats = group.engine.scheduler.stats
    assert stats.preemptions > 0 and stats.cached_tokens > 0


@pytest.mark.parametrize("model", MODELS)
def test_choices_that_fork_say_to_the_bit_what_single_requests_say(checkpoint: Make, model: str) -> None:
    path = checkpoint(model)
    (one, *_) = crowd(1, max_tokens=30)
    asked = replace(one.asked, params=replace(one.asked.params, prompt_logprobs=2, repetition_penalty=1.2))
    family = choices(replace(one, asked=asked), 4, "family")
    group = start(path, Limits(max_step_tokens=23, max_running=8), SHORT_TOKENS)
    assert not differences(group, family, partial(alone, path))
    stats = group.engine.scheduler.stats
    assert stats.forks == 3 and stats.copied_blocks == 3


def searches(count: int) -> tuple[Arrival, ...]:
    """Beam searches that share a beginning, more than fit at once."""
    params = SamplingParams(beam_width=4, n=4, max_tokens=30, seed=0, ignore_eos=True)
    return tuple(Arrival(Asked(((0, 17), (i, 5)), params), after_steps=i) for i in range(count))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_searches_that_preempt_each_other_find_the_same_beams(
    checkpoint: Make, model: str, prefix_caching: bool
) -> None:
    path = checkpoint(model)
    engine = Limits(max_step_tokens=23, max_running=20, spare_blocks=8, prefix_caching=prefix_caching)
    group = start(path, engine, SHORT_TOKENS // 2)
    assert not differences(group, [*searches(4), *crowd(2)], partial(alone, path))
    stats = group.engine.scheduler.stats
    assert stats.preemptions > 0 and stats.copied_blocks > 0


@pytest.mark.parametrize("isa", [*ISAS, DOT_PRODUCT_ISA])
def test_the_instruction_sets_of_a_class_give_the_same_answers(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    library_or_skip(isa)
    path, mixture = checkpoint("llama"), crowd(3, max_tokens=16)
    monkeypatch.setattr(worker, "build", lambda _, threads, cores: native_kernels("portable", threads))
    portable = cache(partial(run_alone, path))
    if isa != DOT_PRODUCT_ISA:
        [portable(arrival.asked) for arrival in mixture]
    monkeypatch.setattr(worker, "build", lambda _, threads, cores: native_kernels(isa, threads))
    assert not differences(start(path, Limits(spare_blocks=5), SHORT_TOKENS // 2), mixture, portable)


def test_an_answer_differs_with_its_seed(checkpoint: Make) -> None:
    """So that equal answers above are no accident of a model that always says the same."""
    path = checkpoint("llama")
    asked = crowd()[0].asked
    answers = {run_alone(path, replace(asked, params=replace(asked.params, seed=seed))).tokens for seed in range(8)}
    assert len(answers) == 8


# ---- ranks and stages


LAYOUTS: dict[tuple[int, int], tuple[str, AsyncScheduling]] = {
    (2, 1): ("qwen2, tied, biases", "never"),
    (1, 2): ("qwen3, tied, one KV head", "never"),
    (2, 2): ("llama", "always"),
    (4, 1): ("mistral, window of 37, 2 KV heads", "never"),
}


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: "tp {} pp {}".format(*layout))
def ranks(request: pytest.FixtureRequest, checkpoint: Make) -> Iterator[tuple[StartedGroup, Path]]:
    """A group of several processes that serves one example after the other, and its checkpoint."""
    name, ahead = LAYOUTS[request.param]
    path = checkpoint(name)
    engine = Limits(max_step_tokens=29, max_running=8, spare_blocks=2, decode_stretch=2.0, async_scheduling=ahead)
    tp, pp = request.param
    group = start(path, engine, SHORT_TOKENS, parallel=ParallelSection(tp, pp, 1), launcher=LocalLauncher())
    yield group, path
    group.engine.close()


@given(mixture=arrivals(with_long=False))
@settings(max_examples=6)
def test_ranks_and_stages_change_no_bit(ranks: tuple[StartedGroup, Path], mixture: Sequence[Arrival]) -> None:
    group, path = ranks
    assert (group.info.numerics, group.info.exact) == (class_name(), True)
    assert not differences(group, mixture, partial(alone, path))


# ---- what the property finds


def finds(path: Path, kernels: KernelWish) -> bool:
    """Whether some mixture of requests is answered otherwise than alone."""

    def differs(mixture: Sequence[Arrival]) -> bool:
        group = start(path, Limits(), longest_tokens(mixture), kernels=kernels)
        return bool(differences(group, mixture, partial(run_alone, path, kernels=kernels)))

    once = settings(max_examples=6, phases=[Phase.generate], database=None)
    try:
        find(arrivals(with_long=False), differs, settings=once, random=random.Random(0))
    except NoSuchExample:
        return False
    return True


def test_the_search_for_a_difference_finds_none_in_the_real_kernels(checkpoint: Make) -> None:
    assert not finds(checkpoint("llama"), "native")


def test_another_order_of_a_products_sum_in_batches_is_found(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "build", lambda _, threads, cores: SumsByBatch(Operations(Team(load(), threads))))
    assert finds(checkpoint("llama"), "native")


def test_noise_that_depends_on_the_place_in_the_batch_is_found(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_stage, "sampling_rows", noise_by_row)
    assert finds(checkpoint("llama"), "native")


def test_the_orders_of_torchs_own_products_are_found(checkpoint: Make) -> None:
    path = checkpoint("llama")
    assert not start(path, Limits(), SHORT_TOKENS, kernels="torch").info.exact
    assert finds(path, "torch")


# ---- raw logits


TEXTS = [torch.tensor(text(number, length)) for number, length in ((0, 90), (1, 20), (2, 41))]


def whole() -> list[list[Slice]]:
    return [[(number, 0, len(tokens))] for number, tokens in enumerate(TEXTS)]


def one_by_one() -> list[list[Slice]]:
    return [[(number, at, 1)] for number, tokens in enumerate(TEXTS) for at in range(len(tokens))]


def mixed(seed: int) -> list[list[Slice]]:
    """Chunks of random length of a random choice of the texts in each step, in random order."""
    rng = random.Random(seed)
    done = [0] * len(TEXTS)
    steps: list[list[Slice]] = []
    while left := [number for number, tokens in enumerate(TEXTS) if done[number] < len(tokens)]:
        step = []
        for number in rng.sample(left, rng.randint(1, len(left))):
            count = min(rng.choice([1, 1, 2, 5, 16, 33]), len(TEXTS[number]) - done[number])
            step.append((number, done[number], count))
            done[number] += count
        steps.append(step)
    return steps


@pytest.fixture(scope="module")
def expected(checkpoint: Make, pages: Any) -> Callable[[str, str], list[Tensor]]:
    """Logits of TEXTS on a model and an instruction set, each text computed whole and alone."""
    return cache(lambda model, isa: Logits(checkpoint(model), native_kernels(isa)).of(TEXTS, whole(), pages(64, 16)))


@pytest.mark.parametrize("isa", [*ISAS, DOT_PRODUCT_ISA])
@pytest.mark.parametrize("model", MODELS)
def test_logits_have_the_same_bits_however_texts_are_cut_and_on_every_cpu(
    checkpoint: Make, pages: Any, expected: Callable[[str, str], list[Tensor]], model: str, isa: str
) -> None:
    library_or_skip(isa)
    reference = expected(model, isa if isa == DOT_PRODUCT_ISA else "portable")
    assert all(logits.isfinite().all() for logits in reference)
    for threads, steps in ((1, one_by_one()), (2, mixed(0)), (3, mixed(1))):
        decoder = Logits(checkpoint(model), native_kernels(isa, threads))
        found = decoder.of(TEXTS, steps, pages(block_tokens=16, seed=threads))
        assert all(same_bits(one, other) for one, other in zip(found, reference, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_logits_far_into_a_text_have_the_same_bits_for_any_threads_and_chunks(
    checkpoint: Make, pages: Any, model: str
) -> None:
    tokens = torch.tensor(text(5, 1020))
    (expected,) = Logits(checkpoint(model), native_kernels()).of([tokens], [[(0, 0, 1020)]], pages(block_tokens=32))
    for threads, cuts in ((1, (500, 511, 512, 513, 900)), (2, (1, 512)), (3, (512, 1019)), (2, (200,))):
        edges = [0, *cuts, 1020]
        steps = [[(0, a, b - a)] for a, b in pairwise(edges)]
        decoder = Logits(checkpoint(model), native_kernels(threads=threads))
        assert same_bits(decoder.of([tokens], steps, pages(block_tokens=32))[0], expected)


def test_an_order_planted_in_the_products_shows_in_the_logits(checkpoint: Make, pages: Any) -> None:
    """In some: rounding to bf16 hides most of such differences, so a long text is needed."""
    decoder, tokens = Logits(checkpoint("llama"), SumsByBatch(native_kernels().operations)), torch.tensor(text(0, 400))
    (one,) = decoder.of([tokens], [[(0, 0, 400)]], pages(block_tokens=16))
    (other,) = decoder.of([tokens], [[(0, at, 1)] for at in range(400)], pages(block_tokens=16))
    assert not same_bits(one, other)
