"""Which tokens of a row may be sampled: exact top-k, top-p and min-p.

Tokens are ordered by (logit descending, id ascending) and each rule keeps a prefix of that order, so
together they keep the shortest. The rules apply as in `transformers`: temperature, top-k, top-p (of what
top-k kept), min-p (relative to the most probable token).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.candidates import scores

_WIDTHS = (256, 4096)  # prefixes that are tried before a whole row is sorted


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of R rows, on the logits' device.

    temperature  fp64 [R]   above 0
    top_k        int64 [R]  0: off
    top_p        fp64 [R]   1: off
    min_p        fp64 [R]   0: off
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def take(self, index: Tensor) -> "Rules":
        return Rules(self.temperature[index], self.top_k[index], self.top_p[index], self.min_p[index])


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first tokens of R rows in order.

    token  int64 [R, W]
    score  fp64 [R, W]
    sure   int64 [R]     how many are certain to stand in this order: behind them the last logit of
                         the prefix begins, of which equals may have been left out
    """

    token: Tensor
    score: Tensor
    sure: Tensor


def kept(logits: Tensor, rules: Rules) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens that the rules keep of fp32 [R, V], as flat lists: row int64, id int64, score fp64.

    A row is decided by the narrowest prefix that settles it. The width does not change its result: the
    running sum behind top-p is taken in order, so a longer prefix only goes on where a shorter one ends.
    """
    vocab = logits.shape[-1]
    total = _totals(logits, rules)
    open_rows = torch.arange(len(logits), device=logits.device)
    for width in (*(w for w in _WIDTHS if w < vocab), vocab):
        some, part = logits[open_rows], rules.take(open_rows)
        prefix = _prefix(some, width, part.temperature)
        length = _lengths(prefix, part, total[open_rows], vocab)
        settled = (length <= prefix.sure) & (part.top_k.clamp(max=vocab) <= width)
        ranks = torch.arange(width, device=logits.device)
        row, rank = ((ranks < length[:, None]) & settled[:, None]).nonzero(as_tuple=True)
        yield open_rows[row], prefix.token[row, rank], prefix.score[row, rank]
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


def _prefix(logits: Tensor, width: int, temperature: Tensor) -> Prefix:
    token = in_order(logits, width)
    logit = logits.gather(-1, token)
    if width == logits.shape[-1]:
        sure = torch.full((len(logits),), width, device=logits.device)
    else:
        sure = (logit > logit[:, -1:]).sum(-1)
    return Prefix(token, scores(logit, logit[:, :1], temperature[:, None]), sure)


def _lengths(prefix: Prefix, rules: Rules, total: Tensor, vocab: int) -> Tensor:
    """Tokens kept of each row: int64 [R]; more than the prefix's width where a rule runs past its end.

    Not to be relied on where top_k is larger than the width.
    """
    width = prefix.score.shape[-1]
    beyond = vocab if width < vocab else 0  # added to a count that ran to the prefix's end
    weight = prefix.score.exp()
    running = weight.cumsum(-1)
    top_k = torch.where(rules.top_k > 0, rules.top_k.clamp(max=vocab), vocab)
    total = torch.where(rules.top_k > 0, running.gather(-1, top_k.clamp(max=width)[:, None] - 1)[:, 0], total)
    short = (running < (rules.top_p * total)[:, None]).sum(-1)
    top_p = torch.where(rules.top_p < 1.0, short + 1 + beyond * (short == width), vocab)
    likely = (weight >= rules.min_p[:, None]).sum(-1)
    min_p = torch.where(rules.min_p > 0.0, likely + beyond * (likely == width), vocab)
    return torch.minimum(torch.minimum(top_k, top_p), min_p).clamp(min=1)


def _totals(logits: Tensor, rules: Rules) -> Tensor:
    """Sum of exp(score) of whole rows, for top-p without top-k, else 0: fp64 [R].

    Summed in id order by a running sum, for `sum` splits a row by threads.
    """
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for row in ((rules.top_p < 1.0) & (rules.top_k == 0)).nonzero()[:, 0].tolist():
        score = scores(logits[row], logits[row].max(), rules.temperature[row])
        total[row] = score.exp().cumsum(-1)[-1]
    return total
