"""Request bodies of the OpenAI HTTP API, with vLLM's additional sampling fields.

An unknown field is refused. A field of the API that is not served yet is accepted with the values that
change nothing (NEUTRAL), and any other value is refused by name instead of being ignored.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.errors import InvalidRequest, out_of_range
from rayline.protos.types import MAX_LOGPROBS, SamplingParams, Spec

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
MAX_PROMPTS = 256  # prompts in one completion request
ANY = "any value"  # the field is a label that changes no output

Allowed = tuple[object, ...] | str

NEUTRAL: dict[str, Allowed] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "user": ANY,
    "safety_identifier": ANY,
    "prompt_cache_key": ANY,
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
}
NEUTRAL_COMPLETION: dict[str, Allowed] = {**NEUTRAL, "best_of": (1,), "echo": (False,), "suffix": ("",)}
NEUTRAL_CHAT: dict[str, Allowed] = {
    **NEUTRAL,
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "add_generation_prompt": (True,),
}
NEUTRAL_MESSAGE: dict[str, Allowed] = {
    "name": (),
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
}


class Body(BaseModel):
    """A JSON object whose unknown fields are refused and whose NEUTRAL fields may only say what changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Mapping[str, Allowed]] = {}

    @model_validator(mode="before")
    @classmethod
    def drop_neutral(cls, values: Any) -> Any:
        """Raises InvalidRequest naming the field and the values it may have."""
        if not isinstance(values, dict):
            return values
        for field, allowed in cls.neutral.items():
            value = values.get(field)
            if value is not None and allowed != ANY and value not in allowed:
                choices = ", ".join(["null", *(repr(choice) for choice in allowed)])
                raise InvalidRequest(f"{field} = {value!r} is not supported: allowed is {choices}", field=field)
        return {field: value for field, value in values.items() if field not in cls.neutral}


class StreamOptions(Body):
    """What a stream carries besides its text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingBody(Body):
    """The fields that both kinds of completion share."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    priority: int | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """null means the default; top_k -1 is vLLM's word for off."""
        plain = SamplingParams()
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            temperature=plain.temperature if self.temperature is None else self.temperature,
            top_k=plain.top_k if self.top_k in (None, -1) else self.top_k or 0,
            top_p=plain.top_p if self.top_p is None else self.top_p,
            min_p=self.min_p or plain.min_p,
            seed=self.seed,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    neutral = NEUTRAL_COMPLETION

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None

    def specs(self, request_id: str) -> list[Spec]:
        """One spec for each prompt. Raises InvalidRequest for no prompt or too many."""
        prompts = _prompts(self.prompt)
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise out_of_range("prompt", f"{len(prompts)} prompts", f"1 to {MAX_PROMPTS} in one request")
        wanted = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        params = self.params(wanted, self.logprobs)
        return [
            Spec(
                request_id if len(prompts) == 1 else f"{request_id}-{number}",
                self.model,
                params,
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_ids=None if isinstance(prompt, str) else tuple(prompt),
                priority=self.priority or 0,
            )
            for number, prompt in enumerate(prompts)
        ]


class TextPart(Body):
    """A piece of a message; only text is served."""

    type: str
    text: str

    @model_validator(mode="after")
    def only_text(self) -> "TextPart":
        if self.type != "text":
            raise InvalidRequest(f"messages: content type = {self.type!r}: allowed is 'text'", field="messages")
        return self


class MessageBody(Body):
    """One turn. `content` may come in parts, whose texts are joined."""

    neutral = NEUTRAL_MESSAGE

    role: str
    content: str | list[TextPart]

    def message(self) -> ChatMessage:
        parts = self.content if isinstance(self.content, list) else []
        return ChatMessage(self.role, self.content if isinstance(self.content, str) else "".join(p.text for p in parts))


class ChatCompletionBody(SamplingBody):
    """POST /v1/chat/completions."""

    neutral = NEUTRAL_CHAT

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def spec(self, request_id: str) -> Spec:
        """Raises InvalidRequest when top_logprobs is given without logprobs or is out of range."""
        top = self.top_logprobs or 0
        if top and not self.logprobs:
            raise InvalidRequest(f"top_logprobs = {top} needs logprobs = true", field="top_logprobs")
        if not 0 <= top <= MAX_LOGPROBS:
            raise out_of_range("top_logprobs", top, f"0 to {MAX_LOGPROBS}")
        wanted = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Spec(
            request_id,
            self.model,
            self.params(wanted, top if self.logprobs else None),
            conversation=Conversation(tuple(body.message() for body in self.messages)),
            priority=self.priority or 0,
        )


class TokenizeBody(Body):
    """POST /tokenize, as vLLM has it: a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str = ""
    tokens: list[int]


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The prompts of a completion request; a list of ids is one prompt."""
    if isinstance(prompt, str):
        return [prompt]
    prompts: list[str | list[int]] = []
    ids: list[int] = []
    for item in prompt:
        if isinstance(item, int):
            ids.append(item)
        else:
            prompts.append(item)
    return [*prompts, ids] if ids else prompts
