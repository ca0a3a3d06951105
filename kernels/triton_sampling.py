"""Draws over whole rows on GPUs, in one launch for all rows that nothing truncates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayline.kernels.sampling import SamplingRows
from rayline.kernels.transfer import to_device, whole_numbers
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_sampling_code import draw_rows
from rayline.kernels.triton_truncation import Logits, bits_of

BLOCK = 256  # of Philox blocks, which are four ids each
LEAST_SEGMENT = 4 * BLOCK * 4  # ids that are worth a program of their own
_DRAW = Variant((("BLOCK", BLOCK),))

DRAW_ROWS = Kernel(
    draw_rows,
    {"logits": "*fp32", "best": "*fp32", "numbers": "*i64", "heats": "*fp64", "values": "*fp64", "tokens": "*i64"}
    | {"rows": "i32", "segment": "i32", "vocab": "i32:16"},
    [_DRAW],
)
KERNELS = (DRAW_ROWS,)


def draw(logits: Logits, rows: SamplingRows, at: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A token of each of the rows `at`, as `kernels.sampling` draws it but for the truncation.

    Returns ids int64 [M] and their values fp64 [M]: -inf where nothing was left to take, and the id means nothing.
    """
    vocab, device = logits.values.shape[1], logits.values.device
    segments = max(1, min(-(-2 * logits.units // max(1, len(at))), vocab // LEAST_SEGMENT))
    segment = -(-vocab // segments // (4 * BLOCK)) * 4 * BLOCK
    segments = -(-vocab // segment)
    heats = bits_of([rows.temperature[i] for i in at])
    whole = [*heats, *at, *(rows.seed[i] for i in at), *(rows.position[i] for i in at)]
    packed = to_device(whole_numbers(whole), device)
    values = torch.empty((len(at), segments), dtype=torch.float64, device=device)
    tokens = torch.empty((len(at), segments), dtype=torch.int64, device=device)
    DRAW_ROWS.launch(
        (len(at), segments), _DRAW, logits=logits.values, best=logits.best, numbers=packed[len(at) :],
        heats=packed[: len(at)].view(torch.float64), values=values, tokens=tokens, rows=len(at), segment=segment,
        vocab=vocab,
    )  # fmt: skip
    top = values.amax(-1)
    return tokens.where(values == top[:, None], torch.iinfo(torch.int64).max).amin(-1), top
