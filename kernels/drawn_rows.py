"""Sampled rows that the device knows and the host does not yet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.sampling import RowLogprobs, SampledRows, SamplingRows


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows whose tokens are on the device, and not yet known to the host.

    token_ids  int64 [N]; where nothing was left to take, any id of the vocabulary
    packed     int64: token ids, values of the draws (-inf where nothing was left), and what `ranked_of` reads of the
               rows whose logprobs are wanted; fp64 numbers by their bits
    """

    token_ids: Tensor
    packed: Tensor
    rows: SamplingRows

    def read(self) -> SampledRows:
        """Wait for the device, once."""
        count, told = len(self.rows), self.packed.cpu()
        token_ids, values = told[:count], told[count : 2 * count].view(torch.float64).tolist()
        stuck = tuple(i for i, edit in enumerate(self.rows.edits) if edit is not None and values[i] == -math.inf)
        asked = [i for i, wanted in enumerate(self.rows.logprobs) if wanted is not None]
        logprobs: list[RowLogprobs | None] = [None] * count
        if asked:
            counts = [self.rows.logprobs[i] or 0 for i in asked]
            for i, found in zip(asked, ranked_of(told[2 * count :], counts), strict=True):
                logprobs[i] = found
        return SampledRows(token_ids, tuple(logprobs), stuck)


def ranked_of(told: Tensor, counts: Sequence[int]) -> list[RowLogprobs]:
    """Of each row one token's logprob and those of its `counts` best.

    told: ids, then fp64 logprobs by their bits, [M, 1 + most] each, the one token's in front.
    """
    ids, bits = told.view(2, len(counts), -1)
    return [
        RowLogprobs(row[0], tuple(zip(tokens[1 : 1 + count], row[1 : 1 + count], strict=True)))
        for tokens, row, count in zip(ids.tolist(), bits.view(torch.float64).tolist(), counts, strict=True)
    ]
