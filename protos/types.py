"""The nouns of a request: what a client asks for, and what a group is given to compute.

Everything here is a frozen value. Text lives on the router's side of the boundary (`Spec`), token ids on the engine's
(`EngineRequest`).
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal

from rayline.protos.conversation import Conversation
from rayline.protos.errors import InvalidRequest, out_of_range
from rayline.protos.journal import KeptAs

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_SEED = 2**63 - 1
MAX_TOP_K = 2**31 - 1  # what every wire and tensor holds
MAX_CHOICES = 64
MAX_BEAMS = 64
MAX_BAD_WORDS = 256
MAX_BIASED = 1024
MAX_NAME_CHARACTERS = 128

StructureKind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"]
EarlyStopping = Literal["never"] | bool


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A form the output must have. `text` is, by kind: a JSON schema; nothing; a regular expression; a JSON list of
    strings; a Lark or GBNF grammar; a JSON object of tags with schemas."""

    kind: StructureKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Names and meanings are those of vLLM, transformers and the OpenAI API.

    temperature 0 is greedy. top_k, top_n_sigma and no_repeat_ngram_size 0, top_p, typical_p and repetition_penalty 1
    are off. max_tokens None means "to the end of the context". logprobs None is off, n asks for the chosen token's and
    the n best; prompt_logprobs the same for the prompt. A seed of None is replaced by the router before the request
    reaches a group, so that a resumed request draws the same noise. beam_width 0 is sampling; any other searches, and
    takes no sampling parameters. allowed_token_ids () allows all. thinking_budget: most tokens of thinking, None for
    no limit.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    beam_width: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_output: StructuredOutput | None = None
    thinking_budget: int | None = None

    def check(self) -> None:
        """Raise InvalidRequest naming the first field out of range."""
        for field, value, holds, allowed in (*self._ranges(), *self._lists(), *self._choices()):
            if not holds:
                raise out_of_range(field, value, allowed)
        if self.beam_width:
            self._check_beams()
        else:
            self._check_sampling()

    def _ranges(self) -> tuple[tuple[str, object, bool, str], ...]:
        """(field, value, whether it holds, what is allowed) of single numbers."""
        most_min_tokens = self.max_tokens or self.min_tokens
        return (
            ("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "0 to 100"),
            ("top_k", self.top_k, 0 <= self.top_k <= MAX_TOP_K, "0 (off) to 2^31 - 1"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0, up to 1"),
            ("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 to 1"),
            ("typical_p", self.typical_p, 0.0 < self.typical_p <= 1.0, "above 0, up to 1"),
            ("top_n_sigma", self.top_n_sigma, 0.0 <= self.top_n_sigma <= 100.0, "0 (off) to 100"),
            ("presence_penalty", self.presence_penalty, -2.0 <= self.presence_penalty <= 2.0, "-2 to 2"),
            ("frequency_penalty", self.frequency_penalty, -2.0 <= self.frequency_penalty <= 2.0, "-2 to 2"),
            ("repetition_penalty", self.repetition_penalty, 0.01 <= self.repetition_penalty <= 100.0, "0.01 to 100"),
            (
                "no_repeat_ngram_size",
                self.no_repeat_ngram_size,
                0 <= self.no_repeat_ngram_size <= 1000,
                "0 (off) to 1000",
            ),
            ("seed", self.seed, self.seed is None or 0 <= self.seed <= MAX_SEED, "0 to 2^63 - 1"),
            ("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "1 or more, 0 with echo"),
            ("min_tokens", self.min_tokens, 0 <= self.min_tokens <= most_min_tokens, "0 to max_tokens"),
            ("logprobs", self.logprobs, 0 <= (self.logprobs or 0) <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
            (
                "prompt_logprobs",
                self.prompt_logprobs,
                0 <= (self.prompt_logprobs or 0) <= MAX_LOGPROBS,
                f"0 to {MAX_LOGPROBS}",
            ),
            ("thinking_budget", self.thinking_budget, (self.thinking_budget or 0) >= 0, "0 or more"),
        )

    def _lists(self) -> tuple[tuple[str, object, bool, str], ...]:
        stops, stop_ids, bad_words = list(self.stop), list(self.stop_token_ids), list(self.bad_words)
        allowed_ids, bias = list(self.allowed_token_ids), dict(self.logit_bias)
        biases_hold = all(-100.0 <= value <= 100.0 for value in bias.values())
        return (
            (
                "stop",
                stops,
                len(stops) <= MAX_STOP_STRINGS and all(stops),
                f"up to {MAX_STOP_STRINGS} non-empty strings",
            ),
            ("stop_token_ids", stop_ids, min(stop_ids, default=0) >= 0, "ids of 0 or more"),
            ("allowed_token_ids", allowed_ids, min(allowed_ids, default=0) >= 0, "ids of 0 or more"),
            (
                "bad_words",
                bad_words,
                len(bad_words) <= MAX_BAD_WORDS and all(bad_words),
                f"up to {MAX_BAD_WORDS} non-empty strings",
            ),
            (
                "logit_bias",
                bias,
                len(bias) <= MAX_BIASED and min(bias, default=0) >= 0 and biases_hold,
                f"up to {MAX_BIASED} ids of 0 or more, with biases of -100 to 100",
            ),
        )

    def _choices(self) -> tuple[tuple[str, object, bool, str], ...]:
        best_of = self.best_of
        return (
            ("n", self.n, 1 <= self.n <= MAX_CHOICES, f"1 to {MAX_CHOICES}"),
            ("best_of", best_of, best_of is None or self.n <= best_of <= MAX_CHOICES, f"n to {MAX_CHOICES}"),
            ("beam_width", self.beam_width, 0 <= self.beam_width <= MAX_BEAMS, f"0 (off) to {MAX_BEAMS}"),
            ("length_penalty", self.length_penalty, -100.0 <= self.length_penalty <= 100.0, "-100 to 100"),
            (
                "early_stopping",
                self.early_stopping,
                self.early_stopping in (True, False, "never"),
                "true, false, never",
            ),
        )

    def _check_sampling(self) -> None:
        """What only a search reads is refused without one, not ignored."""
        plain = SamplingParams()
        for field, value, default in (
            ("length_penalty", self.length_penalty, plain.length_penalty),
            ("early_stopping", self.early_stopping, plain.early_stopping),
        ):
            if value != default:
                raise InvalidRequest(f"{field} = {value!r} needs a beam search: beam_width is 0", field=field)

    def _check_beams(self) -> None:
        """A search is not random and sees no text: what needs either is refused, not ignored."""
        plain = SamplingParams()
        if self.n > self.beam_width:
            raise out_of_range("n", self.n, f"1 to beam_width = {self.beam_width}")
        rules: tuple[tuple[str, object, bool], ...] = (
            ("temperature", self.temperature, self.temperature in (0.0, 1.0)),
            ("top_k", self.top_k, self.top_k == plain.top_k),
            ("top_p", self.top_p, self.top_p == plain.top_p),
            ("min_p", self.min_p, self.min_p == plain.min_p),
            ("typical_p", self.typical_p, self.typical_p == plain.typical_p),
            ("top_n_sigma", self.top_n_sigma, self.top_n_sigma == plain.top_n_sigma),
            ("best_of", self.best_of, self.best_of is None),
            ("stop", list(self.stop), not self.stop),
            ("logprobs", self.logprobs, not self.logprobs),
        )
        for field, value, holds in rules:
            if not holds:
                raise InvalidRequest(
                    f"{field} = {value!r} cannot be combined with beam_width = {self.beam_width}", field=field
                )


@dataclass(frozen=True, slots=True)
class Spec:
    """What a client asks for, before tokenisation. Exactly one of the three prompt forms is given.

    suffix: the text after the gap that the output fills. echo: send the prompt before the output.
    truncate_prompt_tokens: keep the last so many tokens of the prompt. tenant: who shares the machine with others.
    cache_salt: requests of different salts share no cached prefix, so that timing tells nothing of others' prompts.
    return_prompt_ids: `Started` brings the prompt's ids. With echo params.max_tokens may be 0: the prompt alone.
    timeout_s: how long after its arrival the client still waits for the end; None: for ever.
    """

    request_id: str
    model: str
    params: SamplingParams
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    conversation: Conversation | None = None
    suffix: str | None = None
    echo: bool = False
    truncate_prompt_tokens: int | None = None
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    return_prompt_ids: bool = False
    timeout_s: float | None = None

    @property
    def is_prompt_alone(self) -> bool:
        """The client wants to see its prompt, scored or not, and no output."""
        return self.echo and self.params.max_tokens == 0

    def check(self) -> None:
        """Raise InvalidRequest unless the parameters hold and there is exactly one prompt."""
        forms = [form is not None for form in (self.prompt, self.prompt_ids, self.conversation)]
        if sum(forms) != 1:
            raise InvalidRequest("exactly one of prompt, prompt_ids and messages must be given", field="prompt")
        if self.suffix is not None and self.prompt is None:
            raise InvalidRequest("suffix needs a prompt of text", field="suffix")
        if not -100 <= self.priority <= 100:
            raise out_of_range("priority", self.priority, "-100 (first) to 100 (last)")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise out_of_range("truncate_prompt_tokens", self.truncate_prompt_tokens, "1 or more")
        if self.timeout_s is not None and not 0.0 < self.timeout_s < math.inf:
            raise out_of_range("timeout_s", self.timeout_s, "above 0")
        for field, name in (("tenant", self.tenant), ("cache_salt", self.cache_salt)):
            if len(name) > MAX_NAME_CHARACTERS:
                raise out_of_range(field, name, f"up to {MAX_NAME_CHARACTERS} characters")
        if self.conversation is not None:
            self.conversation.check()
        (replace(self.params, max_tokens=None) if self.is_prompt_alone else self.params).check()


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model marks what it thinks, in token ids. is_open: the prompt ends inside of it."""

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    budget_tokens: int | None = None
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What the router made of the words in a request, for those who know token ids alone.

    bad_words: id sequences that may not be completed. grammar: the text that the workers' grammar library compiles, ""
    for none; it begins to hold where thinking ends.
    """

    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: str = ""
    thinking: Thinking | None = None


PLAIN_RULES = TokenRules()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What a group computes: one choice, or one beam search. `output_ids` is not empty when a stream is resumed.

    params.seed and params.max_tokens are set; priority: lower runs first. Requests of one family are the choices of one
    client's request: their prompts are equal, and computed once.
    timeout_s: how long from now on anybody waits for it. apart_at: it is suspected of killing groups when it has about
    so many output tokens, so nothing else is computed beside it while it has less than PROOF_TOKENS more or fewer.
    is_stalled: it comes from a group that is gone: its client gets nothing until it goes on here.
    kept: how its group's leader keeps what it brings; None: not at all.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    output_ids: tuple[int, ...] = ()
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    family: str = ""
    rules: TokenRules = PLAIN_RULES
    timeout_s: float | None = None
    apart_at: int | None = None
    is_stalled: bool = False
    kept: KeptAs | None = None


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one choice among several. Choice 0 keeps the request's own, so it is what n = 1 would give."""
    if choice == 0:
        return seed
    digest = hashlib.sha256(seed.to_bytes(8, "little") + choice.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:8], "little") & MAX_SEED
