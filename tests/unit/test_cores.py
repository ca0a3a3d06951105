"""Cores are claimed once on a machine, given back by their process's end, and kept to while a program runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native import library_or_skip

from rayline.kernels.cores import Cores, claim
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.program import Operations, Team

CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from rayline.kernels.cores import claim
mine = claim(1, [0, 1], Path(sys.argv[1]))
print(mine.numbers, flush=True)
sys.stdin.read()
"""


def test_claims_take_different_cores_until_none_is_left(tmp_path: Path) -> None:
    first = claim(2, [3, 5, 7], tmp_path)
    assert first is not None and first.numbers == (3, 5)
    assert claim(2, [3, 5, 7], tmp_path) is None
    second = claim(1, [3, 5, 7], tmp_path)
    assert second is not None and second.numbers == (7,)


def test_a_claim_that_fails_keeps_nothing(tmp_path: Path) -> None:
    assert claim(3, [0, 1], tmp_path) is None
    whole = claim(2, [0, 1], tmp_path)
    assert whole is not None and whole.numbers == (0, 1)


def test_a_claim_ends_with_its_object(tmp_path: Path) -> None:
    assert claim(1, [4], tmp_path) is not None
    again = claim(1, [4], tmp_path)
    assert again is not None and again.numbers == (4,)


def test_a_killed_process_gives_its_cores_back(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", CLAIM_AND_WAIT, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"(0,)\n"
        mine = claim(1, [0, 1], tmp_path)
        assert mine is not None and mine.numbers == (1,)
        other.kill()
        other.wait()
    theirs = claim(1, [0], tmp_path)
    assert theirs is not None and theirs.numbers == (0,)


def test_a_place_where_nothing_can_be_written_gives_no_cores(tmp_path: Path) -> None:
    assert claim(1, [0], tmp_path / "missing") is None


@pytest.mark.parametrize("threads", [1, 2])
def test_the_caller_may_run_where_it_could_before_and_gets_the_same_bits(threads: int) -> None:
    before = sorted(os.sched_getaffinity(0))
    if len(before) < threads:
        pytest.skip(f"{threads} cores are needed")
    x, weight = torch.randn(40, 64).bfloat16(), torch.randn(300, 64).bfloat16()
    results = []
    for cores in (None, Cores(tuple(before[-threads:]))):
        kernels = NativeKernels(Operations(Team(library_or_skip(), threads, cores)))
        results.append(kernels.linear(x, kernels.pack([weight])))
        assert sorted(os.sched_getaffinity(0)) == before
    assert results[0].equal(results[1])
