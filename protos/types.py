"""The nouns of a request: what a client asks for and the events it gets back.

Everything here is a frozen value. Text lives on the router's side of the boundary (`Spec`, `Delta`),
token ids on the engine's (`EngineRequest`, `TokenEvent`); `Finished` and `Failed` end both.
"""

from dataclasses import dataclass
from enum import StrEnum

from rayline.protos.errors import InvalidRequest, RaylineError, out_of_range

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_SEED = 2**63 - 1
MAX_TOP_K = 2**31 - 1  # what every wire and tensor holds


class FinishReason(StrEnum):
    """Why a stream ended well."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the model's context
    ABORT = "abort"  # cancelled by its client


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Names and meanings are those of vLLM and the OpenAI API.

    temperature 0 is greedy. top_k 0 is off. max_tokens None means "to the end of the context".
    logprobs None is off, n asks for the chosen token's and the n best. A seed of None is replaced
    by the router before the request reaches a group, so that a resumed request draws the same noise.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def check(self) -> None:
        """Raise InvalidRequest naming the first field out of range."""
        stops, stop_ids = list(self.stop), list(self.stop_token_ids)
        most_min_tokens = self.max_tokens or self.min_tokens
        rules: tuple[tuple[str, object, bool, str], ...] = (
            ("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "0 to 100"),
            ("top_k", self.top_k, 0 <= self.top_k <= MAX_TOP_K, "0 (off) to 2^31 - 1"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0, up to 1"),
            ("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 to 1"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed <= MAX_SEED, "0 to 2^63 - 1"),
            ("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "1 or more"),
            ("min_tokens", self.min_tokens, 0 <= self.min_tokens <= most_min_tokens, "0 to max_tokens"),
            (
                "stop",
                stops,
                len(stops) <= MAX_STOP_STRINGS and all(stops),
                f"up to {MAX_STOP_STRINGS} non-empty strings",
            ),
            ("stop_token_ids", stop_ids, min(stop_ids, default=0) >= 0, "ids of 0 or more"),
            ("logprobs", self.logprobs, 0 <= (self.logprobs or 0) <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
        )
        for field, value, holds, allowed in rules:
            if not holds:
                raise out_of_range(field, value, allowed)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Spec:
    """What a client asks for, before tokenisation. Exactly one of the three prompt forms is given."""

    request_id: str
    model: str
    params: SamplingParams
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] | None = None
    priority: int = 0

    def check(self) -> None:
        """Raise InvalidRequest unless the parameters hold and there is exactly one prompt."""
        forms = [form is not None for form in (self.prompt, self.prompt_ids, self.messages)]
        if sum(forms) != 1:
            raise InvalidRequest("exactly one of prompt, prompt_ids and messages must be given", field="prompt")
        if not -100 <= self.priority <= 100:
            raise out_of_range("priority", self.priority, "-100 (first) to 100 (last)")
        self.params.check()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What a group computes. `output_ids` is not empty when a stream is resumed elsewhere.

    params.seed and params.max_tokens are set; priority: lower runs first.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    output_ids: tuple[int, ...] = ()
    priority: int = 0


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
    """Token counts of one request. cached: prompt tokens whose keys and values were reused."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Where one request's time went, in seconds."""

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The good terminal event."""

    request_id: str
    reason: FinishReason
    usage: Usage
    queue_s: float = 0.0
    overhead: Overhead | None = None
    stop_reason: str | int | None = None  # the stop string or token that matched


@dataclass(frozen=True, slots=True)
class Failed:
    """The bad terminal event."""

    request_id: str
    error: RaylineError


EngineEvent = TokenEvent | Finished | Failed


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a client's stream: who serves it and how exact its bits are."""

    request_id: str
    numerics: str
    exact: bool
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class DeltaLogprob:
    """Logprobs of one output token, with the text each candidate stands for."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New output: token ids and the text they add. Text never ends inside a character."""

    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[DeltaLogprob, ...] = ()


StreamEvent = Started | Delta | Finished | Failed


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """What a group reports after each step, and the router balances on."""

    running: int = 0
    waiting: int = 0
    outstanding_tokens: int = 0  # prompt tokens not yet computed + output tokens not yet sampled
    free_blocks: int = 0
    total_blocks: int = 0
    draining: bool = False  # finishes what it has, takes nothing new


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What a group is: fixed once it has started."""

    group_id: str
    model: str
    numerics: str
    exact: bool
    max_model_len: int
    vocab_size: int
    block_tokens: int
    total_blocks: int
    max_waiting: int
    epoch: int
