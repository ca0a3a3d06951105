"""What a request wants changed in its row of logits before a token is chosen, and those changes in torch.

In this order, as the logits processors of `transformers` have it where it has them:

    repetition penalty   logit / r if logit > 0 else logit * r       tokens of prompt and output (Keskar et al. 2019)
    frequency, presence  logit - f * count - p                       tokens of the output (OpenAI)
    bias                 logit + bias
    banned               -inf                                        n-grams, bad words, ends before min_tokens
    mask                 -inf where its bit is 0                     allowed ids, grammar
    forced               -inf everywhere else, at least 0 here if it was -inf

Everything is computed in fp32, each operation rounded once; native/edits.h gives the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.transfer import to_device

MASK_BITS = 32  # ids in a word of a mask


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """The changes of one row. Ids are below the vocabulary's size.

    seen    int64 [S]   ids under penalties, each once
    counts  fp32 [S]    how often each was output; 0 for one that only the prompt holds
    bias    ids, int64 [B], each once, and what is added to them, fp32 [B]
    mask    int32 [ceil(V / 32)]: bit i % 32 of word i // 32 is 1 where id i is allowed; None allows all
    """

    seen: Tensor | None = None
    counts: Tensor | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: tuple[Tensor, Tensor] | None = None
    banned: tuple[int, ...] = ()
    mask: Tensor | None = None
    forced: int | None = None


def edited(logits: Tensor, edits: Sequence[Edit | None]) -> Tensor:
    """fp32 [N, V] as the rows' edits want them; `logits` itself where there are none."""
    if not any(edit is not None for edit in edits):
        return logits
    out = logits.clone()
    for row, edit in zip(out, edits, strict=True):
        if edit is not None:
            _apply(row, edit)
    return out


def mask_of(ids: Sequence[int], vocab_size: int) -> Tensor:
    """The mask that allows only `ids`: int32 [ceil(vocab_size / 32)]."""
    bits = torch.zeros(-(-vocab_size // MASK_BITS) * MASK_BITS, dtype=torch.int64)
    bits[list(ids)] = 1
    words = (bits.view(-1, MASK_BITS) << torch.arange(MASK_BITS)).sum(-1)
    return words.where(words < 2**31, words - 2**32).to(torch.int32)


def allowed_by(mask: Tensor, vocab_size: int) -> Tensor:
    """bool [vocab_size] of a mask."""
    bits = mask[:, None] >> torch.arange(MASK_BITS, dtype=torch.int32, device=mask.device)
    return (bits & 1).flatten()[:vocab_size].bool()


def _apply(row: Tensor, edit: Edit) -> None:
    if edit.seen is not None and edit.counts is not None:
        seen, counts = to_device(edit.seen, row.device), to_device(edit.counts, row.device)
        row[seen] = _penalised(row[seen], counts, edit)
    if edit.bias is not None:
        ids, bias = (to_device(column, row.device) for column in edit.bias)
        row[ids] += bias
    if edit.banned:
        row.index_fill_(0, to_device(torch.tensor(edit.banned), row.device), -torch.inf)
    if edit.mask is not None:
        row.masked_fill_(~allowed_by(to_device(edit.mask, row.device), len(row)), -torch.inf)
    if edit.forced is not None:
        kept = row[edit.forced].clone()
        row.fill_(-torch.inf)
        row[edit.forced] = torch.where(kept == -torch.inf, 0.0, kept)


def _penalised(logits: Tensor, counts: Tensor, edit: Edit) -> Tensor:
    """Factors are tensors of fp32: some devices would multiply by a scalar's reciprocal instead."""
    repetition = torch.full_like(logits, edit.repetition_penalty)
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    frequency = torch.full_like(logits, edit.frequency_penalty)
    presence = torch.full_like(logits, edit.presence_penalty)
    less = repeated - frequency * counts
    return torch.where(counts > 0, less - presence, repeated)
