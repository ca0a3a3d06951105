"""Everything a request can ask for, in combination: the bits of a request alone, in any company and on any group.

The rows are generated: each option of a request meets each option of every other factor, and all of them run at once on
groups in which each way to run meets each other one. Ways, grammars and penalties come in all combinations, so do
tensor and pipeline parallelism and the prefix cache.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from exact_engine import alone, differences, longest_tokens, start
from exact_requests import Arrival, Asked, Limits
from native import library_or_skip
from pairs import Row, covering_rows, meetings

from rayline.cluster.config import ParallelSection
from rayline.deploy.model_path import resolve_model
from rayline.protos.types import SamplingParams, StructuredOutput, Thinking, TokenRules, choice_seed
from rayline.router.grammars.grammar import grammar_text
from rayline.workers.group import StartedGroup
from rayline.workers.local_launch import LocalLauncher

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}}, "required": ["b"]}'
GRAMMARS = {
    "free": None,
    "schema": StructuredOutput("json_schema", SCHEMA),
    "regex": StructuredOutput("regex", "(ab|c[0-9]+ ){2,9}"),
    "choice": StructuredOutput("choice", '["import os", "import sys", "return None"]'),
}
REQUEST: dict[str, tuple[str, ...]] = {
    "way": ("draw", "greedy", "choices", "beams"),
    "grammar": tuple(GRAMMARS),
    "penalties": ("none", "all"),
    "bans": ("none", "all"),
    "cut": ("none", "nucleus", "all"),
    "logprobs": ("none", "three"),
    "prompt": ("short", "scored", "long"),
    "ends": ("eos", "late", "ignored"),
    "thinking": ("none", "budget"),
}
GROUP: dict[str, tuple[str, ...]] = {
    "tp": ("1", "2"),
    "pp": ("1", "2"),
    "prefix cache": ("on", "off"),
    "blocks": ("many", "few"),
    "chunks": ("whole", "small"),
    "places": ("many", "few"),
    "async": ("always", "never"),
}
PENALTIES: dict[str, Any] = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}
BANS: dict[str, Any] = {"logit_bias": ((40, 3.0), (41, -4.0), (300, 2.5)), "no_repeat_ngram_size": 3}
CUTS: dict[str, dict[str, Any]] = {
    "none": {},
    "nucleus": {"top_p": 0.8},
    "all": {"top_k": 60, "top_p": 0.95, "min_p": 0.001, "typical_p": 0.9, "top_n_sigma": 3.0},
}
ENDS: dict[str, dict[str, Any]] = {
    "eos": {},
    "late": {"min_tokens": 6, "stop_token_ids": (11, 300)},
    "ignored": {"ignore_eos": True},
}


def is_served(row: Row) -> bool:
    """A search takes no cuts and no best tokens."""
    return row["way"] != "beams" or (row["cut"] == "none" and row["logprobs"] == "none")


FORMS = ("way", "grammar", "penalties")
LAYOUTS = ("tp", "pp", "prefix cache")
ROWS = covering_rows(REQUEST, is_served, FORMS)
GROUPS = covering_rows(GROUP, together=LAYOUTS)


@cache
def grammar(name: str) -> str:
    wanted = GRAMMARS[name]
    return "" if wanted is None else grammar_text(wanted, {})


def asked(number: int, row: Row) -> Asked:
    """The request of a row."""
    params = SamplingParams(
        temperature=0.0 if row["way"] == "greedy" else 1.0,
        seed=number,
        max_tokens=14,
        beam_width=3 if row["way"] == "beams" else 0,
        n=2 if row["way"] == "beams" else 1,
        logprobs=3 if row["logprobs"] == "three" else None,
        prompt_logprobs=2 if row["prompt"] == "scored" else None,
        **(PENALTIES if row["penalties"] == "all" else {}),
        **(BANS if row["bans"] == "all" else {}),
        **CUTS[row["cut"]],
        **ENDS[row["ends"]],
    )
    rules = TokenRules(
        bad_words=((50,), (60, 61)) if row["bans"] == "all" else (),
        grammar=grammar(row["grammar"]),
        thinking=Thinking((7,), (8, 9), budget_tokens=3, is_open=True) if row["thinking"] == "budget" else None,
    )
    prompt = {"short": ((number, 5),), "scored": ((0, 20), (number, 3)), "long": ((0, 48), (number, 9))}[row["prompt"]]
    return Asked(prompt, params, rules)


def arrivals_of(number: int, row: Row) -> list[Arrival]:
    """The requests of a row: one, or three choices of one."""
    one = Arrival(asked(number, row), after_steps=number % 3)
    if row["way"] != "choices":
        return [one]
    seeds = [choice_seed(number, choice) for choice in range(3)]
    params = [replace(one.asked.params, seed=seed) for seed in seeds]
    unscored = [params[0], *(replace(p, prompt_logprobs=None) for p in params[1:])]
    return [replace(one, asked=replace(one.asked, params=p), family=f"family {number}") for p in unscored]


MIXTURE = [arrival for number, row in enumerate(ROWS) for arrival in arrivals_of(number, row)]


@pytest.fixture(
    scope="module", params=GROUPS, ids=lambda row: ", ".join(f"{key} {value}" for key, value in row.items())
)
def group(request: pytest.FixtureRequest) -> Iterator[tuple[Row, StartedGroup]]:
    """A group of the embedded model that runs as its row says."""
    library_or_skip()
    row: Row = request.param
    limits = Limits(
        max_step_tokens=19 if row["chunks"] == "small" else 512,
        max_running=6 if row["places"] == "few" else 19,
        prefix_caching=row["prefix cache"] == "on",
        spare_blocks=0 if row["blocks"] == "few" else 400,
        async_scheduling="always" if row["async"] == "always" else "never",
    )
    tp, pp = int(row["tp"]), int(row["pp"])
    launcher = LocalLauncher() if tp * pp > 1 else None
    path, longest = resolve_model("embedded"), longest_tokens(MIXTURE)
    started = start(path, limits, longest, parallel=ParallelSection(tp, pp, 1), launcher=launcher)
    yield row, started
    started.engine.close()


def test_a_request_says_the_same_in_any_combination_company_and_group(group: tuple[Row, StartedGroup]) -> None:
    path: Path = resolve_model("embedded")
    row, started = group
    assert not differences(started, MIXTURE, partial(alone, path))
    if row["blocks"] == "few" and row["places"] == "many":  # few that run at once have blocks enough
        assert started.engine.scheduler.stats.preemptions > 0


def test_the_rows_hold_every_pair_of_options_that_can_meet() -> None:
    met = set().union(*(meetings(row) for row in ROWS))
    assert all(is_served(row) for row in ROWS)
    for one, other in ((a, b) for a in REQUEST for b in REQUEST if a < b):
        for first in REQUEST[one]:
            for second in REQUEST[other]:
                impossible = {("way", "beams")} & {(one, first), (other, second)} and (
                    {("cut", "nucleus"), ("cut", "all"), ("logprobs", "three")} & {(one, first), (other, second)}
                )
                assert bool(impossible) != (((one, first), (other, second)) in met)


def test_the_rows_hold_every_combination_that_is_named() -> None:
    for rows, factors, named in ((ROWS, REQUEST, FORMS), (GROUPS, GROUP, LAYOUTS)):
        combinations = set(product(*(factors[name] for name in named)))
        assert {tuple(row[name] for name in named) for row in rows} == combinations


def test_the_requests_of_these_rows_do_what_they_are_there_for() -> None:
    """So that equal answers are no accident of options that change nothing."""
    path = resolve_model("embedded")
    answers = [alone(path, asked(number, row)) for number, row in enumerate(ROWS)]
    for row, answer in zip(ROWS, answers, strict=True):
        assert bool(answer.beams) == (row["way"] == "beams")
        assert bool(answer.scores) == (row["prompt"] == "scored")
    ungoverned = [alone(path, replace(asked(n, row), rules=TokenRules())) for n, row in enumerate(ROWS)]
    changed = [row["grammar"] != "free" and a != b for row, a, b in zip(ROWS, answers, ungoverned, strict=True)]
    assert sum(changed) >= sum(row["grammar"] != "free" for row in ROWS) - 2
