"""Edits of logits on GPUs, in a few launches for all rows: the bits of kernels/edits.py."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rayline.kernels.edits import MASK_BITS, Edit
from rayline.kernels.transfer import to_device, whole_numbers
from rayline.kernels.triton_edits_code import edit_tokens, mask_logits
from rayline.kernels.triton_launch import Kernel, Variant

BLOCK = 1024
_BLOCK = Variant((("BLOCK", BLOCK),))
PENALTY, BIAS, BAN = 0, 1, 2

EDIT_TOKENS = Kernel(
    edit_tokens,
    {"logits": "*fp32", "rows": "*i64", "starts": "*i64", "pairs": "*i64", "penalties": "*fp32", "kind": "i32"}
    | {"vocab": "i32:16"},
    [_BLOCK],
)
MASK_LOGITS = Kernel(
    mask_logits,
    {"logits": "*fp32", "rows": "*i64", "forced": "*i64", "masks": "*i32", "words": "i32", "vocab": "i32:16"},
    [_BLOCK],
)
KERNELS = (EDIT_TOKENS, MASK_LOGITS)


def edited(logits: Tensor, edits: Sequence[Edit | None]) -> Tensor:
    """`kernels.edits.edited` of fp32 [N, V] in one piece, without waiting for the device."""
    rows = [at for at, edit in enumerate(edits) if edit is not None]
    if not rows:
        return logits
    out, some = logits.clone(), [edit for edit in edits if edit is not None]
    for kind in (PENALTY, BIAS, BAN):
        pairs = [_pairs(edit, kind) for edit in some]
        if any(len(each) for each in pairs):
            _edit_tokens(out, rows, some, pairs, kind)
    masked = [
        (at, edit) for at, edit in zip(rows, some, strict=True) if edit.mask is not None or edit.forced is not None
    ]
    if masked:
        _mask(out, [at for at, _ in masked], [edit for _, edit in masked])
    return out


def _pairs(edit: Edit, kind: int) -> Tensor:
    """(id, number) as int64 on the host."""
    if kind == BAN:
        return whole_numbers(edit.banned) << 32
    ids, numbers = (edit.seen, edit.counts) if kind == PENALTY else edit.bias or (None, None)
    if ids is None or numbers is None:
        return torch.empty(0, dtype=torch.int64)
    return (ids << 32) | (numbers.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF)


def _edit_tokens(out: Tensor, rows: list[int], edits: list[Edit], pairs: list[Tensor], kind: int) -> None:
    """One transfer and one launch."""
    count, sizes = len(rows), [len(each) for each in pairs]
    penalties = [(e.repetition_penalty, e.frequency_penalty, e.presence_penalty) for e in edits]
    words = torch.tensor(penalties, dtype=torch.float32).flatten().view(torch.int32)
    # The fp32 numbers come first, so that they begin where Triton expects them to, padded to pairs of words.
    head = torch.nn.functional.pad(words, (0, len(words) % 2)).view(torch.int64)
    indices = whole_numbers([*rows, *accumulate(sizes, initial=0)])
    packed = to_device(torch.cat((head, indices, *pairs)), out.device)
    rest = packed[len(head) :]
    EDIT_TOKENS.launch(
        (count, -(-max(sizes) // BLOCK)), _BLOCK, logits=out, rows=rest, starts=rest[count:],
        pairs=rest[2 * count + 1 :], penalties=packed[: len(head)].view(torch.float32), kind=kind, vocab=out.shape[1],
    )  # fmt: skip


def _mask(out: Tensor, rows: list[int], edits: list[Edit]) -> None:
    """One transfer and one launch."""
    vocab = out.shape[1]
    words = -(-vocab // MASK_BITS)
    everything = torch.full((words,), -1, dtype=torch.int32)
    masks = torch.cat([everything if edit.mask is None else edit.mask[:words] for edit in edits])
    forced = [-1 if edit.forced is None else edit.forced for edit in edits]
    indices = whole_numbers([*rows, *forced]).view(torch.int32)
    packed = to_device(torch.cat((indices, masks)), out.device)
    index = packed[: len(indices)].view(torch.int64)
    MASK_LOGITS.launch(
        (len(rows), -(-vocab // BLOCK)), _BLOCK, logits=out, rows=index, forced=index[len(rows) :],
        masks=packed[len(indices) :], words=words, vocab=vocab,
    )  # fmt: skip
