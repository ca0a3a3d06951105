"""Which tokens of a row may be sampled: top-n-sigma, exact top-k, top-p, min-p and typical-p, in this order.

Tokens are ordered by (logit descending, id ascending). The first four keep a prefix of that order, so together they
keep the shortest. As in `transformers`, top-p counts of what is left before it and min-p is relative to the most
probable token. Typical-p (Meister et al. 2022) keeps, of what is left then, the tokens nearest to the expected score:
|-log p - H| is |score - mean score|, for the logarithm of the sum stands on both sides. Top-n-sigma (Tang et al. 2024)
works on logits before temperature.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.candidates import scores
from rayline.kernels.weights import LOWEST, rough_scores, weights

_WIDTHS = (256, 4096)  # prefixes that are tried before a whole row is sorted
_LANES = 16


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of R rows, on the logits' device.

    temperature  fp64 [R]   above 0
    top_n_sigma  fp64 [R]   0: off
    top_k        int64 [R]  0: off
    top_p        fp64 [R]   1: off
    least_score  fp64 [R]   of min-p, as `least_score` gives it; -inf: off
    typical_p    fp64 [R]   1: off
    """

    temperature: Tensor
    top_n_sigma: Tensor
    top_k: Tensor
    top_p: Tensor
    least_score: Tensor
    typical_p: Tensor

    def take(self, index: Tensor) -> "Rules":
        return Rules(
            self.temperature[index],
            self.top_n_sigma[index],
            self.top_k[index],
            self.top_p[index],
            self.least_score[index],
            self.typical_p[index],
        )


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first tokens of R rows in order.

    token  int64 [R, W]
    logit  fp32 [R, W]
    sure   int64 [R]     how many are certain to stand in this order: behind them the last logit of
                         the prefix begins, of which equals may have been left out
    """

    token: Tensor
    logit: Tensor
    sure: Tensor


def least_score(min_p: float) -> float:
    """The lowest score that min-p keeps: a token with `min_p` times the best one's probability."""
    return math.log(min_p) if min_p > 0.0 else -math.inf


def kept(logits: Tensor, rules: Rules) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens that the rules keep of fp32 [R, V], as flat lists: row int64, id int64, score fp64.

    A row is decided by the narrowest prefix that settles it. The width does not change its result: sums of weights are
    exact.
    """
    vocab = logits.shape[-1]
    floor = floors(logits, rules.top_n_sigma)
    total = _totals(logits, floor, rules)
    open_rows = torch.arange(len(logits), device=logits.device)
    for width in (*(w for w in _WIDTHS if w < vocab), vocab):
        some, part = logits[open_rows], rules.take(open_rows)
        prefix = _prefix(some, width)
        length = _lengths(prefix, part, floor[open_rows], total[open_rows], vocab)
        settled = (length <= prefix.sure) & (part.top_k.clamp(max=vocab) <= width)
        is_kept = (torch.arange(width, device=logits.device) < length[:, None]) & settled[:, None]
        for row in (settled & (part.typical_p < 1.0)).nonzero()[:, 0].tolist():
            is_kept[row, : length[row]] = _typical(prefix.logit[row, : length[row]], part.take(torch.tensor(row)))
        row, rank = is_kept.nonzero(as_tuple=True)
        logit, best = prefix.logit[row, rank], prefix.logit[row, 0]
        yield open_rows[row], prefix.token[row, rank], scores(logit, best, part.temperature[row])
        open_rows = open_rows[~settled]
        if not len(open_rows):
            return


def in_order(logits: Tensor, width: int) -> Tensor:
    """Ids of the `width` largest logits of fp32 [R, V] by (logit desc, id asc): int64 [R, width].

    Equals of the last one may be missing in favour of higher ids, unless width is V.
    """
    if width == logits.shape[-1]:
        return logits.sort(dim=-1, descending=True, stable=True).indices
    ids = logits.topk(width, sorted=False).indices.sort(-1).values
    order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def floors(logits: Tensor, top_n_sigma: Tensor) -> Tensor:
    """The lowest logit of fp32 [R, V] that top-n-sigma keeps, best - n * sigma: fp32 [R]; -inf where n is 0.

    sigma is the standard deviation of all logits above -inf. Its sums go over every 16th logit, then over these 16 in
    halves.
    """
    floor = torch.full_like(logits[:, 0], -torch.inf)
    for row in (top_n_sigma > 0.0).nonzero()[:, 0].tolist():
        best = logits[row].max()
        floor[row] = best
        if best.isfinite():
            below = (best.double() - logits[row].double()).where(logits[row] > -torch.inf, 0.0)
            count = (logits[row] > -torch.inf).sum()
            mean = _lane_sum(below) / count
            variance = _lane_sum(below * below) / count - mean * mean
            floor[row] = (best.double() - top_n_sigma[row] * variance.clamp(min=0.0).sqrt()).float()
    return floor


def _lane_sum(values: Tensor) -> Tensor:
    """Of fp64 [V]."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % _LANES)).view(-1, _LANES)
    lanes = padded.cumsum(0)[-1]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def _prefix(logits: Tensor, width: int) -> Prefix:
    token = in_order(logits, width)
    logit = logits.gather(-1, token)
    if width == logits.shape[-1]:
        sure = torch.full((len(logits),), width, device=logits.device)
    else:
        sure = (logit > logit[:, -1:]).sum(-1)
    return Prefix(token, logit, sure)


