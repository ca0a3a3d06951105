"""The engine offline: `LLM(path).generate(prompts)`. With launcher="local" it needs neither Ray nor gRPC.

with LLM("embedded", tp=2) as llm:
    for completion in llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=32)):
        print(completion.choices[0].text)
"""

import itertools
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any, Literal, Self

from rayline.cluster.config import EngineSection, ModelSection, SystemConfig, override
from rayline.deploy.model_path import resolve_model, served_name
from rayline.protos.errors import ConfigError, InternalError, InvalidRequest, RaylineError
from rayline.protos.events import (
    Begun,
    Delta,
    DeltaLogprob,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    PromptScores,
    Started,
    StreamEvent,
    TokenEvent,
    Usage,
)
from rayline.protos.group import GroupInfo
from rayline.protos.types import PLAIN_RULES, EngineRequest, SamplingParams, Spec, TokenRules
from rayline.router.admission import engine_request
from rayline.router.grammar_desk import GrammarDesk
from rayline.router.text_stream import TextStream
from rayline.router.tokenizer import Tokenizer
from rayline.workers.engine import Engine
from rayline.workers.group import GroupSpec, Launcher, start_group
from rayline.workers.local_launch import LocalLauncher
from rayline.workers.ranks import OnRankProgress


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. logprobs: one entry a token where asked for, else empty."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[DeltaLogprob, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to one prompt, and how exact their bits are (see GroupInfo)."""

    prompt_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    usage: Usage
    numerics: str
    exact: bool


Prompts = Sequence[str | Sequence[int]] | Sequence[str] | Sequence[Sequence[int]]


class LLM:
    """One replica group in this process (tp x pp = 1) or in processes of its own."""

    def __init__(
        self,
        path: str = "embedded",
        *,
        tp: int = 1,
        pp: int = 1,
        dtype: str = "auto",
        launcher: Literal["local", "ray"] = "local",
        on_progress: OnRankProgress | None = None,
        **options: Any,
    ) -> None:
        """Load a model. `options` are keys of the config's engine section and max_model_len.

        Raises ConfigError (unknown or impossible options), ModelError, NotEnoughMemory.
        """
        spec = offline_group(path, tp=tp, pp=pp, dtype=dtype, **options)
        self._tokenizer = Tokenizer.load(spec.path)
        self._grammars = GrammarDesk.of(self._tokenizer)
        self._launcher = _launcher(launcher, tp, pp)
        group = start_group(spec, self._launcher, on_progress or _silent)
        self._engine: Engine = group.engine
        self._info = group.info
        self._numbers = itertools.count()

    @property
    def info(self) -> GroupInfo:
        return self._info

    @property
    def engine(self) -> Engine:
        """The engine itself, for benchmarks and tests."""
        return self._engine

    @property
    def launcher(self) -> Launcher | None:
        """Who made the processes of the ranks; None when there is one rank, in this process."""
        return self._launcher

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Complete all prompts in one continuous batch; results in the prompts' order.

        `params`: one for all or one for each. Raises InvalidRequest or PromptTooLong before anything runs.
        """
        if isinstance(prompts, str):
            raise InvalidRequest("prompts is a single string: allowed is a list of prompts", field="prompts")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise InvalidRequest(f"params has {len(each)} entries for {len(prompts)} prompts", field="params")
        requests = [self._request(self._spec(p, q)) for p, q in zip(prompts, each, strict=True)]
        answers = {r.request_id: _Answer(r, self._tokenizer) for r in requests}
        self._check_idle()
        try:
            for event in self._run(requests):
                answer = answers[event.request_id]
                if isinstance(event, Failed):
                    raise event.error
                answer.take(event)
                if answer.stopped_early:
                    self._engine.abort(event.request_id)
        finally:
            for request in requests:  # nothing is left running when a caller interrupts
                self._engine.abort(request.request_id)
        return [answers[r.request_id].completion(self._info) for r in requests]

    def stream(self, spec: Spec) -> Iterator[StreamEvent]:
        """Started, deltas, then Finished: what the servers send for one request. Leaving it early aborts."""
        request = self._request(spec)
        answer = _Answer(request, self._tokenizer)
        self._check_idle()
        yield Started(spec.request_id, self._info.numerics, self._info.exact, len(request.prompt_ids))
        try:
            for event in self._run([request]):
                if isinstance(event, Failed):
                    yield event
                    return
                if (delta := answer.take(event)) is not None:
                    yield delta
                if answer.finished is not None:
                    yield answer.finished
                    return
        finally:
            self._engine.abort(spec.request_id)

    def close(self) -> None:
        """End the ranks and give the memory back."""
        self._engine.close()
        self._grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spec(self, prompt: str | Sequence[int], params: SamplingParams) -> Spec:
        request_id = f"offline-{next(self._numbers)}"
        if isinstance(prompt, str):
            return Spec(request_id, self._info.model, params, prompt=prompt)
        if not isinstance(prompt, Iterable):
            raise InvalidRequest(
                f"prompts holds {prompt!r}: allowed are strings and lists of token ids", field="prompts"
            )
        return Spec(request_id, self._info.model, params, prompt_ids=tuple(prompt))

    def _request(self, spec: Spec) -> EngineRequest:
        spec.check()
        if spec.conversation is not None:
            text = self._tokenizer.render_chat([asdict(message) for message in spec.conversation.messages])
            prompt_ids = self._tokenizer.encode(text, add_special_tokens=False)
        elif spec.prompt is not None:
            prompt_ids = self._tokenizer.encode(spec.prompt, add_special_tokens=True)
        else:
            prompt_ids = spec.prompt_ids or ()
        return engine_request(
            spec, prompt_ids, self._info, self._tokenizer.bos_id, secrets.randbits(63), self._rules(spec.params)
        )

    def _rules(self, params: SamplingParams) -> TokenRules:
        wanted = params.structured_output
        return PLAIN_RULES if wanted is None else TokenRules(grammar=self._grammars.grammar_now(wanted))

    def _check_idle(self) -> None:
        """One caller at a time: two would take each other's events."""
        if self._engine.scheduler.has_work:
            raise InvalidRequest("another generate or stream of this LLM is still running", field="request_id")

    def _run(self, requests: Iterable[EngineRequest]) -> Iterator[EngineEvent]:
        """Feed the engine as its waiting queue has room, step it until all requests have ended."""
        waiting = deque(requests)
        running = {request.request_id for request in waiting}
        while running and (waiting or self._engine.has_work):
            while waiting and self._engine.load().waiting < self._info.max_waiting:
                try:
                    self._engine.add(request := waiting.popleft())
                except RaylineError as error:
                    yield Failed(request.request_id, error)
            for event in self._engine.step():
                if not isinstance(event, TokenEvent):
                    running.discard(event.request_id)
                yield event


