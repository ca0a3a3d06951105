"""Counter-based noise: Philox4x32-10 and the Gumbel noise that sampling adds to logits.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A draw is a pure
function of its address, so noise needs no generator state and can be drawn for any part of a vocabulary.
"""

import torch
from torch import Tensor

SAMPLE = 0  # the `purpose` of the noise that chooses an output token

_ROUNDS = 10
_LOW32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # key increments: the golden ratio and sqrt(3) - 1

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor], rounds: int = _ROUNDS) -> Words:
    """Four 32-bit words for each counter and key.

    All tensors are int64 of shapes that broadcast and hold values in [0, 2^32). A product of two such
    values wraps in int64, yet its 64 bits are the right ones. c1 and c3 keep the whole product until
    their low half is used: one mask cleans it together with the shift's sign bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (second >> 32 ^ c1 ^ k0) & _LOW32, (first >> 32 ^ c3 ^ k1) & _LOW32
        c1, c3 = second, first
        k0, k1 = k0 + _WEYL[0] & _LOW32, k1 + _WEYL[1] & _LOW32
    return c0, c1 & _LOW32, c2, c3 & _LOW32


def noise_words(seed: Tensor, position: Tensor, block: Tensor, purpose: int) -> Tensor:
    """The words of vocabulary ids 4 block .. 4 block + 3 at a position: int64 [...] -> int64 [..., 4].

    Key = the 64-bit seed, counter = (position, block, purpose, 0). The three shapes broadcast.
    """
    counter = (position, block, torch.tensor(purpose), torch.tensor(0))
    return torch.stack(philox4x32(counter, (seed & _LOW32, seed >> 32 & _LOW32)), dim=-1)


def gumbel(words: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(1 - v)), fp64, from 32-bit words x: v = (x + 1/2) 2^-32.

    v lies in [2^-33, 1 - 2^-33], hence the noise in [NOISE_MIN, NOISE_MAX]: never infinite.
    """
    v = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-v))


# v = 1 - 2^-33 gives -log(33 log 2) = -3.12999.., v = 2^-33 gives 33 log 2 - 2^-34 = 22.87385..;
# both rounded outwards, so that a bound built on them is safe against the last bit of any log.
NOISE_MIN = -3.1300
NOISE_MAX = 22.8739
