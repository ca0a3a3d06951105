"""Cores that compute threads keep to themselves.

Left alone, Linux may wake a helper on the very core of the thread that waits for it, or two ranks on one, while
another core idles: a sum between two ranks then takes 32 us instead of 2.4. So a team runs each of its threads on a
core of its own. Ranks of one machine agree on whose is which by locks on files, which end with their process.
"""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Cores:
    """Numbers of cores, one for each thread; `locks` are held as long as this is."""

    numbers: tuple[int, ...]
    locks: tuple[BinaryIO, ...] = ()


def claim(threads: int, allowed: Sequence[int], folder: Path | None = None) -> Cores | None:
    """`threads` of the allowed cores that no other team claims; None when there are not so many left."""
    folder = folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
    claimed: list[tuple[int, BinaryIO]] = []
    for number in allowed:
        if len(claimed) < threads and (lock := _lock(folder / f"rayline-core-{number}")) is not None:
            claimed.append((number, lock))
    if len(claimed) < threads:
        return None
    return Cores(tuple(number for number, _ in claimed), tuple(lock for _, lock in claimed))


def _lock(path: Path) -> BinaryIO | None:
    """The file, locked, or None when somebody else has it or it cannot be made."""
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    except OSError:
        return None
    with suppress(OSError):
        os.fchmod(file.fileno(), 0o666)  # another user's ranks claim too
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
