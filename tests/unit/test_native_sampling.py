"""Sampling in C++ against the torch implementation, whole and in parts of the vocabulary."""

import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import every_isa, native_kernels
from torch import Tensor

from rayline.kernels.edits import Edit, edited, mask_of
from rayline.kernels.sampling import NO_TOKEN, SampledRows, SamplingRows, best_candidates, sample, score
from rayline.kernels.vocabulary import vocab_segment, vocab_share
from rayline.workers.collectives import Alone, Collective
from rayline.workers.token_sampler import NativeSampler

INF = float("inf")
PENALTIES: dict[str, Any] = {
    "seen": torch.tensor([0, 5, 3, 4]),
    "counts": torch.tensor([0.0, 1.0, 2.0, 7.0]),
    "repetition_penalty": 1.3,
    "frequency_penalty": -0.4,
    "presence_penalty": 0.7,
}
EVEN = torch.full((625,), 0x55555555, dtype=torch.int32)  # ids 0, 2, 4 .. of 20,000
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.05},
    {"temperature": 30.0},
    {"temperature": 1e-300},
    {"top_k": 1},
    {"top_k": 7, "temperature": 1.6},
    {"top_k": 900},
    {"top_p": 0.1},
    {"top_p": 0.95},
    {"top_p": 0.9999, "temperature": 3.0},
    {"min_p": 0.2},
    {"min_p": 1e-4, "temperature": 2.0},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.01, "temperature": 0.8},
    {"top_p": 0.9, "min_p": 0.3},
    {"edits": Edit(banned=(0, 3, 5))},
    {"temperature": 0.0, "edits": Edit(banned=(1,)), "logprobs": 3},
    {"logprobs": 0},
    {"top_p": 0.5, "logprobs": 20},
    {"typical_p": 0.3},
    {"typical_p": 0.95, "temperature": 2.0},
    {"typical_p": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"top_n_sigma": 0.5},
    {"top_n_sigma": 1.0, "top_p": 0.7, "typical_p": 0.9, "temperature": 5.0},
    {"top_n_sigma": 2.0, "top_k": 30},
    {"edits": Edit(**PENALTIES), "logprobs": 2},
    {"edits": Edit(**PENALTIES, bias=(torch.tensor([1, 4]), torch.tensor([2.5, -100.0]))), "top_p": 0.8},
    {"edits": Edit(mask=EVEN, banned=(4,)), "logprobs": 0},
    {"edits": Edit(mask=EVEN, **PENALTIES), "temperature": 0.0},
    {"edits": Edit(forced=5, **PENALTIES), "logprobs": 1},
]


class InThreads:
    """Ranks of one stage in threads of this process."""

    def __init__(self, tp_size: int) -> None:
        self.tp_size = tp_size
        self._shown: list[Tensor] = [torch.empty(0)] * tp_size
        self._barrier = threading.Barrier(tp_size, timeout=250)

    def rank(self, number: int) -> "OneOfThreads":
        return OneOfThreads(self, number)

    def all(self, number: int, mine: Tensor) -> list[Tensor]:
        self._shown[number] = mine
        self._barrier.wait()
        everyone = [tensor.clone() for tensor in self._shown]
        self._barrier.wait()
        return everyone


class OneOfThreads:
    def __init__(self, group: InThreads, rank: int) -> None:
        self._group = group
        self._rank = rank
        self.tp_size = group.tp_size

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        raise AssertionError("sampling sums nothing this way")

    def gather_columns(self, shard: Tensor) -> Tensor:
        return torch.cat(self._group.all(self._rank, shard), dim=1)


def rows(settings: list[dict[str, Any]]) -> SamplingRows:
    """One row for each setting, each with its own seed and position."""
    one = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "top_n_sigma": 0.0}
    one |= {"edits": None, "logprobs": None}
    columns = {name: tuple(setting.get(name, value) for setting in settings) for name, value in one.items()}
    count = len(settings)
    seeds, positions = tuple(2**61 + 7 * i for i in range(count)), tuple(2**31 + i for i in range(count))
    return SamplingRows(seed=seeds, position=positions, **columns)


def random_logits(count: int, vocab: int, spread: float = 3.0) -> Tensor:
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(vocab)) * spread


