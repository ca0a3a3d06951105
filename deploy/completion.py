"""What `LLM.generate` returns: whole answers, put together from the events that a client of a server would get."""

from dataclasses import dataclass

from rayline.protos.conversation import ToolCall
from rayline.protos.errors import InternalError
from rayline.protos.events import DeltaLogprob, FinishReason, Preempted, Usage
from rayline.protos.group import GroupInfo
from rayline.router.collected import Collected, CollectedChoice

NEVER_PREEMPTED = Preempted()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. logprobs: one entry a token where asked for, else empty. With echo all begin with the prompt.

    reasoning: what the model thought before the text. stop_reason: the stop string or token that matched.
    score: of a beam, or of the best among best_of.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[DeltaLogprob, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to one prompt, and how exact their bits are (see GroupInfo).

    prompt_logprobs: one entry a token of the prompt where asked for, else empty. preempted: how often it lost its KV
    blocks to others, and what was computed again for that.
    """

    prompt_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    usage: Usage
    numerics: str
    exact: bool
    prompt_logprobs: tuple[DeltaLogprob, ...] = ()
    preempted: Preempted = NEVER_PREEMPTED


def completion_of(prompt_ids: tuple[int, ...], collected: Collected, info: GroupInfo) -> Completion:
    """Raises InternalError for a stream without its terminal event."""
    if collected.finished is None:
        raise InternalError("a request has no terminal event")
    choices = tuple(_choice(number, choice) for number, choice in sorted(collected.choices.items()))
    end = collected.finished
    return Completion(
        prompt_ids, choices, end.usage, info.numerics, info.exact, collected.prompt, preempted=end.preempted
    )


def _choice(number: int, choice: CollectedChoice) -> Choice:
    if choice.ended is None:
        raise InternalError(f"choice {number} has no end")
    return Choice(
        number,
        choice.text,
        tuple(choice.token_ids),
        tuple(choice.logprobs),
        choice.ended.reason,
        choice.ended.stop_reason,
        choice.reasoning,
        choice.tool_calls,
        choice.ended.score,
    )
