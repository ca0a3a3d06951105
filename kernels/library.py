"""The C++ kernels as a shared library: found, checked and described. Plain ctypes, no torch ABI."""

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
SOURCES = HERE / "native"
ISAS = ("avx512", "avx2", "portable")  # fastest first; all give the same bits: the class "fma"
DOT_PRODUCT_ISA = "avx512bf16"  # the class "dpbf16"

Kind = Literal["read", "write", "int", "float"]
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^ {4}(const )?(\w+)(\*)? (\w+);", re.MULTILINE)
_SCALARS: dict[str, Kind] = {"int64_t": "int", "double": "float"}


@dataclass(frozen=True, slots=True)
class Arguments:
    """What one operation takes: a struct of native/abi.h. `kinds` are its fields in order."""

    name: str
    kinds: Mapping[str, Kind]
    struct: type[ctypes.Structure]


class LibraryMissing(Exception):
    """There is no library, or not the one of these sources; the message says why."""


class Library:
    """The loaded library. `isa` names the instruction set whose operations it hands out."""

    def __init__(self, handle: ctypes.CDLL, isa: str) -> None:
        self._handle = handle
        self.isa = isa
        self.arguments = read_arguments()
        handle.rl_operation.restype = ctypes.c_void_p
        handle.rl_team_new.restype = ctypes.c_void_p
        handle.rl_team_free.argtypes = [ctypes.c_void_p]
        handle.rl_advise_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        handle.rl_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self.run = handle.rl_run
        handle.rl_exchange_bytes.restype = ctypes.c_int64
        handle.rl_exchange_new.restype = ctypes.c_void_p
        handle.rl_exchange_new.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_double]
        handle.rl_exchange_free.argtypes = [ctypes.c_void_p]

    @property
    def numerics(self) -> str:
        """The numerics class of the bf16 product: libraries of one class give the same bits."""
        return "dpbf16" if self.isa == DOT_PRODUCT_ISA else "fma"

    def operation(self, name: str) -> int:
        """Address of an operation. Raises KeyError when this instruction set has none of that name."""
        address: int | None = self._handle.rl_operation(self.isa.encode(), name.encode())
        if address is None:
            raise KeyError(f"{self.isa} has no operation {name}")
        return address

    def new_team(self, threads: int, cores: Sequence[int] | None) -> int:
        """Start `threads - 1` helper threads; the caller is the first of the team. Raises MemoryError.

        cores: one for each thread, None to let the system choose.
        """
        numbers = None if cores is None else (ctypes.c_int * threads)(*cores)
        team: int | None = self._handle.rl_team_new(threads, numbers)
        if team is None:
            raise MemoryError(f"{threads} threads could not be started")
        return team

    def free_team(self, team: int) -> None:
        self._handle.rl_team_free(team)

    def exchange_bytes(self, ranks: int) -> int:
        """Size of the file that `ranks` ranks map."""
        return int(self._handle.rl_exchange_bytes(ranks))

    def new_exchange(self, path: Path, ranks: int, rank: int, patience_s: float) -> int:
        """Map the file at `path`. Raises OSError."""
        exchange: int | None = self._handle.rl_exchange_new(os.fsencode(path), ranks, rank, patience_s)
        if exchange is None:
            raise OSError(f"{path} could not be mapped")
        return exchange

    def free_exchange(self, exchange: int) -> None:
        self._handle.rl_exchange_free(exchange)

    def advise_huge_pages(self, address: int, size_bytes: int) -> None:
        """Ask for huge pages behind an array, at its first write or when Linux gets to it; it may refuse."""
        self._handle.rl_advise_huge_pages(address, size_bytes)


def load(isa: str | None = None) -> Library:
    """The library for the best instruction set of this CPU, or for `isa`. Raises LibraryMissing."""
    files = [file for suffix in EXTENSION_SUFFIXES if (file := HERE / f"_native{suffix}").exists()]
    if not files:
        raise LibraryMissing("the C++ kernels were not built: install a C++ compiler and install rayline again")
    handle = ctypes.CDLL(str(files[0]))
    handle.rl_sources.restype = ctypes.c_char_p
    if handle.rl_sources().decode() != source_digest():
        raise LibraryMissing("the C++ kernels were built from other sources: install rayline again")
    handle.rl_vendor.restype = ctypes.c_char_p
    usable = [name for name in (*ISAS, DOT_PRODUCT_ISA) if handle.rl_supports(name.encode())]
    if isa is not None and isa not in usable:
        raise LibraryMissing(f"this CPU does not run {isa}: it runs {', '.join(usable)}")
    best = DOT_PRODUCT_ISA if prefers_dpbf16(handle.rl_vendor().decode(), DOT_PRODUCT_ISA in usable) else usable[0]
    return Library(handle, isa or best)


def prefers_dpbf16(vendor: str, has_avx512_bf16: bool) -> bool:
    """Whether a CPU multiplies bf16 faster by dot products of pairs (dpbf16) than by fp32 fused multiply-add.

    AMD (Zen 4 and 5) takes in twice as many products a cycle with dpbf16. Intel's cores without AMX tiles split
    the instruction: on Sapphire Rapids it reaches half the rate of fp32 multiply-add, which also keeps
    subnormals and has its bits in common with every other CPU.
    """
    return has_avx512_bf16 and vendor == "AuthenticAMD"


@cache
def source_digest() -> str:
    """SHA-256 of the sources beside this file, as setup.py takes it."""
    return sha256(b"".join(file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]*")))).hexdigest()


@cache
def read_arguments() -> Mapping[str, Arguments]:
    """The structs of native/abi.h, by name."""
    return {name: _arguments(name, body) for name, body in _STRUCT.findall((SOURCES / "abi.h").read_text())}


def _arguments(name: str, body: str) -> Arguments:
    kinds: dict[str, Kind] = {}
    for const, base, star, field in _FIELD.findall(body):
        kinds[field] = ("read" if const else "write") if star else _SCALARS.get(base, "read")
    types = {"int": ctypes.c_int64, "float": ctypes.c_double}
    fields = [(field, types.get(kind, ctypes.c_void_p)) for field, kind in kinds.items()]
    return Arguments(name, kinds, type(name, (ctypes.Structure,), {"_fields_": fields}))