def natively(logits: Tensor, batch: SamplingRows, isa: str | None = None, threads: int = 1) -> SampledRows:
    sampler = NativeSampler(native_kernels(isa, threads), Alone(), logits.shape[-1], 0)
    return sampler.sample(logits.clone(), batch)


Answer = TypeVar("Answer")


def by_rank(logits: Tensor, tp_size: int, ask: Callable[[NativeSampler, Tensor], Answer]) -> list[Answer]:
    """What each of `tp_size` ranks answers, of which each holds its part of the logits and noise behind its end."""
    vocab, group = logits.shape[-1], InThreads(tp_size)
    share = vocab_share(vocab, tp_size)
    padded = torch.full((len(logits), share * tp_size), 99.0)
    padded[:, :vocab] = logits
    found: dict[int, Answer] = {}

    def rank(number: int) -> None:
        collective: Collective = group.rank(number)
        sampler = NativeSampler(native_kernels(), collective, vocab, number)
        found[number] = ask(sampler, padded[:, number * share : (number + 1) * share].clone())

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(tp_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(tp_size)]


def in_parts(logits: Tensor, batch: SamplingRows, tp_size: int) -> list[SampledRows]:
    return by_rank(logits, tp_size, lambda sampler, mine: sampler.sample(mine, batch))


def same(a: SampledRows, b: SampledRows) -> bool:
    return torch.equal(a.token_ids, b.token_ids) and a.logprobs == b.logprobs


@every_isa
@pytest.mark.parametrize("vocab", [1, 9, 130, 1003, 20_000])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_tokens_are_those_of_the_torch_implementation(isa: str, vocab: int, spread: float) -> None:
    settings = [setting for setting in SETTINGS * 3 if "edits" not in setting or vocab > 5]
    logits, batch = random_logits(len(settings), vocab, spread), rows(settings)
    assert natively(logits, batch, isa).token_ids.tolist() == sample(logits, batch).token_ids.tolist()


@every_isa
def test_logprobs_are_the_log_softmax_of_the_raw_logits(isa: str) -> None:
    logits, batch = random_logits(len(SETTINGS), 5003), rows(SETTINGS)
    for ours, oracle in zip(natively(logits, batch, isa).logprobs, sample(logits, batch).logprobs, strict=True):
        assert (ours is None) == (oracle is None)
        if ours is not None and oracle is not None:
            assert ours.logprob == pytest.approx(oracle.logprob, abs=3e-6)
            assert [token for token, _ in ours.top] == [token for token, _ in oracle.top]
            assert [value for _, value in ours.top] == pytest.approx([value for _, value in oracle.top], abs=3e-6)


def test_every_instruction_set_and_any_threads_give_the_same_bits() -> None:
    logits, batch = random_logits(len(SETTINGS), 7001), rows(SETTINGS)
    one = natively(logits, batch, "portable")
    assert same(one, natively(logits, batch))
    assert same(one, natively(logits, batch, threads=3))


@pytest.mark.parametrize("vocab", [40, 1003, 6000])
@pytest.mark.parametrize("tp_size", [2, 3, 4, 8])
def test_ranks_that_hold_parts_find_what_one_rank_finds_in_the_whole(vocab: int, tp_size: int) -> None:
    logits, batch = random_logits(len(SETTINGS), vocab), rows(SETTINGS)
    alone = natively(logits, batch)
    assert all(same(found, alone) for found in in_parts(logits, batch, tp_size))


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    logits, batch = random_logits(len(SETTINGS), 3001), rows(SETTINGS)
    together = natively(logits, batch, threads=2)
    for at in range(len(SETTINGS)):
        one = SamplingRows(**{name: (getattr(batch, name)[at],) for name in SamplingRows.__dataclass_fields__})
        alone = natively(logits[at : at + 1], one, threads=2)
        assert alone.token_ids[0] == together.token_ids[at]
        assert alone.logprobs[0] == together.logprobs[at]


def test_equal_logits_go_by_the_lowest_id_on_any_rank() -> None:
    logits = torch.zeros(2, 400)
    logits[1, [399, 201, 70]] = 5.0
    batch = rows([{"temperature": 0.0, "logprobs": 4}] * 2)
    for found in [natively(logits, batch), *in_parts(logits, batch, 4)]:
        assert found.token_ids.tolist() == [0, 70]
        assert [[token for token, _ in part.top] for part in found.logprobs if part is not None] == [
            [0, 1, 2, 3],
            [70, 201, 399, 0],
        ]


