"""Real groups that are asked for mixtures of requests, and what in their answers differs from requests run alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from exact_requests import ALONE, Arrival, Asked, Limits

from rayline.cluster.config import EngineSection, KernelWish, ParallelSection
from rayline.cluster.parallel import Parallel
from rayline.protos.events import Failed, Finished, FinishReason, PromptScores, TokenEvent, TokenLogprob
from rayline.protos.types import EngineRequest
from rayline.workers.group import GroupSpec, Launcher, StartedGroup, start_group
from rayline.workers.models.config import ModelConfig, kv_bytes_per_token
from rayline.workers.worker import stage_layers

Token = tuple[int, str | None, tuple[tuple[int, str], ...]]
"""An output token, its logprob and the best ones' beside it; floats as their bits (float.hex)."""


BeamBits = tuple[tuple[int, ...], str, tuple[str, ...], FinishReason]
"""Token ids, score, logprobs and end of a beam."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got. reason None: it was aborted or failed. scores: of its prompt from token 1 on."""

    tokens: tuple[Token, ...]
    reason: FinishReason | None
    scores: tuple[Token, ...] = ()
    beams: tuple[BeamBits, ...] = ()
    error: str = ""


def start(
    path: Path,
    limits: Limits,
    longest_tokens: int,
    *,
    kernels: KernelWish = "native",
    parallel: ParallelSection | None = None,
    launcher: Launcher | None = None,
) -> StartedGroup:
    """A bf16 group with room for one request of `longest_tokens` and the spare blocks."""
    config = ModelConfig.load(path)
    blocks = -(-(longest_tokens + 1) // limits.block_tokens) + limits.spare_blocks
    parallel = parallel or ParallelSection()
    stages = [Parallel(0, parallel.tp, stage, parallel.pp) for stage in range(parallel.pp)]
    most_layers = max(len(stage_layers(config, stage, 2)) for stage in stages)
    block_bytes = kv_bytes_per_token(config, most_layers, parallel.tp, 2) * limits.block_tokens
    engine = EngineSection(
        block_tokens=limits.block_tokens,
        kv_bytes=blocks * block_bytes,
        max_step_tokens=limits.max_step_tokens,
        max_running=limits.max_running,
        prefix_caching=limits.prefix_caching,
        threads=limits.threads,
        decode_stretch=limits.decode_stretch,
        kernels=kernels,
        async_scheduling=limits.async_scheduling,
    )
    spec = GroupSpec("exact", "exact", path, "bfloat16", 0, engine, parallel, max_waiting=100)
    return start_group(spec, launcher, lambda *_: None)


def play(group: StartedGroup, requests: Sequence[tuple[Arrival, Sequence[int]]]) -> list[Answer]:
    """Let requests arrive, each with the outputs it is resumed from, and run until all have ended."""
    engine = group.engine
    tokens: list[list[Token]] = [[] for _ in requests]
    scores: list[list[Token]] = [[] for _ in requests]
    ends: dict[int, Finished | Failed] = {}
    aborts: dict[int, int] = {}
    coming = list(enumerate(requests))
    step, due = 0, requests[0][0].after_steps
    while coming or engine.has_work:
        while coming and (step >= due or not engine.has_work):
            index, (arrival, outputs) = coming.pop(0)
            asked = arrival.asked
            engine.add(
                EngineRequest(
                    str(index),
                    asked.prompt_ids,
                    asked.params,
                    tuple(outputs),
                    arrival.priority,
                    cache_salt=arrival.cache_salt,
                    family=arrival.family,
                    rules=asked.rules,
                )
            )
            if arrival.abort_after_steps is not None:
                aborts[index] = step + arrival.abort_after_steps
            due = step + coming[0][1][0].after_steps if coming else 0
        events = [event for index, at in aborts.items() if at == step for event in engine.abort(str(index))]
        for event in [*events, *engine.step()]:
            if isinstance(event, TokenEvent):
                tokens[int(event.request_id)].append(_bits(event))
            elif isinstance(event, PromptScores):
                assert event.start == 1 + len(scores[int(event.request_id)])
                scores[int(event.request_id)] += [_score_bits(*score) for score in event.tokens]
            else:
                ends[int(event.request_id)] = event
        step += 1
    engine.scheduler.pool.check([])
    return [_answer(tokens[i], scores[i], ends[i]) for i in range(len(requests))]


def _answer(tokens: Sequence[Token], scores: Sequence[Token], end: Finished | Failed) -> Answer:
    if isinstance(end, Failed):
        return Answer(tuple(tokens), None, tuple(scores), error=end.error.message)
    reason = None if end.reason is FinishReason.ABORT else end.reason
    beams = ((b.token_ids, b.score.hex(), tuple(map(float.hex, b.logprobs)), b.reason) for b in end.beams)
    return Answer(tuple(tokens), reason, tuple(scores), tuple(beams))


def _score_bits(own: TokenLogprob, top: tuple[TokenLogprob, ...]) -> Token:
    return own.token_id, own.logprob.hex(), tuple((other.token_id, other.logprob.hex()) for other in top)


def _bits(event: TokenEvent) -> Token:
    logprob = None if event.logprob is None else event.logprob.hex()
    return event.token_id, logprob, tuple((top.token_id, top.logprob.hex()) for top in event.top_logprobs)


def run_alone(path: Path, asked: Asked, kernels: KernelWish = "native") -> Answer:
    """The answer of a fresh group of one rank with room for everything, which nobody else asks."""
    group = start(path, ALONE, asked.longest_tokens, kernels=kernels)
    (answer,) = play(group, [(Arrival(asked), ())])
    return answer


@cache
def alone(path: Path, asked: Asked) -> Answer:
    """`run_alone` on the native kernels, run once for equal requests."""
    return run_alone(path, asked)


def longest_tokens(arrivals: Sequence[Arrival]) -> int:
    return max(arrival.asked.longest_tokens for arrival in arrivals)


def differences(group: StartedGroup, arrivals: Sequence[Arrival], reference: Callable[[Asked], Answer]) -> list[str]:
    """What a group answers otherwise than `reference` does: one line for each request. Empty if bits are equal."""
    expected = [reference(arrival.asked) for arrival in arrivals]
    known = [max(0, min(a.resumed_tokens, len(e.tokens) - 1)) for a, e in zip(arrivals, expected, strict=True)]
    resumed = [[token[0] for token in e.tokens[:count]] for e, count in zip(expected, known, strict=True)]
    answers = play(group, list(zip(arrivals, resumed, strict=True)))
    found = []
    for index, (answer, whole, skipped) in enumerate(zip(answers, expected, known, strict=True)):
        wanted = whole.tokens[skipped:]
        if answer.reason is None:
            wanted = wanted[: len(answer.tokens)]
        if answer.tokens != wanted or answer.reason not in (None, whole.reason):
            found.append(f"request {index}: {_first_difference(answer.tokens, wanted)}")
        scores = () if skipped else whole.scores
        if answer.scores != (scores[: len(answer.scores)] if answer.reason is None else scores):
            found.append(f"request {index}: of the prompt {_first_difference(answer.scores, scores)}")
        if answer.error != whole.error:
            found.append(f"request {index}: error is {answer.error!r}, alone {whole.error!r}")
        if answer.reason is not None and answer.beams != whole.beams:
            found.append(f"request {index}: beams are {answer.beams}, alone {whole.beams}")
    return found


def _first_difference(mine: Sequence[Token], theirs: Sequence[Token]) -> str:
    for at, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            return f"output {at} is {one}, alone it is {other}"
    return f"{len(mine)} outputs, alone {len(theirs)}"
