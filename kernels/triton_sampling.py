"""Sampling on GPUs in one launch for all rows that nothing truncates: no number goes to the host before the tokens."""

import torch
from torch import Tensor

from rayline.kernels.sampling import SamplingRows
from rayline.kernels.transfer import to_device
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_sampling_code import draw_rows

BLOCK = 256  # of Philox blocks, which are four ids each
LEAST_SEGMENT = 4 * BLOCK * 4  # ids that are worth a program of their own
_DRAW = Variant((("BLOCK", BLOCK),))

DRAW_ROWS = Kernel(
    draw_rows,
    {"logits": "*fp32", "best": "*fp32", "temperature": "*fp64", "seeds": "*i64", "positions": "*i64"}
    | {"values": "*fp64", "tokens": "*i64", "vocab": "i32:16", "segment": "i32"},
    [_DRAW],
)
KERNELS = (DRAW_ROWS,)


def draw(logits: Tensor, rows: SamplingRows, units: int) -> tuple[Tensor, Tensor]:
    """One token for each row of fp32 [N, V], as `kernels.sampling` draws it but for the truncation.

    units: processors to fill with programs; the tokens do not depend on it. Returns ids int64 [N] and their values fp64
    [N]: -inf where nothing was left to take, and the id means nothing.
    """
    count, vocab = logits.shape
    segments = max(1, min(-(-2 * units // max(1, count)), vocab // LEAST_SEGMENT))
    segment = -(-vocab // segments // (4 * BLOCK)) * 4 * BLOCK
    segments = -(-vocab // segment)
    heat = torch.tensor(rows.temperature, dtype=torch.float64).view(torch.int64).tolist()
    packed = torch.tensor([*rows.seed, *rows.position, *heat], dtype=torch.int64)
    seeds, positions, temperature = to_device(packed, logits.device).view(3, count)
    values = torch.empty((count, segments), dtype=torch.float64, device=logits.device)
    tokens = torch.empty((count, segments), dtype=torch.int64, device=logits.device)
    DRAW_ROWS.launch(
        (count, segments), _DRAW,
        logits=logits.contiguous(), best=logits.amax(-1), temperature=temperature.view(torch.float64), seeds=seeds,
        positions=positions, values=values, tokens=tokens, vocab=vocab, segment=segment,
    )  # fmt: skip
    top = values.amax(-1)
    return tokens.where(values == top[:, None], torch.iinfo(torch.int64).max).amin(-1), top
