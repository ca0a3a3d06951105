"""Truncated draws and best tokens on GPUs; kernels/triton_truncation_code.py says how. No number goes to the host."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from rayline.kernels.sampling import SamplingRows
from rayline.kernels.transfer import to_device, whole_numbers
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_truncation_code import draw_kept, gather_rows, rank_rows, sigma_floors, tally_rows
from rayline.kernels.truncation import least_score

BLOCK = 1024
PEAKS = 4096  # groups of a row, whose largest logits bound the top-k-th: a larger k reads the whole row
CAPACITY = 16384  # tokens of a list: nearly all truncations need fewer; others read the whole row
FEW, MANY = 4, 16  # segments of a row
_TALLIES = {parts: Variant((("BLOCK", PEAKS), ("PEAKS", PEAKS // parts)), warps=8) for parts in (FEW, MANY)}
_GATHER = Variant((("BLOCK", BLOCK), ("PEAKS", PEAKS)))
_ROW = Variant((("BLOCK", BLOCK),), warps=8)
_SIGMA = Variant((), warps=1)

SIGMA_FLOORS = Kernel(
    sigma_floors,
    {"logits": "*fp32", "best": "*fp32", "numbers": "*i64", "sigmas": "*fp64", "floors": "*fp32", "vocab": "i32:16"},
    [_SIGMA],
)
TALLY_ROWS = Kernel(
    tally_rows,
    {"logits": "*fp32", "best": "*fp32", "numbers": "*i64", "heats": "*fp64", "floors": "*fp32", "peaks": "*fp32"}
    | {"totals": "*i64", "held": "*i32", "segment": "i32", "vocab": "i32:16"},
    list(_TALLIES.values()),
)
_LIST = {"totals": "*i64", "held": "*i32"}
GATHER_ROWS = Kernel(
    gather_rows,
    {"logits": "*fp32", "best": "*fp32", "numbers": "*i64", "rules": "*fp64", "floors": "*fp32", "peaks": "*fp32"}
    | _LIST
    | {"bounds": "*fp32", "listed": "*fp32", "ids": "*i32"}
    | dict.fromkeys(("rows", "segment", "capacity", "parts"), "i32")
    | {"vocab": "i32:16"},
    [_GATHER],
)
DRAW_KEPT = Kernel(
    draw_kept,
    {"logits": "*fp32", "best": "*fp32", "numbers": "*i64", "rules": "*fp64"}
    | _LIST
    | {"bounds": "*fp32", "listed": "*fp32", "ids": "*i32", "values": "*fp64", "tokens": "*i64"}
    | dict.fromkeys(("rows", "capacity", "parts"), "i32")
    | {"vocab": "i32:16"},
    [_ROW],
)
RANK_ROWS = Kernel(
    rank_rows,
    {"logits": "*fp32", "best": "*fp32", "numbers": "*i64"}
    | _LIST
    | {"listed": "*fp32", "ids": "*i32", "found": "*i64", "values": "*fp64"}
    | dict.fromkeys(("rows", "capacity", "parts", "count", "is_logprob"), "i32")
    | {"vocab": "i32:16"},
    [_ROW],
)
KERNELS = (SIGMA_FLOORS, TALLY_ROWS, GATHER_ROWS, DRAW_KEPT, RANK_ROWS)


def bits_of(values: Iterable[float]) -> list[int]:
    """fp64 numbers by their bits, to travel among int64 ones."""
    return array("q", array("d", values).tobytes()).tolist()


@dataclass(frozen=True, slots=True)
class Logits:
    """values fp32 [N, V] in one piece, best fp32 [N]: the largest of each row. units: processors to fill with programs;
    no result depends on it."""

    values: Tensor
    best: Tensor
    units: int

    @staticmethod
    def of(values: Tensor, units: int) -> "Logits":
        values = values.contiguous()
        return Logits(values, values.amax(-1), units)


@dataclass(frozen=True, slots=True)
class Rules:
    """What cuts M rows, on the device.

    numbers int64 [4, M]: row of the logits, top_k, seed, position. reals fp64 [5, M]: temperature, top_p, least score,
    typical_p, top_n_sigma. Without a draw the last two of each may be missing.
    """

    numbers: Tensor
    reals: Tensor
    has_sigma: bool

    def __len__(self) -> int:
        return self.numbers.shape[1]


def rules_of(rows: SamplingRows, at: Sequence[int], device: torch.device) -> Rules:
    """Those of the rows `at`."""
    reals = [
        (rows.temperature[i], rows.top_p[i], least_score(rows.min_p[i]), rows.typical_p[i], rows.top_n_sigma[i])
        for i in at
    ]
    numbers = [(i, rows.top_k[i], rows.seed[i], rows.position[i]) for i in at]
    bits = bits_of(chain.from_iterable(zip(*reals, strict=True)))
    packed = to_device(whole_numbers([*bits, *chain.from_iterable(zip(*numbers, strict=True))]), device)
    fields = packed.view(9, len(at))
    has_sigma = any(rows.top_n_sigma[i] > 0.0 for i in at)
    return Rules(fields[5:], fields[:5].view(torch.float64), has_sigma)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Of each of M rows the tokens that matter, in no order; not all where there are more than CAPACITY.

    totals int64 [M, parts]: what each segment weighs. held int32 [M]: tokens of the list. bounds fp32 [M]: the lowest
    logit in it. listed fp32, ids int32 [M, CAPACITY].
    """

    totals: Tensor
    held: Tensor
    bounds: Tensor
    listed: Tensor
    ids: Tensor

    @property
    def parts(self) -> int:
        return self.totals.shape[1]


