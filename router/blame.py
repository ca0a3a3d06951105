"""Which request is to blame for lost groups. Pure.

    group 0   a b c P x     lost: any of the four may be why
    group 1   a b c P x     lost again, and P gained nothing between: it is a suspect
    group 2   P x           P is computed apart, all others of the group wait. Lost: it was P.

a, b and c are never failed, however often their groups are lost: to be found guilty a request must be the only one
computed. A suspect that gains its tokens apart goes on like any other.

A beam search begins anew in each group. It is suspected of what happens where it was lost before, and is computed apart
there:

    group 0   s0 s1 .. s40 x      it came to 40 tokens
    group 1   s0 .. s9 x          it had been through here: that was not its doing
    group 2   s0 .. s40 x         lost again where it was lost: a suspect
    group 3   s0 .. s32 | s33 .. s47 apart |    whichever it is, it shows now
"""

import hashlib
from dataclasses import replace

from rayline.protos.blame import PROOF_TOKENS, Presence, Record
from rayline.protos.token_ids import packed
from rayline.protos.types import EngineRequest


def after_loss(record: Record, presence: Presence, position: int, was_apart: bool) -> Record:
    """`record` once more group is lost with the request at `position`. was_apart: it was to be computed alone there."""
    gained = position - record.position
    if gained <= -PROOF_TOKENS:
        return record
    if presence is Presence.ALONE and gained < PROOF_TOKENS:
        return replace(record, is_guilty=True)
    if presence is Presence.ABSENT or (was_apart and gained < PROOF_TOKENS):
        return record  # also one that was lost before its turn to be computed alone came
    if gained >= PROOF_TOKENS:
        return Record(1, position)
    return Record(record.losses + 1, max(position, record.position))


def fingerprint(request: EngineRequest) -> str:
    """The same for all who ask the same of a model, whatever seed was drawn for them."""
    params = replace(request.params, seed=None, prompt_logprobs=None)  # only the first choice scores the prompt
    rest = repr((len(request.prompt_ids), params, request.rules))
    return hashlib.sha256(packed(request.prompt_ids) + rest.encode()).hexdigest()[:16]
