"""The links of one rank to its pipeline neighbours: hidden states forward, sampled tokens back.

    stage 0 --hidden--> stage 1 --hidden--> ... --hidden--> last
       ^---------------------- token ids ----------------------|

Each tensor-parallel rank talks to the same rank of the other stage; all of a stage hold the same hidden
states, so nothing is scattered. Every arrow is a line of its own, and every rank posts its sends and receives plan by
plan, inside a plan from left to right:

    plan                  1                      2                      3
    stage 0     .. send h1  recv t1  |  send h2  recv t2  |  send h3  recv t3 ..
    stage 1     .. recv h1  send h1' |  recv h2  send h2' |  recv h3  send h3' ..
    stage 2     .. recv h1' send t1  |  recv h2' send t2  |  recv h3' send t3 ..

So both ends of a line post in one order, whatever plans hold and whenever they come. And as all calls of all ranks
follow one order, none could wait for itself even if each waited for its other end: a device or NCCL may hold up the
host wherever they like. Plans without samples have no t; stage 0 takes a t only where its device needs it.

gloo keeps to it but for hidden states, which are asked for as soon as a plan is known: that waits for nothing, and the
stage before need not wait to be asked.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.workers.lines import Line
from rayline.workers.token_feed import FreshTokens


@dataclass(frozen=True, slots=True)
class Lines:
    """The ends that a rank holds. hidden_in: None on the first stage; hidden_out: None on the last; tokens: None on
    those between."""

    hidden_in: Line | None
    hidden_out: Line | None
    tokens: Line | None


class StageLinks:
    """What a rank says to the same rank of other stages, and hears from them."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._sampling: deque[tuple[int, ...]] = deque()  # whose tokens are on their way

    @property
    def are_of_device(self) -> bool:
        """Whether no message makes the host wait."""
        lines = self._lines
        return all(line is None or line.is_of_device for line in (lines.hidden_in, lines.hidden_out, lines.tokens))

    def foresee(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """A plan with hidden states [tokens, width] has come, and its turn will."""
        line = self._lines.hidden_in
        if line is not None and not line.is_of_device:
            line.expect(shape, dtype)

    def next_hidden(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The previous stage's hidden states [tokens, width] of the next plan."""
        line = self._lines.hidden_in
        assert line is not None
        if not line.expects:
            line.expect(shape, dtype)
        return line.take()

    def send_hidden(self, hidden: Tensor) -> None:
        assert self._lines.hidden_out is not None
        self._lines.hidden_out.send(hidden)

    def send_tokens(self, token_ids: Tensor) -> None:
        """Tell the first stage what was sampled, int64 [N] in plan order."""
        assert self._lines.tokens is not None
        self._lines.tokens.send(token_ids)

    def expect_tokens(self, sequences: tuple[int, ...]) -> None:
        """Ask for the tokens that the last stage will sample for `sequences`."""
        assert self._lines.tokens is not None
        self._lines.tokens.expect((len(sequences),), torch.int64)
        self._sampling.append(sequences)

    def next_tokens(self) -> FreshTokens:
        """The oldest tokens that were asked for."""
        assert self._lines.tokens is not None
        return FreshTokens(self._sampling.popleft(), self._lines.tokens.take())
