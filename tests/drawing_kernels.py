"""torch's operations for steps on a device that computes late."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rayline.kernels import edits
from rayline.kernels.coming_rows import ComingRows, candidates_of, ranked_of, some_ranked_of
from rayline.kernels.sampling import Candidate, RowLogprobs, SampledRows, SamplingRows, named
from rayline.kernels.torch_kernels import TorchKernels


class DrawingKernels(TorchKernels):
    """torch's operations, and rows sampled on the device without waiting for it, as Triton's kernels do."""

    def draw(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        heat = torch.tensor(rows.temperature)[:, None]
        source = torch.tensor([[seed * 31 + at * 17] for seed, at in zip(rows.seed, rows.position, strict=True)])
        noise = torch.sin((torch.arange(logits.shape[-1]) + 1) * source)
        allowed = edits.edited(logits, rows.edits)
        rank = allowed.argsort(-1, descending=True).argsort(-1)
        values = (allowed + heat * noise).where(rank < torch.tensor([[k or 10**6] for k in rows.top_k]), -torch.inf)
        token_ids = values.argmax(-1)
        asked = [at for at, count in enumerate(rows.logprobs) if count is not None]
        told = _with_best(logits.log_softmax(-1)[asked], token_ids[asked], 2)
        coming = ComingRows(told, len(rows), partial(some_ranked_of, wanted=rows.logprobs))
        return SampledRows(named(token_ids, values.amax(-1)), coming if asked else (None,) * len(rows))

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        told = _with_best(logits.log_softmax(-1), torch.tensor(token_ids), max(tops))
        return ComingRows(told, len(token_ids), partial(ranked_of, counts=tops))

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        best = edits.edited(logits.log_softmax(-1), rows.edits).topk(max(most))
        return ComingRows(_told(best.indices, best.values), len(rows), partial(candidates_of, most=most))


def _with_best(logprobs: Tensor, token_ids: Tensor, most: int) -> Tensor:
    best = logprobs.topk(most)
    values = torch.cat((logprobs.gather(1, token_ids[:, None]), best.values), dim=1)
    return _told(torch.cat((token_ids[:, None], best.indices), dim=1), values)


def _told(ids: Tensor, values: Tensor) -> Tensor:
    return torch.cat((ids.flatten(), values.double().flatten().view(torch.int64)))
