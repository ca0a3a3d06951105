"""The C++ kernels as tests use them."""

import pytest

from rayline.kernels.library import ISAS, Library, LibraryMissing, load
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.program import Operations, Team


def library_or_skip(isa: str | None = None) -> Library:
    """The library for an instruction set, or a skipped test that says what is missing."""
    try:
        return load(isa)
    except LibraryMissing as missing:
        pytest.skip(str(missing))


def native_kernels(isa: str | None = None, threads: int = 1) -> NativeKernels:
    return NativeKernels(Operations(Team(library_or_skip(isa), threads)))


every_isa = pytest.mark.parametrize("isa", ISAS)
