"""Reductions over logits in C++: see native/vocabulary.h. A rank may hold only a part of each row."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rayline.kernels.program import Operations


@dataclass(frozen=True, slots=True)
class Part:
    """logits fp32 [N, width], of which the first `size` columns are the ids from `first` on."""

    logits: Tensor
    size: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Draws:
    """The noise and temperature of M rows: int64 [M], int64 [M], fp64 [M] > 0."""

    seeds: Tensor
    positions: Tensor
    temperature: Tensor


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules of M rows, as truncation.Rules has them: int64 [M], the others fp64 [M]."""

    top_n_sigma: Tensor
    top_k: Tensor
    top_p: Tensor
    least_score: Tensor
    typical_p: Tensor


class NativeReductions:
    """Each takes rows as int64 [M] indices into a part, and gives fp64; pairs are (value, id)."""

    def __init__(self, operations: Operations, segment: int) -> None:
        """`segment`: of the vocabulary, as kernels/vocabulary.py cuts it."""
        self._operations = operations
        self._segment = segment

    def best(self, part: Part, rows: Tensor) -> Tensor:
        """The largest logit of each row, at its lowest id: [M, 2]."""
        found = _pairs(len(rows))
        self._call("BestToken", part, rows, found=found, first=part.first)
        return found

    def top(self, part: Part, rows: Tensor, most: int) -> Tensor:
        """The `most` best of each row by (logit descending, id ascending), (-inf, 0) behind the last: [M, most, 2]."""
        found = _pairs(len(rows), most)
        self._call("TopTokens", part, rows, found=found, most=most, first=part.first)
        return found

    def exp_sum(self, part: Part, rows: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
        """Sum of exp((logit - best) / temperature): fp64 [M], fp64 [M] -> [M]."""
        out = torch.empty_like(best)
        self._call("ExpSum", part, rows, best=best, temperature=temperature, sum=out, segment=self._segment)
        return out

    def draw(self, part: Part, rows: Tensor, best: Tensor, draws: Draws) -> Tensor:
        """The largest (logit - best) / temperature + noise, (-inf, _) where this part cannot hold it: [M, 2]."""
        found = _pairs(len(rows))
        self._call("DrawToken", part, rows, best=best, found=found, first=part.first, **_draw_fields(draws))
        return found

    def draw_kept(self, part: Part, rows: Tensor, best: Tensor, draws: Draws, limits: Limits) -> Tensor:
        """The same over what the limits keep of whole rows: [M, 2]."""
        found = _pairs(len(rows))
        rules = {field.name: getattr(limits, field.name) for field in fields(limits)}
        self._call("DrawKept", part, rows, best=best, found=found, **_draw_fields(draws), **rules)
        return found

    def logprobs(self, logits: Tensor, best: Tensor, total: Tensor) -> Tensor:
        """logit - best - log(total) in fp32's precision: fp64 [M, C], [M], [M] -> [M, C]."""
        out = torch.empty_like(logits)
        self._operations.call(
            "Logprobs", len(logits), logits=logits, best=best, total=total, out=out, columns=logits.shape[-1]
        )
        return out

    def log_softmax(self, part: Part, rows: Tensor, best: Tensor, total: Tensor) -> Tensor:
        """logit - best - log(total) of all logits of this part: fp32 [M, size]."""
        out = torch.empty((len(rows), part.size), dtype=torch.float32)
        self._call("LogSoftmax", part, rows, best=best, total=total, out=out)
        return out

    def _call(self, name: str, part: Part, rows: Tensor, **values: Tensor | int) -> None:
        width = part.logits.shape[-1]
        self._operations.call(name, len(rows), logits=part.logits, index=rows, width=width, size=part.size, **values)


def _pairs(*shape: int) -> Tensor:
    return torch.empty((*shape, 2), dtype=torch.float64)


def _draw_fields(draws: Draws) -> dict[str, Tensor]:
    return {"seeds": draws.seeds, "positions": draws.positions, "temperature": draws.temperature}


def column(values: Sequence[float] | Sequence[int], rows: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The entries of `rows`."""
    return torch.tensor([values[row] for row in rows], dtype=dtype)
