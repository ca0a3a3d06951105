"""The body of /v1/completions."""

from typing import cast

from pydantic import Field

from rayline.protos.errors import out_of_range
from rayline.protos.openai import NEUTRAL, Allowed
from rayline.protos.openai_sampling import SamplingBody
from rayline.protos.types import Spec

DEFAULT_TOKENS = 16  # OpenAI's default
MAX_PROMPTS = 256  # in one request
NEUTRAL_COMPLETION: dict[str, Allowed] = {**NEUTRAL, "add_special_tokens": (True,)}


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    neutral = NEUTRAL_COMPLETION

    # From left to right: trying every form on 100 000 ids takes 20 ms.
    prompt: list[int] | str | list[str] | list[list[int]] = Field(union_mode="left_to_right")
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None

    def specs(self, request_id: str) -> list[Spec]:
        """One spec for each prompt. Raises InvalidRequest for no prompt or too many.

        With echo, logprobs are those of the prompt's tokens, too.
        """
        prompts = _prompts(self.prompt)
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise out_of_range("prompt", f"{len(prompts)} prompts", f"1 to {MAX_PROMPTS} in one request")
        if self.echo and self.prompt_logprobs is None:
            self.prompt_logprobs = self.logprobs
        params = self.params(DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens, self.logprobs)
        return [
            Spec(
                request_id if len(prompts) == 1 else f"{request_id}-{number}",
                self.model,
                params,
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_ids=None if isinstance(prompt, str) else tuple(prompt),
                suffix=self.suffix or None,
                echo=bool(self.echo),
                **self.options(),
            )
            for number, prompt in enumerate(prompts)
        ]


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The prompts of a completion request; a list of ids is one prompt."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):  # then all are: looking at 100 000 of them takes 2 ms
        return [prompt]
    return list(cast(list[str] | list[list[int]], prompt))
