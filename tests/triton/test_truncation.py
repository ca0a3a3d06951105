"""Truncated rows draw the tokens of `kernels.sampling`: the same sets are kept, and the same noise decides."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayline.kernels import triton_truncation
from rayline.kernels.sampling import SamplingRows, sample
from rayline.kernels.triton_truncation import Logits, Rules, best_tokens, draw_truncated, rules_of, shortlist
from rayline.kernels.truncation import floors

UNITS = 50
SEEDS = 2  # of each row: a kept set that is wrong shows in one draw or another


def logits_of(kind: str, vocab: int, seed: int) -> Tensor:
    """One row. Ties abound in "steps", and at the border of "flat"."""
    normal = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "peaked":
            return normal * 8
        case "flat":
            return (normal * 0.01).round(decimals=2)
        case "steps":
            return (normal * 2).round()
        case "masked":
            return (normal * 3).masked_fill(normal > -0.3, -torch.inf).index_fill(0, torch.tensor([vocab // 2]), 1.0)
        case _:
            return (normal * 3).index_fill(0, torch.tensor([0, vocab - 1]), torch.inf)


RULES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.2, 1.0, 1.7, 100.0]),
        "top_k": st.sampled_from([0, 0, 1, 5, 40, 2**31 - 1]),
        "top_p": st.sampled_from([1.0, 1e-6, 0.3, 0.9, 0.999999]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 1.0]),
        "typical_p": st.sampled_from([1.0, 1.0, 0.2, 0.95]),
        "top_n_sigma": st.sampled_from([0.0, 0.0, 0.7, 3.0]),
    }
)
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "top_n_sigma": 0.0}


def rows_of(*rules: dict[str, Any], seed: int = 0) -> SamplingRows:
    """SEEDS rows of each of these rules."""
    every = [rule for rule in rules for _ in range(SEEDS)]
    count = len(every)
    columns = {name: tuple(rule[name] for rule in every) for name in OFF}
    return SamplingRows(
        **columns, seed=tuple(seed + at for at in range(count)), position=tuple(range(count)),
        edits=(None,) * count, logprobs=(None,) * count,
    )  # fmt: skip


def expect_the_tokens_of_the_cpu(logits: Tensor, rows: SamplingRows, units: int = UNITS) -> None:
    every = range(len(rows))
    tokens, values = draw_truncated(Logits.of(logits, units), rules_of(rows, every, logits.device))
    assert tokens.tolist() == sample(logits, rows).token_ids.tolist()
    assert bool((values > -torch.inf).all())


@given(
    RULES,
    st.sampled_from(["peaked", "flat", "steps", "masked", "infinite"]),
    st.sampled_from([1, 2, 50, 700]),
    st.integers(0, 10**6),
    st.sampled_from([0, UNITS]),
)
@settings(max_examples=12)
@example(OFF | {"top_p": 0.5}, "steps", 700, 1, 0)
@example(OFF | {"top_k": 40}, "steps", 700, 1, 0)
@example(OFF | {"top_k": 300, "top_p": 0.6}, "flat", 700, 1, UNITS)
@example(OFF | {"typical_p": 0.5}, "steps", 50, 1, 0)
@example(OFF | {"top_n_sigma": 1.0, "top_p": 0.9}, "masked", 700, 1, 0)
def test_a_truncated_row_draws_the_token_of_the_cpu(
    rules: dict[str, Any], kind: str, vocab: int, seed: int, units: int
) -> None:
    logits = logits_of(kind, vocab, seed).expand(SEEDS, vocab)
    expect_the_tokens_of_the_cpu(logits, rows_of(rules, seed=seed), units)


@pytest.mark.parametrize("rule", ["top_k", "top_p", "typical_p"])
def test_a_list_that_does_not_fit_is_read_from_the_row(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_truncation, "CAPACITY", 8)
    rows = rows_of(OFF | {rule: 60 if rule == "top_k" else 0.9})
    expect_the_tokens_of_the_cpu(logits_of("steps", 1100, 3).expand(SEEDS, 1100), rows)


def test_rows_of_all_kinds_share_the_launches() -> None:
    rules = [OFF | {"top_k": 3}, OFF | {"top_p": 0.4, "temperature": 2.0}, OFF | {"min_p": 0.3}]
    logits = torch.stack([logits_of("peaked", 5000, seed) for seed in range(3) for _ in range(SEEDS)])
    expect_the_tokens_of_the_cpu(logits, rows_of(*rules))


def test_lists_are_short_where_little_can_be_kept() -> None:
    """Else it would be right, but slow: a row that is cut to 40 tokens is not searched whole."""
    logits = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)) * 4
    for rule, most in (({"top_k": 40}, 80), ({"top_p": 0.9}, 2000), ({"min_p": 0.1}, 60)):
        rules = rules_of(rows_of(OFF | rule), [0], logits.device)
        for units in (0, UNITS):
            assert int(shortlist(Logits.of(logits, units), rules).held[0]) <= most
    everything = rules_of(rows_of(OFF | {"top_k": 5000}), [0], logits.device)
    assert int(shortlist(Logits.of(logits, 0), everything).held[0]) == 20_000


@given(st.sampled_from([3, 16, 40, 333]), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 99))
@settings(max_examples=6)
def test_the_floor_of_top_n_sigma_has_the_bits_of_the_cpu(vocab: int, sigma: float, seed: int) -> None:
    rows = torch.stack([logits_of(kind, vocab, seed) for kind in ("peaked", "masked", "infinite")])
    rules = rules_of(rows_of(*[OFF | {"top_n_sigma": sigma}] * 3), range(3), rows.device)
    bounds = shortlist(Logits.of(rows, 0), rules).bounds
    assert bounds.equal(floors(rows, torch.full((3,), sigma, dtype=torch.float64)))


def test_a_row_without_any_token_says_so() -> None:
    logits = torch.full((SEEDS, 40), -torch.inf)
    rows = rows_of(OFF | {"top_p": 0.5, "typical_p": 0.5})
    _, values = draw_truncated(Logits.of(logits, UNITS), rules_of(rows, range(SEEDS), logits.device))
    assert values.tolist() == [-math.inf] * SEEDS


@given(st.sampled_from(["peaked", "steps", "masked"]), st.sampled_from([1, 30, 3000]), st.integers(0, 20))
@settings(max_examples=8)
def test_the_best_tokens_come_in_order_with_their_logprobs(kind: str, vocab: int, most: int) -> None:
    most = min(most, vocab)
    logits = logits_of(kind, vocab, most)[None]
    ids, values = best_tokens(Logits.of(logits, UNITS), [0], torch.tensor([vocab - 1]), most)
    logprobs = logits[0].double().log_softmax(-1)
    order = logits[0].sort(descending=True, stable=True).indices[:most]
    order = order[logits[0][order] > -torch.inf]
    assert ids[0, 0] == vocab - 1 and ids[0, 1 : 1 + len(order)].equal(order)
    expected = logprobs[torch.cat((torch.tensor([vocab - 1]), order))]
    torch.testing.assert_close(values[0, : 1 + len(order)], expected, rtol=0, atol=3e-6)
    assert values[0, 1 + len(order) :].tolist() == [-math.inf] * (most - len(order))


def test_logprobs_have_the_same_bits_alone_and_beside_others() -> None:
    """Split over other numbers of programs, too: below them stands a sum of whole numbers."""
    logits = torch.randn(4, 9000, generator=torch.Generator().manual_seed(0)) * 3
    tokens = torch.tensor([7, 8, 9, 10])
    whole = best_tokens(Logits.of(logits, 0), range(4), tokens, 5)
    for at in range(4):
        alone = best_tokens(Logits.of(logits[at : at + 1], 200), [0], tokens[at : at + 1], 5)
        assert alone[0][0].equal(whole[0][at]) and alone[1][0].equal(whole[1][at])


def test_rules_are_those_of_the_rows_they_name() -> None:
    rows = rows_of(OFF | {"top_k": 3, "min_p": 0.5}, OFF | {"top_p": 0.25, "top_n_sigma": 2.0, "temperature": 0.5})
    rules: Rules = rules_of(replace(rows, seed=(1, 2, 3, 2**62)), [3, 0], torch.device("cpu"))
    assert rules.numbers.tolist() == [[3, 0], [0, 3], [2**62, 1], [3, 0]]
    assert rules.reals.tolist() == [[0.5, 1.0], [0.25, 1.0], [-math.inf, math.log(0.5)], [1.0, 1.0], [2.0, 0.0]]
    assert rules.has_sigma