def shortlist(logits: Logits, rules: Rules, is_listed: bool = True) -> Shortlist:
    """is_listed: False for the totals alone."""
    count, vocab = len(rules), logits.values.shape[1]
    device = logits.values.device
    parts = FEW if FEW * count >= logits.units else MANY
    segment = -(-vocab // (parts * PEAKS)) * PEAKS
    floors = torch.full((count,), -torch.inf, device=device)
    if rules.has_sigma:
        SIGMA_FLOORS.launch(
            (count,), _SIGMA, logits=logits.values, best=logits.best, numbers=rules.numbers,
            sigmas=rules.reals[4], floors=floors, vocab=vocab,
        )  # fmt: skip
    peaks = torch.empty((count, PEAKS), device=device)
    capacity = min(CAPACITY, vocab) if is_listed else 0
    found = Shortlist(
        torch.empty((count, parts), dtype=torch.int64, device=device),
        torch.empty(count, dtype=torch.int32, device=device),
        torch.empty(count, device=device),
        torch.empty((count, capacity), device=device),
        torch.empty((count, capacity), dtype=torch.int32, device=device),
    )
    shared = {"logits": logits.values, "best": logits.best, "numbers": rules.numbers, "floors": floors, "peaks": peaks}
    shared |= {"totals": found.totals, "held": found.held}
    TALLY_ROWS.launch((count, parts), _TALLIES[parts], **shared, heats=rules.reals, segment=segment, vocab=vocab)
    if is_listed:
        GATHER_ROWS.launch(
            (count, parts), _GATHER, **shared, rules=rules.reals, bounds=found.bounds, listed=found.listed,
            ids=found.ids, rows=count, segment=segment, capacity=capacity, parts=parts, vocab=vocab,
        )  # fmt: skip
    return found


def draw_truncated(logits: Logits, rules: Rules) -> tuple[Tensor, Tensor]:
    """A token of each of M rows, as `kernels.sampling` draws it: ids int64 [M] and their values fp64 [M], -inf where
    nothing is left to take, and the id means nothing."""
    some, device = shortlist(logits, rules), logits.values.device
    values = torch.empty(len(rules), dtype=torch.float64, device=device)
    tokens = torch.empty(len(rules), dtype=torch.int64, device=device)
    DRAW_KEPT.launch(
        (len(rules),), _ROW, logits=logits.values, best=logits.best, numbers=rules.numbers, rules=rules.reals,
        totals=some.totals, held=some.held, bounds=some.bounds, listed=some.listed, ids=some.ids, values=values,
        tokens=tokens, rows=len(rules), capacity=some.listed.shape[1], parts=some.parts, vocab=logits.values.shape[1],
    )  # fmt: skip
    return tokens, values


def best_tokens(
    logits: Logits, at: Sequence[int], token_ids: Tensor, count: int, is_logprob: bool = True
) -> tuple[Tensor, Tensor]:
    """One token of each row `at`, then its `count` best by (logit descending, id ascending).

    token_ids int64 [M]. Returns ids int64 and logprobs fp64, of fp32's precision, [M, 1 + count]; id 0 at -inf behind
    the last. A sum of whole numbers stands below the logprobs, so their bits depend on the row alone. is_logprob False:
    the logits themselves.
    """
    device, vocab = logits.values.device, logits.values.shape[1]
    ones = bits_of([1.0] * len(at))
    low = bits_of([-torch.inf] * len(at))
    packed = to_device(whole_numbers([*ones, *ones, *low, *at, *([count] * len(at))]), device)
    fields = packed.view(5, len(at))
    some = shortlist(logits, Rules(fields[3:], fields[:3].view(torch.float64), False), count > 0)
    found = torch.empty((len(at), 1 + count), dtype=torch.int64, device=device)
    values = torch.empty((len(at), 1 + count), dtype=torch.float64, device=device)
    RANK_ROWS.launch(
        (len(at),), _ROW, logits=logits.values, best=logits.best, numbers=torch.stack((fields[3], token_ids)),
        totals=some.totals, held=some.held, listed=some.listed, ids=some.ids, found=found, values=values,
        rows=len(at), capacity=some.listed.shape[1], parts=some.parts, count=count, is_logprob=int(is_logprob),
        vocab=vocab,
    )  # fmt: skip
    return found, values
