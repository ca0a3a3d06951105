"""The fields that both kinds of completion share: how tokens are chosen, and how the answer is sent."""

from typing import Any, Literal

from rayline.protos.errors import InvalidRequest
from rayline.protos.openai import Body, StreamOptions
from rayline.protos.openai_forms import ResponseFormatBody, StructuredOutputsBody, form_of
from rayline.protos.types import SamplingParams

# Fields that SamplingParams has by the same name and with the same meaning.
SAME = {
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "allowed_token_ids",
    "bad_words",
    "seed",
    "n",
    "best_of",
    "beam_width",
    "length_penalty",
    "early_stopping",
    "min_tokens",
    "include_stop_str_in_output",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "prompt_logprobs",
    "thinking_budget",
}


class SamplingBody(Body):
    """Sampling as OpenAI and vLLM name it, and what is sent back."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    logit_bias: dict[str, float] | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    beam_width: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    min_tokens: int | None = None
    include_stop_str_in_output: bool | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    thinking_budget: int | None = None
    response_format: ResponseFormatBody | None = None
    structured_outputs: StructuredOutputsBody | None = None
    priority: int | None = None
    cache_salt: str | None = None
    truncate_prompt_tokens: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def echoed(self) -> str:
        """The text that the answer begins with, before all output; a completion's comes with its stream instead."""
        return ""

    @property
    def shown_choices(self) -> int:
        """Choices of one prompt in the answer."""
        return 1 if self.n is None else self.n

    def params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """null means the default; top_k -1 is vLLM's word for off; use_beam_search searches with n beams.

        Raises InvalidRequest for what contradicts itself.
        """
        given: dict[str, Any] = self.model_dump(include=SAME, exclude_none=True)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        if self.use_beam_search and not self.beam_width:
            values["beam_width"] = values.pop("best_of", None) or self.shown_choices
        if self.use_beam_search is False and self.beam_width:
            raise InvalidRequest(
                f"use_beam_search = False cannot be combined with beam_width = {self.beam_width}",
                field="use_beam_search",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        params = SamplingParams(
            top_k=0 if self.top_k in (None, -1) else self.top_k or 0,
            max_tokens=max_tokens,
            stop=tuple(stop),
            logprobs=logprobs,
            logit_bias=_biases(self.logit_bias or {}),
            structured_output=form_of(self.response_format, self.structured_outputs),
            **values,
        )
        if self.stream and (params.best_of or 0) > params.n:
            params.check()
            raise InvalidRequest(
                f"best_of = {params.best_of} cannot be streamed: the best are known at the end", field="best_of"
            )
        return params

    def options(self) -> dict[str, Any]:
        """The fields of a Spec that both kinds share."""
        return {
            "priority": self.priority or 0,
            "cache_salt": self.cache_salt or "",
            "truncate_prompt_tokens": self.truncate_prompt_tokens,
            "return_prompt_ids": bool(self.return_token_ids),
        }


def _biases(bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """JSON has ids as strings, since they are keys."""
    for key in bias:
        if not (key.isascii() and key.isdigit()):
            raise InvalidRequest(f"logit_bias = {key!r}: a key must be a token id", field="logit_bias")
    return tuple(sorted((int(key), value) for key, value in bias.items()))
