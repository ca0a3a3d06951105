"""Edits of logits against the logits processors of `transformers`, and in C++ against torch, bit for bit."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import every_isa, native_kernels
from torch import Tensor
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from rayline.kernels.edits import Edit, allowed_by, edited, mask_of
from rayline.kernels.native_edits import NativeEdits
from rayline.kernels.native_sampling import Part
from rayline.protos.types import SamplingParams, TokenRules
from rayline.workers.history import History
from rayline.workers.sampler import SampleRequest, edit_of

INF = float("inf")
VOCAB = 12  # so small that tokens and n-grams repeat

tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24)


def edit(
    prompt: Sequence[int],
    output: Sequence[int],
    rules: TokenRules | None = None,
    eos: Sequence[int] = (),
    **params: Any,
) -> Edit | None:
    """What a request of these parameters does to its next row."""
    asked, rules = SamplingParams(**params), rules or TokenRules()
    history = History(asked, rules, prompt, output)
    return edit_of(SampleRequest(1, asked, len(prompt) + len(output), len(output), rules, history), eos, VOCAB)


def row(seed: int) -> Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@given(tokens, tokens, st.floats(0.01, 100.0), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_the_repetition_penalty_is_that_of_transformers(
    prompt: list[int], output: list[int], penalty: float, seed: int
) -> None:
    logits = row(seed)
    oracle = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits.clone())
    assert torch.equal(edited(logits, [edit(prompt, output, repetition_penalty=penalty)]), oracle)


@given(tokens, tokens, st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_no_n_gram_is_repeated_that_transformers_would_not_repeat(
    prompt: list[int], output: list[int], size: int, seed: int
) -> None:
    logits = row(seed)
    oracle = NoRepeatNGramLogitsProcessor(size)(torch.tensor([prompt + output]), logits.clone())
    assert torch.equal(edited(logits, [edit(prompt, output, no_repeat_ngram_size=size)]), oracle)


@given(tokens, tokens, st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=9))
@settings(max_examples=80, deadline=None)
def test_bad_words_are_those_of_transformers(prompt: list[int], output: list[int], words: list[list[int]]) -> None:
    logits = row(len(words))
    oracle = NoBadWordsLogitsProcessor(words)(torch.tensor([prompt + output]), logits.clone())
    rules = TokenRules(bad_words=tuple(tuple(word) for word in words))
    assert torch.equal(edited(logits, [edit(prompt, output, rules)]), oracle)


@given(st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), min_size=1), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_bias_is_transformers_bias_of_single_tokens(bias: dict[int, float], seed: int) -> None:
    logits = row(seed)
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    oracle = processor(torch.tensor([[1, 2]]), logits.clone())
    assert torch.equal(edited(logits, [edit([1], [2], logit_bias=tuple(bias.items()))]), oracle)


@pytest.mark.parametrize("outputs", range(5))
def test_the_end_is_suppressed_as_long_as_in_transformers(outputs: int) -> None:
    logits, prompt, output = row(3), [1, 2, 3], [4] * outputs
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 3, [7, 9], device="cpu")
    oracle = processor(torch.tensor([prompt + output]), logits.clone())
    assert torch.equal(edited(logits, [edit(prompt, output, min_tokens=3, eos=(7, 9))]), oracle)


@given(tokens, tokens, st.floats(-2, 2, width=32), st.floats(-2, 2, width=32), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_presence_and_frequency_are_openais_formula_over_the_output_alone(
    prompt: list[int], output: list[int], presence: float, frequency: float, seed: int
) -> None:
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence"""
    logits = row(seed)
    counts = torch.bincount(torch.tensor(output), minlength=VOCAB)
    oracle = logits.double() - counts * frequency - (counts > 0).double() * presence
    ours = edited(logits, [edit(prompt, output, presence_penalty=presence, frequency_penalty=frequency)])
    torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[0, counts == 0], logits[0, counts == 0])


