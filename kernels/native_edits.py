"""Edits of logits in C++, in place: see native/edits.h. A rank may hold only a part of each row."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rayline.kernels.edits import Edit
from rayline.kernels.native_sampling import Part
from rayline.kernels.program import Operations


class NativeEdits:
    """Changes rows, and puts them back for those who read them again."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._saved = torch.empty(0)  # kept between steps, for fresh memory is slow

    def make(self, part: Part, edits: Sequence[Edit | None]) -> Callable[[], None]:
        """Edit the rows 0, 1, .. of `part`. What is returned takes that back; it is good until the next edits."""
        rows = [row for row, edit in enumerate(edits) if edit is not None]
        some = [edit for edit in edits if edit is not None]
        masked = [row for row in rows if is_masked(edits[row])]
        undo = []
        if any(has_single_logits(edit) for edit in some):  # a grammar alone changes none, and is spared the call
            undo.append(self._change(part, rows, some))
        if masked:
            undo.append(self._mask(part, masked, [edit for edit in some if is_masked(edit)]))

        def take_back() -> None:
            for each in reversed(undo):
                each()

        return take_back

    def _change(self, part: Part, rows: Sequence[int], edits: Sequence[Edit]) -> Callable[[], None]:
        """What changes single logits."""
        sparse = _sparse(rows, edits)
        saved = {"seen_saved": torch.empty(len(sparse["seen"])), "added_saved": torch.empty(len(sparse["added"]))}
        self._call("EditLogits", part, len(rows), **sparse, **_penalties(edits), **saved, first=part.first)
        kept = {name: value for name, value in sparse.items() if name not in ("counts", "bias")}
        return lambda: self._call("RestoreLogits", part, len(rows), **kept, **saved, first=part.first)

    def _mask(self, part: Part, rows: list[int], edits: Sequence[Edit]) -> Callable[[], None]:
        """What changes whole rows."""
        if self._saved.numel() < len(rows) * part.size:
            self._saved = torch.empty(len(rows) * part.size)
        masks = _masks(edits)
        forced = torch.tensor([-1 if edit.forced is None else edit.forced for edit in edits])
        saved, words = self._saved, masks.shape[1]
        index = torch.tensor(rows)
        self._call(
            "MaskLogits", part, len(rows), index=index, masks=masks, forced=forced, saved=saved, words=words,
            first=part.first,
        )  # fmt: skip
        return lambda: self._call("RestoreRows", part, len(rows), index=index, saved=saved)

    def _call(self, name: str, part: Part, rows: int, **values: Tensor | int) -> None:
        width = part.logits.shape[-1]
        self._operations.call(name, rows, logits=part.logits, width=width, size=part.size, **values)


def has_single_logits(edit: Edit) -> bool:
    """Whether an edit changes anything beside what its mask and its forced token do."""
    return edit.seen is not None or edit.bias is not None or bool(edit.banned)


def is_masked(edit: Edit | None) -> bool:
    return edit is not None and (edit.mask is not None or edit.forced is not None)


def _sparse(rows: Sequence[int], edits: Sequence[Edit]) -> dict[str, Tensor]:
    """What changes single logits, row by row, as EditLogits takes it."""
    nothing = torch.empty(0, dtype=torch.int64), torch.empty(0)
    seen = [nothing if e.seen is None or e.counts is None else (e.seen, e.counts) for e in edits]
    added = [pair for e in edits for pair in ((nothing if e.bias is None else e.bias), _bans(e.banned))]
    return {
        "index": torch.tensor(rows),
        "seen_starts": _starts([len(ids) for ids, _ in seen]),
        "seen": torch.cat([ids for ids, _ in seen]),
        "counts": torch.cat([counts for _, counts in seen]),
        "added_starts": _starts([len(ids) for ids, _ in added])[::2].contiguous(),
        "added": torch.cat([ids for ids, _ in added]),
        "bias": torch.cat([values for _, values in added]),
    }


def _bans(ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(ids, dtype=torch.int64), torch.full((len(ids),), -torch.inf)


def _penalties(edits: Sequence[Edit]) -> dict[str, Tensor]:
    return {
        "repetition": _fp32([edit.repetition_penalty for edit in edits]),
        "frequency": _fp32([edit.frequency_penalty for edit in edits]),
        "presence": _fp32([edit.presence_penalty for edit in edits]),
    }


def _fp32(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _masks(edits: Sequence[Edit]) -> Tensor:
    """int32 [M, words]; all ones where an edit has no mask."""
    given = [edit.mask for edit in edits if edit.mask is not None]
    if len(given) == len(edits):
        return torch.stack(given)
    everything = torch.full((len(given[0]) if given else 1,), -1, dtype=torch.int32)
    return torch.stack([everything if edit.mask is None else edit.mask for edit in edits])


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(counts)])