def test_banned_ids_are_never_sampled_and_logprobs_are_those_of_the_logits_as_they_were() -> None:
    logits = torch.zeros(60, 130)
    logits[:, 2] = 50.0
    for setting in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 3}):
        batch = rows([{"edits": Edit(banned=(2, 129)), **setting}] * 60)
        assert not set(natively(logits, batch).token_ids.tolist()) & {2, 129}
        changed = logits.clone()
        asked = rows([{"edits": Edit(banned=(2, 129)), "logprobs": 1, **setting}] * 60)
        found = NativeSampler(native_kernels(), Alone(), 130, 0).sample(changed, asked)
        assert all(row is not None and row.top[0][0] == 2 for row in found.logprobs)
        assert torch.equal(changed, logits)


@pytest.mark.parametrize("setting", SETTINGS[:15], ids=str)
def test_extreme_logits_give_the_token_of_the_torch_implementation(setting: dict[str, Any]) -> None:
    big = torch.finfo(torch.float32).max
    logits = torch.tensor(
        [
            [0.0, INF, 1.0, -INF, 2.0],
            [0.0, INF, 1.0, INF, 2.0],
            [-INF, -INF, -INF, 3.0, -INF],
            [big, -big, 0.0, -big, -INF],
            [-big, -big, -INF, -big, -big],
        ]
    ).repeat(4, 1)
    batch = rows([setting] * 20)
    assert natively(logits, batch).token_ids.tolist() == sample(logits, batch).token_ids.tolist()


def test_a_row_of_nothing_but_minus_infinity_gives_a_token() -> None:
    batch = rows([*SETTINGS[:5], {"logprobs": 2}])
    result = natively(torch.full((6, 70), -INF), batch)
    assert all(0 <= token < 70 for token in result.token_ids.tolist())


def test_parts_hold_whole_segments_and_cover_the_vocabulary() -> None:
    for vocab in (1, 16, 1003, 128_256, 151_936):
        assert vocab_share(vocab, 1) == vocab
        for tp_size in (2, 4, 8):
            share = vocab_share(vocab, tp_size)
            assert share % vocab_segment(vocab) == 0
            assert share * tp_size >= vocab


