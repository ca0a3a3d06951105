"""The least time a request can take here, from what steps took lately. Pure: the times come from the engine's clock.

A bound from below, so that nothing is refused that could have been done:

    seconds >= SURE * (prompt tokens to compute * token_s + (output tokens that must come - 1) * step_s)

token_s is the least that a prompt token took among the last steps of chunks as large or larger, step_s the least that a
step without prompts took. Of a chunk larger than any that was seen nothing is known, and 0 is assumed.
"""

from collections import deque

from rayline.protos.types import EngineRequest
from rayline.workers.scheduling.pace import Work

SAMPLES = 9  # of each size: a machine that has become slower is believed after so many
SURE = 0.8
SIZES = 33  # powers of two of tokens


class Speed:
    """What one group's steps have told."""

    def __init__(self) -> None:
        self._steps_s: deque[float] = deque(maxlen=SAMPLES)
        self._token_s: tuple[deque[float], ...] = tuple(deque(maxlen=SAMPLES) for _ in range(SIZES))

    def observe(self, work: Work, step_s: float) -> None:
        """A step has taken `step_s`; 0 when nobody measured."""
        if step_s <= 0.0:
            return
        if work.prompt_tokens:
            self._token_s[work.prompt_tokens.bit_length()].append(step_s / work.prompt_tokens)
        else:
            self._steps_s.append(step_s)

    def least_s(self, prompt_tokens: int, output_tokens: int, chunk_tokens: int) -> float:
        """For a request with so many tokens to compute and to give, computed in chunks of `chunk_tokens` at most."""
        size = min(prompt_tokens, chunk_tokens).bit_length()
        token_s = min((least for seen in self._token_s[size:] for least in seen), default=0.0)
        step_s = min(self._steps_s, default=0.0)
        return SURE * (prompt_tokens * token_s + max(0, output_tokens - 1) * step_s)


def sure_tokens(request: EngineRequest, max_model_len: int) -> int:
    """Output tokens without which the request cannot end: few, as almost anything may end it early."""
    params = request.params
    ends_early = params.stop or params.stop_token_ids or request.rules.grammar or params.beam_width
    most = min(params.max_tokens or max_model_len, max_model_len - len(request.prompt_ids))
    least = params.min_tokens if ends_early or not params.ignore_eos else most
    return max(1, least - len(request.output_ids))
