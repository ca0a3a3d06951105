"""Memory that the ranks of one stage share: the way of tensor-parallel sums between CPUs of one node.

The file has no name once all ranks have mapped it, so whatever becomes of them nothing stays behind.
"""

import os
import tempfile
from pathlib import Path

from rayline.kernels.library import Library

PATIENCE_S = 300.0  # as long as torch.distributed waits
SHARED_MEMORY = Path("/dev/shm")
LOST = {
    2: "another rank of this stage ended or gave up",
    3: "another rank of this stage did not come to an exchange in time",
}
"""What native/exchange.h's return codes say."""


class RankLost(Exception):
    """An operation that ranks compute together could not end; the message says why. The exchange is of no more use."""


class Exchange:
    """One rank's side of a mapped file. All ranks run the same operations on it in the same order."""

    def __init__(self, library: Library, path: Path, ranks: int, rank: int, patience_s: float = PATIENCE_S) -> None:
        """Map a file that `new_file` made. An operation fails when another rank makes it wait `patience_s`.

        Raises OSError.
        """
        self._library = library
        self.ranks = ranks
        self.address = library.new_exchange(path, ranks, rank, patience_s)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._library.free_exchange(self.address)


def new_file(library: Library, ranks: int) -> Path:
    """A file for `ranks` ranks to map, for the caller to unlink: in shared memory when it has room. Raises OSError."""
    size_bytes = library.exchange_bytes(ranks)
    try:
        return _new_file_in(SHARED_MEMORY, size_bytes)
    except OSError:
        return _new_file_in(Path(tempfile.gettempdir()), size_bytes)


def _new_file_in(folder: Path, size_bytes: int) -> Path:
    file, path = tempfile.mkstemp(prefix="rayline-", dir=folder)
    try:
        os.posix_fallocate(file, 0, size_bytes)  # a full disk shows now, not as a signal at the first write
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(file)
    return Path(path)