@given(st.integers(0, 2**31), st.sampled_from([1, 64, 131, 3001, 20_000]), st.sampled_from([0.01, 1.0, 4.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_any_truncation_of_any_row_keeps_what_torch_keeps(seed: int, vocab: int, spread: float) -> None:
    """Rounded logits, so that equals stand on both sides of a border."""
    draw = random.Random(seed)
    each = [
        {
            "temperature": draw.choice([0.3, 1.0, 2.0, 50.0]),
            "top_k": draw.choice([0, 0, 1, 5, 100, 3000]),
            "top_p": draw.choice([1.0, 0.1, 0.5, 0.9, 0.999999, 1 - 1e-15]),
            "min_p": draw.choice([0.0, 0.1, 0.001]),
            "typical_p": draw.choice([1.0, 0.3, 0.9]),
            "top_n_sigma": draw.choice([0.0, 1.0, 0.2, 3.0]),
        }
        for _ in range(6)
    ]
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    logits = (logits * draw.choice([1, 4])).round() / 4 if draw.random() < 0.5 else logits
    assert natively(logits, rows(each)).token_ids.tolist() == sample(logits, rows(each)).token_ids.tolist()


def test_nothing_is_edited_or_cut_where_nothing_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All operations of a step of plain requests: the best, and a draw."""
    kernels, called = native_kernels(), []
    call = kernels.operations.call

    def noting(name: str, *args: Any, **values: Any) -> None:
        called.append(name)
        call(name, *args, **values)

    monkeypatch.setattr(kernels.operations, "call", noting)
    sampler = NativeSampler(kernels, Alone(), 130, 0)
    sampler.sample(torch.zeros(2, 130), rows([{}, {"temperature": 0.0}]))
    assert called == ["BestToken", "DrawToken"]
    called.clear()
    sampler.sample(torch.zeros(2, 130), rows([{}, {"edits": Edit(banned=(3,))}]))
    assert called == ["EditLogits", "BestToken", "DrawToken"], "nobody reads the raw logits again"
    called.clear()
    sampler.sample(torch.zeros(1, 130), rows([{"edits": Edit(mask=mask_of([3], 130)), "temperature": 0.0}]))
    assert called == ["MaskLogits", "BestToken"]
    called.clear()
    sampler.sample(torch.zeros(2, 130), rows([{}, {"edits": Edit(banned=(3,)), "logprobs": 0}]))
    assert called[:5] == ["EditLogits", "BestToken", "DrawToken", "RestoreLogits", "BestToken"]


@pytest.mark.parametrize("tp_size", [1, 4])
def test_a_row_that_is_left_without_a_token_is_named_and_harms_no_other(tp_size: int) -> None:
    nothing = Edit(mask=mask_of([], 130))
    banned = Edit(mask=mask_of([7], 130), banned=(7,))
    for setting in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"typical_p": 0.5, "top_n_sigma": 1.0}, {"top_k": 3}):
        each = [setting, {**setting, "edits": nothing}, {**setting, "edits": banned, "logprobs": 1}, setting]
        logits = random_logits(4, 130)
        plain = natively(logits, rows([setting] * 4))
        for found in [*in_parts(logits, rows(each), tp_size), sample(logits, rows(each))]:
            assert found.token_ids[1:3].tolist() == [NO_TOKEN, NO_TOKEN]
            assert found.token_ids[[0, 3]].tolist() == plain.token_ids[[0, 3]].tolist()


# ---- beams and prompts


def asked(count: int, vocab: int) -> tuple[SamplingRows, list[int]]:
    """Rows with edits of all kinds, and how many candidates each wants."""
    edits = [None, Edit(**PENALTIES), Edit(mask=EVEN, banned=(4,)), Edit(forced=5), Edit(banned=(1, 2))]
    return rows([{"edits": edits[i % 5]} for i in range(count)]), [1 + i % 9 for i in range(count)]


@pytest.mark.parametrize("vocab", [9, 1003, 20_000])
@pytest.mark.parametrize("tp_size", [1, 2, 3, 8])
def test_candidates_are_the_best_of_the_edited_log_softmax(vocab: int, tp_size: int) -> None:
    logits = random_logits(10, vocab)
    batch, most = asked(10, vocab)
    values = edited(logits.log_softmax(-1), batch.edits)
    oracle = best_candidates(logits, batch, most)
    everyone = by_rank(logits, tp_size, lambda sampler, mine: sampler.candidates(mine, batch, most))
    assert all(found == everyone[0] for found in everyone)
    assert everyone[0] == by_rank(logits, 1, lambda sampler, mine: sampler.candidates(mine, batch, most))[0]
    for row, (found, wanted) in enumerate(zip(everyone[0], oracle, strict=True)):
        assert [token for token, _ in found] == [token for token, _ in wanted]
        assert [value for _, value in found] == pytest.approx(
            values[row, [token for token, _ in found]].tolist(), abs=3e-6
        )
        assert len(found) == min(most[row], int(values[row].isfinite().sum()))


@pytest.mark.parametrize("tp_size", [1, 2, 8])
def test_scores_are_the_logprobs_of_the_tokens_asked_for(tp_size: int) -> None:
    logits = random_logits(130, 1003)
    ids, tops = [(37 * i) % 1003 for i in range(130)], [i % 4 for i in range(130)]
    everyone = by_rank(logits, tp_size, lambda sampler, mine: sampler.score(mine, ids, tops))
    assert all(found == by_rank(logits, 1, lambda s, mine: s.score(mine, ids, tops))[0] for found in everyone)
    for found, wanted, token, row in zip(
        everyone[0], score(logits, ids, tops), ids, logits.log_softmax(-1), strict=True
    ):
        assert found.logprob == pytest.approx(float(row[token]), abs=3e-6)
        assert [other for other, _ in found.top] == [other for other, _ in wanted.top]


@every_isa
def test_a_log_softmax_in_cpp_is_that_of_torch(isa: str) -> None:
    logits = random_logits(5, 1003)
    sampler = NativeSampler(native_kernels(isa), Alone(), 1003, 0)
    found = sampler.candidates(logits, rows([{}] * 5), [1003] * 5)
    for row, pairs in zip(logits.log_softmax(-1), found, strict=True):
        ids, values = zip(*pairs, strict=True)
        torch.testing.assert_close(torch.tensor(values), row[list(ids)], rtol=0, atol=3e-6)
