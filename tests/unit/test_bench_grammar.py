"""`bench engine --json-schema`: the same prompts with and without a grammar, in turns."""

import json
from pathlib import Path

import pytest

from rayline.deploy.bench.grammar_speed import grammar_speed
from rayline.deploy.bench.workload import Shape
from rayline.deploy.cli import run
from rayline.protos.errors import InvalidRequest
from rayline.protos.events import EngineEvent, Finished, FinishReason, TokenEvent, Usage
from rayline.protos.types import EngineRequest, SamplingParams

SMALL = ("--input-tokens", "8", "--output-tokens", "24", "--repeats", "1", "--threads", "1", "--batch", "2")
ENDLESS = {"type": "array", "minItems": 500, "items": {"enum": ["red", "green", "blue"]}}


class Stepped:
    """One second a step without a grammar, two with one; `most` tokens of requests with one."""

    def __init__(self, most: int = 100):
        self.now_s = 0.0
        self.order: list[bool] = []
        self._left: dict[str, int] = {}
        self._bound = False
        self._most = most

    def add(self, request: EngineRequest) -> None:
        self._bound = bool(request.rules.grammar)
        self.order.append(self._bound)
        wanted = request.params.max_tokens or 0
        self._left[request.request_id] = min(wanted, self._most) if self._bound else wanted

    def step(self) -> list[EngineEvent]:
        self.now_s += 2.0 if self._bound else 1.0
        events: list[EngineEvent] = []
        for name in list(self._left):
            events.append(TokenEvent(name, 0, 1))
            self._left[name] -= 1
            if not self._left[name]:
                del self._left[name]
                events.append(Finished(name, FinishReason.LENGTH, Usage(1, 1)))
        return events

    @property
    def has_work(self) -> bool:
        return bool(self._left)


def test_pairs_are_run_in_turns_and_compared_with_each_other() -> None:
    engine = Stepped()
    speed = grammar_speed(engine, 1, 2, Shape(4, 11, 50, 0), SamplingParams(temperature=0.0), "g", lambda: engine.now_s)
    assert engine.order == [False, True] * 3
    assert (speed.free_tokens_per_s, speed.grammar_tokens_per_s, speed.share) == (1.0, 0.5, 0.5)


def test_outputs_that_end_early_are_no_comparison() -> None:
    engine = Stepped(most=5)
    with pytest.raises(InvalidRequest, match="4 of 10 tokens"):
        grammar_speed(engine, 1, 1, Shape(4, 11, 50, 0), SamplingParams(temperature=0.0), "g", lambda: engine.now_s)


def test_the_command_reports_the_share(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(ENDLESS))
    assert run(["bench", "engine", *SMALL, "--json-schema", str(file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["json_schema"]
    assert found["batch"] == 2 and found["grammar_tokens_per_s"] > 0 and found["share"] > 0.1
    assert run(["bench", "engine", *SMALL, "--json-schema", str(file)]) == 0
    assert "with the schema" in capsys.readouterr().out


def test_a_schema_that_cannot_be_followed_is_said_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"not": {}}')
    assert run(["bench", "engine", *SMALL, "--json-schema", str(file)]) == 2
    assert "keyword 'not'" in capsys.readouterr().err
