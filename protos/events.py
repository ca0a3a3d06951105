"""What comes back for a request: token events from a group, stream events to a client.

`Finished` and `Failed` end both. Text lives on the router's side of the boundary (`Delta`), token ids on the engine's
(`TokenEvent`).
"""

from dataclasses import dataclass
from enum import StrEnum

from rayline.protos.blame import Presence
from rayline.protos.errors import RaylineError


class FinishReason(StrEnum):
    """Why a choice ended well."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the model's context
    TOOL_CALLS = "tool_calls"  # the model called tools
    ABORT = "abort"  # cancelled by its client


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the unprocessed logits."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Begun:
    """How a request began in its group: prompt tokens it found cached, seconds it waited."""

    cached_tokens: int
    queue_s: float


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Logprobs of prompt tokens [start, start + len(tokens)): each one's own, then the best in its place.

    The first token of a prompt has none; `start` is 1 or more.
    """

    request_id: str
    start: int
    tokens: tuple[tuple[TokenLogprob, tuple[TokenLogprob, ...]], ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token. `index` counts output tokens from 0, resumed ones included.

    `begun` comes with the first token that a group samples for the request.
    """

    request_id: str
    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    begun: Begun | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, over all its choices. cached: prompt tokens whose keys and values were reused.

    reasoning: output tokens up to the end of the model's thinking.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Preempted:
    """How often a request lost its blocks to others, and how many tokens were computed again for it."""

    times: int = 0
    recomputed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Where one request's time went, in seconds."""

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    preempted: Preempted = Preempted()
    moves: int = 0  # times that a choice went on in another group
    losses: int = 0  # of these, because its group was lost


@dataclass(frozen=True, slots=True)
class Beam:
    """A finished hypothesis of a beam search. score: sum of logprobs / length ** length_penalty.

    token_ids are the output's, a token that ended it included; logprobs one for each.
    """

    token_ids: tuple[int, ...]
    score: float
    logprobs: tuple[float, ...]
    reason: FinishReason
    stop_token: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The good terminal event. reason and stop_reason: those of choice 0.

    beams: from the engine alone, best first, when the request asked for a beam search.
    exact: the bits of the stream are those of its numerics class.
    """

    request_id: str
    reason: FinishReason
    usage: Usage
    queue_s: float = 0.0
    overhead: Overhead | None = None
    stop_reason: str | int | None = None  # the stop string or token that matched
    preempted: Preempted = Preempted()
    beams: tuple[Beam, ...] = ()
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The bad terminal event. presence: told when the reason is that the request's group was lost."""

    request_id: str
    error: RaylineError
    presence: Presence | None = None


@dataclass(frozen=True, slots=True)
class Searched:
    """A beam search has come so far: `tokens` of output in each beam. Clients see nothing of it."""

    request_id: str
    tokens: int


Interim = PromptScores | TokenEvent | Searched
"""What is not the last that an engine says of a request."""

EngineEvent = Interim | Finished | Failed


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a client's stream: who serves it and how exact its bits are.

    prompt_ids: when the request asked for them. created_s: when it was first accepted, in seconds since 1970.
    """

    request_id: str
    numerics: str
    exact: bool
    prompt_tokens: int
    prompt_ids: tuple[int, ...] = ()
    created_s: int = 0


@dataclass(frozen=True, slots=True)
class DeltaLogprob:
    """Logprobs of one token, with the text each candidate stands for. A prompt's first token has none."""

    token_id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Logprobs of all prompt tokens, first to last, before the first Delta."""

    tokens: tuple[DeltaLogprob, ...]


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. `id` and `name` come with its first piece; all `arguments` joined are JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of a choice: token ids and the text they add. Text never ends inside a character.

    text: the answer; reasoning: what the model thinks before it; tool_calls: pieces of calls, which are in neither.
    is_echo: this is the prompt, which comes as the first delta of each choice when it was asked for.
    """

    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[DeltaLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    is_echo: bool = False


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    """The last event of a choice. score: of a beam, or of the best among best_of; None where nothing was ranked."""

    choice: int
    reason: FinishReason
    stop_reason: str | int | None = None
    score: float | None = None


StreamEvent = Started | PromptScored | Delta | ChoiceEnded | Finished | Failed
