"""What one forward pass knows about its packed tokens: the one argument every layer gets."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """The slices of a plan, packed along one token axis.

        sequence        0           1         2
        tokens    |  a  b  c  |     d     |  e  f  |        T = 6, S = 3
        starts    0           3           4        6        the first packed token of each, then T
        lens            9           17        2             tokens of each in the cache after this step

    positions  int64 [T]      absolute position of each token in its sequence
    slots      int64 [T]      cache slot each token's key and value are written to
    starts     int [S + 1]
    lens       int [S]
    tables     int32 [S, W]   block ids of each sequence in position order, 0 behind its last block
    wanted     int64 [N]      packed tokens whose logits are wanted
    """

    positions: Tensor
    slots: Tensor
    starts: tuple[int, ...]
    lens: tuple[int, ...]
    tables: Tensor
    wanted: Tensor


@dataclass(frozen=True, slots=True)
class StaticContext(ForwardContext):
    """A step of one token a sequence whose shapes stay and whose numbers change under it, as a CUDA graph reads it.

    `lens` only bounds the sequences. What they hold is on the device, and so is where their tokens are:

    device_starts  int32 [S + 1]
    device_lens    int32 [S]
    """

    device_starts: Tensor
    device_lens: Tensor
