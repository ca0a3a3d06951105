"""A stream may be taken up behind its last token: whoever ran it was lost before it told the end."""

from collections.abc import Collection

from rayline.protos.events import Finished, FinishReason, Usage
from rayline.protos.types import EngineRequest
from rayline.workers.scheduling.beams import is_end


def end_of(request: EngineRequest, max_model_len: int, eos_ids: Collection[int]) -> Finished | None:
    """The end of a request whose output is whole already, None for one that has something to compute."""
    prompt, output = len(request.prompt_ids), request.output_ids
    if not output or request.params.beam_width:
        return None
    usage, last = Usage(prompt, len(output)), output[-1]
    if is_end(last, request.params, request.rules, eos_ids):
        named = last if last in request.params.stop_token_ids else None
        return Finished(request.request_id, FinishReason.STOP, usage, stop_reason=named)
    if len(output) >= (request.params.max_tokens or max_model_len) or prompt + len(output) >= max_model_len:
        return Finished(request.request_id, FinishReason.LENGTH, usage)
    return None
