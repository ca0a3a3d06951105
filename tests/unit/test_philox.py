"""Philox4x32-10 against the known answers of the authors' Random123 library, and the noise built on it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rayline.kernels.philox import NOISE_MAX, NOISE_MIN, SAMPLE, gumbel, noise_words, philox4x32

LOW32 = 0xFFFFFFFF
WORD = st.integers(0, LOW32)

# kat_vectors of Random123 1.14: rounds, counter, key, answer
KNOWN = [
    (7, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (10, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (LOW32,) * 4, (LOW32,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        10,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> tuple[int, ...]:
    """The paper's definition in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & LOW32, first >> 32 ^ c[3] ^ k[1], first & LOW32]
        k = [(k[0] + 0x9E3779B9) & LOW32, (k[1] + 0xBB67AE85) & LOW32]
    return tuple(c)


def run(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    words = philox4x32((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1])), rounds)
    return tuple(int(word) for word in words)


@pytest.mark.parametrize(("rounds", "counter", "key", "answer"), KNOWN)
def test_the_authors_vectors_come_out(
    rounds: int, counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    assert run(counter, key, rounds) == answer


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_wrapping_int64_arithmetic_equals_unbounded_arithmetic(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert run(counter, key) == plain_philox(counter, key)


@given(st.integers(0, 2**63 - 1), WORD, st.integers(0, 2**18), st.integers(0, 3))
def test_the_address_of_a_word_is_seed_position_block_and_purpose(
    seed: int, position: int, block: int, purpose: int
) -> None:
    words = noise_words(torch.tensor([seed]), torch.tensor([position]), torch.tensor([block]), purpose)
    assert tuple(words[0].tolist()) == plain_philox((position, block, purpose, 0), (seed & LOW32, seed >> 32))


def test_shapes_broadcast_without_changing_a_word() -> None:
    seed, position, block = torch.tensor([[1], [2**40 + 7]]), torch.tensor([[3], [4]]), torch.arange(5)
    together = noise_words(seed, position, block, SAMPLE)
    assert together.shape == (2, 5, 4)
    for row in range(2):
        for at in range(5):
            alone = noise_words(seed[row], position[row], block[at : at + 1], SAMPLE)
            assert torch.equal(together[row, at], alone[0])


def test_noise_is_finite_and_inside_its_bounds_at_the_extreme_words() -> None:
    lowest, highest = gumbel(torch.tensor([0, LOW32])).tolist()
    assert lowest == pytest.approx(33 * math.log(2), abs=1e-9)
    assert highest == pytest.approx(-math.log(33 * math.log(2)), abs=1e-9)
    assert NOISE_MIN < highest < NOISE_MIN + 1e-4
    assert NOISE_MAX - 1e-4 < lowest < NOISE_MAX


def test_noise_falls_as_the_word_rises() -> None:
    assert (gumbel(torch.arange(0, 2**32, 2**20)).diff() < 0).all()


def test_noise_follows_the_gumbel_distribution() -> None:
    words = noise_words(torch.tensor(11), torch.tensor(5), torch.arange(25_000), SAMPLE)
    assert stats.kstest(gumbel(words.flatten()).numpy(), stats.gumbel_r.cdf).pvalue > 1e-3


def test_noise_of_neighbouring_positions_is_uncorrelated() -> None:
    noise = gumbel(noise_words(torch.tensor(3), torch.tensor([[8], [9]]), torch.arange(25_000), SAMPLE).flatten(1))
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.01
