"""The engine offline: `LLM(path).generate(prompts)`. With launcher="local" it needs neither Ray nor gRPC.

with LLM("embedded", tp=2) as llm:
    for completion in llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=32)):
        print(completion.choices[0].text)
"""

import itertools
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from rayline.cluster.config import EngineSection, ModelSection, SystemConfig, override
from rayline.deploy.completion import Choice, Completion, completion_of
from rayline.deploy.model_path import resolve_model, served_name
from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice
from rayline.protos.errors import ConfigError, InvalidRequest, RaylineError
from rayline.protos.events import EngineEvent, Failed, Finished, StreamEvent
from rayline.protos.group import GroupInfo
from rayline.protos.types import EngineRequest, SamplingParams, Spec
from rayline.router import choice as choices
from rayline.router.admission import Admitted, admit
from rayline.router.answer import Answer
from rayline.router.collected import Collected
from rayline.router.grammars.desk import GrammarDesk
from rayline.router.grammars.wish import grammar_wish
from rayline.router.output_form import chat_formats
from rayline.router.tokenizer import Tokenizer
from rayline.workers.engine import Engine
from rayline.workers.group import GroupSpec, Launcher, start_group
from rayline.workers.local_launch import LocalLauncher
from rayline.workers.ranks import OnRankProgress

T = TypeVar("T")
__all__ = ["LLM", "Choice", "Completion", "offline_group"]
Prompts = Sequence[str | Sequence[int]] | Sequence[str] | Sequence[Sequence[int]]