class _Answer:
    """What one request has brought so far."""

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._text = TextStream(tokenizer, request.params, request.prompt_ids)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[DeltaLogprob] = []
        self._begun = Begun(0, 0.0)
        self.finished: Finished | None = None
        self.stopped_early = False

    def take(self, event: PromptScores | TokenEvent | Finished) -> Delta | None:
        """The delta this event adds, if any; sets `finished` when it was the last."""
        if self.finished is not None or isinstance(event, PromptScores):
            return None
        if isinstance(event, Finished):
            delta = self._text.finish()
            self.finished = event
        else:
            self._begun = event.begun or self._begun
            delta = self._text.push(event)
            if self._text.stopped is not None:
                usage = Usage(len(self._request.prompt_ids), self._text.output_tokens, self._begun.cached_tokens)
                reason = FinishReason.STOP
                self.finished = Finished(event.request_id, reason, usage, stop_reason=self._text.stopped)
                self.stopped_early = True
        if delta is not None:
            self._pieces.append(delta.text)
            self._token_ids += delta.token_ids
            self._logprobs += delta.logprobs
        return delta

    def completion(self, info: GroupInfo) -> Completion:
        if self.finished is None:
            raise InternalError(f"request {self._request.request_id} has no terminal event")
        choice = Choice(0, "".join(self._pieces), tuple(self._token_ids), tuple(self._logprobs), self.finished.reason)
        return Completion(self._request.prompt_ids, (choice,), self.finished.usage, info.numerics, info.exact)


def offline_group(path: str, **options: Any) -> GroupSpec:
    """The group that `LLM` starts for the same arguments. Raises ConfigError or ModelError."""
    known = {f.name for f in fields(EngineSection)} | {"max_model_len"}
    if unknown := options.keys() - known - {"tp", "pp", "dtype"}:
        name = min(unknown)
        raise ConfigError(f"{name} is not an option of LLM: there are {', '.join(sorted(known))}", field=name)
    config = override(SystemConfig(), {"path": path, **options})
    return _group_spec(config, config.models[0])


def _group_spec(config: SystemConfig, model: ModelSection) -> GroupSpec:
    return GroupSpec(
        group_id="offline",
        model=served_name(model.path, model.name),
        path=resolve_model(model.path),
        dtype=model.dtype,
        max_model_len=model.max_model_len,
        engine=config.engine,
        parallel=config.parallel,
        max_waiting=config.limits.max_waiting,
    )


def _launcher(name: str, tp: int, pp: int) -> Launcher | None:
    if name not in ("local", "ray"):
        raise ConfigError(f"launcher = {name!r} is out of range: allowed is 'local' or 'ray'", field="launcher")
    if tp * pp == 1:
        return None
    if name == "local":
        return LocalLauncher()
    from rayline.deploy.ray_group import reserve_group  # Ray is an optional extra

    return reserve_group(tp, pp)


def _silent(rank: int, phase: str, done: int, total: int) -> None:
    """Progress nobody asked to see."""