def _lengths(prefix: Prefix, rules: Rules, floor: Tensor, total: Tensor, vocab: int) -> Tensor:
    """Tokens that the prefix rules keep of each row: int64 [R]; more than the prefix's width where a rule runs past its
    end.

    Not to be relied on where top_k is larger than the width.
    """
    width = prefix.logit.shape[-1]
    beyond = vocab if width < vocab else 0  # added to a count that ran to the prefix's end
    best, temperature = prefix.logit[:, :1], rules.temperature[:, None]
    weight = weights(rough_scores(prefix.logit, best, temperature)).double()
    running = weight.where(prefix.logit >= floor[:, None], 0.0).cumsum(-1)
    top_k = torch.where(rules.top_k > 0, rules.top_k.clamp(max=vocab), vocab)
    total = torch.where(rules.top_k > 0, running.gather(-1, top_k.clamp(max=width)[:, None] - 1)[:, 0], total)
    short = (running < (rules.top_p * total)[:, None]).sum(-1)
    top_p = torch.where(rules.top_p < 1.0, short + 1 + beyond * (short == width), vocab)
    near = (prefix.logit >= floor[:, None]).sum(-1)
    likely = (scores(prefix.logit, best, temperature) >= rules.least_score[:, None]).sum(-1)
    sigma, min_p = (count + beyond * (count == width) for count in (near, likely))
    return torch.minimum(torch.minimum(top_k, top_p), torch.minimum(sigma, min_p)).clamp(min=1)


def _totals(logits: Tensor, floor: Tensor, rules: Rules) -> Tensor:
    """Sum of the weights that top-n-sigma leaves of whole rows, for top-p without top-k, else 0: fp64 [R]."""
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for row in ((rules.top_p < 1.0) & (rules.top_k == 0)).nonzero()[:, 0].tolist():
        weight = weights(rough_scores(logits[row], logits[row].max(), rules.temperature[row]))
        total[row] = weight.where(logits[row] >= floor[row], 0.0).double().sum()
    return total


def _typical(logits: Tensor, rules: Rules) -> Tensor:
    """Which of one row's tokens in order, fp32 [W], typical-p keeps: bool [W]. All of equal distance go together."""
    score = rough_scores(logits, logits[0], rules.temperature)
    weight = weights(score)
    total = weight.double().sum()
    mean = ((weight * score.clamp(min=LOWEST)).round().double().sum() / total).float()
    distance = (score - mean).abs()
    order = distance.sort(stable=True).indices
    short = (weight[order].double().cumsum(0) < rules.typical_p * total).sum()
    return distance <= distance[order[short.clamp(max=len(order) - 1)]]