NOBODY_WATCHES = 1000.0  # decode_stretch where only the end counts: prompts take whole steps


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
        """Load a model. `options`: keys of the config's engine section, max_model_len, tool_parser, reasoning_parser.

        Raises ConfigError (unknown or impossible options), ModelError, NotEnoughMemory.
        """
        spec = offline_group(path, tp=tp, pp=pp, dtype=dtype, **options)
        self._tokenizer = Tokenizer.load(spec.path)
        self._chat = chat_formats(
            self._tokenizer, options.get("tool_parser", "auto"), options.get("reasoning_parser", "auto")
        )
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
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        suffixes: Sequence[str | None] | None = None,
        echo: bool = False,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str = "",
        priority: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """Complete all prompts in one continuous batch; results in the prompts' order.

        `params`, priority: one for all or one for each; suffixes: one for each, the text after the gap that is filled.
        Raises InvalidRequest or PromptTooLong before anything runs.
        """
        if isinstance(prompts, str):
            raise InvalidRequest("prompts is a single string: allowed is a list of prompts", field="prompts")
        each = _one_each("params", params or SamplingParams(), len(prompts))
        gaps: Sequence[str | None] = _one_each("suffixes", suffixes or [None] * len(prompts), len(prompts))
        ranks: Sequence[int] = _one_each("priority", priority, len(prompts))
        specs = [
            replace(
                self._spec(prompt, own),
                suffix=gap,
                echo=echo,
                truncate_prompt_tokens=truncate_prompt_tokens,
                cache_salt=cache_salt,
                priority=rank,
            )
            for prompt, own, gap, rank in zip(prompts, each, gaps, ranks, strict=True)
        ]
        return self._complete(specs)

    def chat(
        self,
        conversations: Sequence[Conversation] | Sequence[Sequence[ChatMessage]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice | None = None,
        echo: bool = False,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str = "",
        priority: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """Answer all conversations in one continuous batch; results in their order.

        tools and tool_choice are those of conversations given as messages alone. Errors as `generate`.
        """
        each = _one_each("params", params or SamplingParams(), len(conversations))
        chats = [
            chat
            if isinstance(chat, Conversation)
            else Conversation(tuple(chat), tuple(tools), tool_choice or ToolChoice())
            for chat in conversations
        ]
        ranks: Sequence[int] = _one_each("priority", priority, len(conversations))
        specs = [
            Spec(
                self._new_id(),
                self._info.model,
                own,
                conversation=chat,
                echo=echo,
                truncate_prompt_tokens=truncate_prompt_tokens,
                cache_salt=cache_salt,
                priority=rank,
            )
            for chat, own, rank in zip(chats, each, ranks, strict=True)
        ]
        return self._complete(specs)

    def stream(self, spec: Spec) -> Iterator[StreamEvent]:
        """Started, what the choices bring, then Finished or Failed: what the servers send for one request.

        Leaving it early aborts.
        """
        answer = Answer(self._admit(spec), self._tokenizer)
        self._check_idle()
        yield answer.started(self._info.numerics, self._info.exact, int(time.time()))
        yield from answer.opening()
        lanes = {choice.request.request_id: choice for choice in answer.choices}
        try:
            for event in self._run([choice.request for choice in answer.choices]):
                for brought in self._take(lanes[event.request_id], event):
                    yield from answer.take(brought)
                    if isinstance(brought, Failed):
                        return
            yield answer.finished()
        finally:
            self._abort(lanes)

    def _complete(self, specs: Sequence[Spec]) -> list[Completion]:
        answers = [Answer(self._admit(spec), self._tokenizer) for spec in specs]
        found = [Collected() for _ in answers]
        owners = {
            choice.request.request_id: (own, answer, choice)
            for own, answer in zip(found, answers, strict=True)
            for choice in answer.choices
        }
        self._check_idle()
        for own, answer in zip(found, answers, strict=True):
            for shown in answer.opening():
                own.add(shown)
        try:
            for event in self._run([choice.request for _, _, choice in owners.values()]):
                own, answer, choice = owners[event.request_id]
                for brought in self._take(choice, event):
                    for shown in answer.take(brought):
                        own.add(shown)
        finally:
            self._abort(owners)  # nothing is left running when a caller interrupts
        return [self._completion(own, answer) for own, answer in zip(found, answers, strict=True)]

    def _completion(self, found: Collected, answer: Answer) -> Completion:
        found.add(answer.finished())
        return completion_of(answer.prompt_ids, found, self._info)

    def _take(self, choice: choices.Choice, event: EngineEvent) -> Sequence[choices.ChoiceEvent]:
        shown = choice.take(event)
        if choice.is_over:
            self._engine.abort(choice.request.request_id)
        return shown

    def _abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._engine.abort(request_id)

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

    def _new_id(self) -> str:
        return f"offline-{next(self._numbers)}"

    def _spec(self, prompt: str | Sequence[int], params: SamplingParams) -> Spec:
        if isinstance(prompt, str):
            return Spec(self._new_id(), self._info.model, params, prompt=prompt)
        if not isinstance(prompt, Iterable):
            raise InvalidRequest(
                f"prompts holds {prompt!r}: allowed are strings and lists of token ids", field="prompts"
            )
        return Spec(self._new_id(), self._info.model, params, prompt_ids=tuple(prompt))

    def _admit(self, spec: Spec) -> Admitted:
        spec.check()
        wish = grammar_wish(spec, self._chat, self._grammars.special_ids)
        grammar = "" if wish is None else wish.granted_now(self._grammars)
        return admit(spec, self._tokenizer, self._chat, grammar, self._info, secrets.randbits(63))

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
                if isinstance(event, Finished | Failed):
                    running.discard(event.request_id)
                yield event


def _one_each(field: str, values: T | Sequence[T], count: int) -> Sequence[T]:
    """One value for all, or a list of one for each. Raises InvalidRequest for a list of another length."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return [values] * count
    if len(values) != count:
        raise InvalidRequest(f"{field} has {len(values)} entries for {count} prompts", field=field)
    return list(values)


def offline_group(path: str, **options: Any) -> GroupSpec:
    """The group that `LLM` starts for the same arguments. Raises ConfigError or ModelError."""
    known = {f.name for f in fields(EngineSection)} | {"max_model_len", "tool_parser", "reasoning_parser"}
    if unknown := options.keys() - known - {"tp", "pp", "dtype"}:
        name = min(unknown)
        raise ConfigError(f"{name} is not an option of LLM: there are {', '.join(sorted(known))}", field=name)
    config = override(SystemConfig(), {"path": path, "decode_stretch": NOBODY_WATCHES, **options})
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
        max_waiting_tokens=config.limits.max_waiting_tokens,
        tenant_weights=config.security.tenant_weights,
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