def test_only_the_allowed_ids_are_left_and_of_those_only_what_the_grammar_allows() -> None:
    params = SamplingParams(allowed_token_ids=(1, 5, 7, 400))
    history = History(params, TokenRules(), (), ())
    grammar = mask_of([5, 7, 9], VOCAB)
    both = edit_of(SampleRequest(1, params, 0, 0, TokenRules(), history, grammar), (), VOCAB)
    alone = edit_of(SampleRequest(1, SamplingParams(), 0, 0, mask=grammar), (), VOCAB)
    assert edited(row(1), [both]).isfinite().nonzero()[:, 1].tolist() == [5, 7]
    assert edited(row(1), [alone]).isfinite().nonzero()[:, 1].tolist() == [5, 7, 9]


@given(st.sets(st.integers(0, 99)))
def test_a_mask_holds_its_ids(ids: set[int]) -> None:
    mask = mask_of(sorted(ids), 100)
    assert mask.dtype == torch.int32 and len(mask) == 4
    assert allowed_by(mask, 100).nonzero()[:, 0].tolist() == sorted(ids)


def test_a_forced_token_is_the_only_one_left_even_where_it_was_impossible() -> None:
    logits = row(1)
    logits[0, 4] = -INF
    for forced in (4, 6):
        out = edited(logits, [Edit(forced=forced, banned=(6,))])
        assert out.isfinite().nonzero()[:, 1].tolist() == [forced]


def test_without_edits_the_logits_are_not_even_copied() -> None:
    logits = row(1)
    assert edited(logits, [None]) is logits
    assert edit_of(SampleRequest(1, SamplingParams(), 3, 1), (7,), VOCAB) is None


# ---- in C++


def random_edits(count: int, vocab: int, seed: int) -> list[Edit | None]:
    """A third of them None; the others of everything, ids in any order, bans upon biases upon penalties."""
    generator = torch.Generator().manual_seed(seed)

    def some(most: int) -> Tensor:
        return torch.randperm(vocab, generator=generator)[: min(most, vocab)]

    def one(i: int) -> Edit | None:
        seen, biased = some(30), some(5)
        return None if i % 3 == 0 else Edit(
            seen=seen,
            counts=torch.randint(0, 4, (len(seen),), generator=generator).float(),
            repetition_penalty=(1.0, 1.37, 0.6)[i % 5 % 3],
            frequency_penalty=0.3,
            presence_penalty=-0.7,
            bias=(biased, torch.randn(len(biased), generator=generator) * 5),
            banned=tuple(some(4).tolist()),
            mask=mask_of(some(vocab // 2 + 1).tolist(), vocab) if i % 4 == 1 else None,
            forced=int(some(1)) if i % 7 == 2 else None,
        )  # fmt: skip

    return [one(i) for i in range(count)]


@every_isa
@pytest.mark.parametrize("vocab", [1, 15, 33, 1003])
def test_edits_in_cpp_are_bit_for_bit_those_in_torch_and_are_taken_back(isa: str, vocab: int) -> None:
    logits = torch.randn(20, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    edits, changed = random_edits(20, vocab, seed=vocab), logits.clone()
    take_back = NativeEdits(native_kernels(isa, threads=2).operations).make(Part(changed, vocab), edits)
    assert torch.equal(changed, edited(logits, edits))
    take_back()
    assert torch.equal(changed, logits)


def test_each_rank_edits_its_part_of_the_vocabulary() -> None:
    vocab, edits = 160, random_edits(12, 160, seed=5)
    logits = torch.randn(12, vocab, generator=torch.Generator().manual_seed(5))
    for first, last in ((0, 48), (48, 96), (96, 160)):
        part = logits[:, first:last].clone()
        take_back = NativeEdits(native_kernels().operations).make(Part(part, last - first, first), edits)
        assert torch.equal(part, edited(logits, edits)[:, first:last])
        take_back()
        assert torch.equal(part, logits[:, first:last])
