"""A lazy reader of safetensors checkpoints: only the asked rows and columns are read from the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rayline.protos.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = ("BF16", "F16", "F32")


class WeightSource(Protocol):
    """What a decoder reads its weights from."""

    def unread(self, prefix: str) -> list[str]:
        """Tensors whose names start with `prefix` that nobody has read any part of."""
        ...

    def read(
        self, name: str, *, shape: tuple[int, ...], rows: range | None = None, cols: range | None = None
    ) -> Tensor:
        """A tensor whose whole shape must be `shape`, or only some of its rows and columns."""
        ...


class Weights:
    """The tensors of one model directory, in one file or in shards named by an index.

    One shard is open at a time: an open file is mapped, and its pages count as the process's memory.
    """

    def __init__(self, files: dict[str, Path], on_read: Callable[[int], None] | None = None) -> None:
        """`files`: the file of each tensor. `on_read` is told the bytes of each read."""
        self._files = files
        self._on_read = on_read
        self._open_file: Path | None = None
        self._handle: Any = None
        self._read_names: set[str] = set()
        self.bytes_read = 0
        self.total_bytes = sum(file.stat().st_size for file in set(files.values()))

    @classmethod
    def open(cls, path: Path, on_read: Callable[[int], None] | None = None) -> Self:
        """Find the files of a model directory and check that each is whole.

        Raises ModelError naming the file when one is missing, truncated or not safetensors.
        """
        index = path / INDEX
        if index.exists():
            names = {name: path / file for name, file in _weight_map(index).items()}
        elif (path / SINGLE).exists():
            with _opened(path / SINGLE) as handle:
                names = dict.fromkeys(handle.keys(), path / SINGLE)
        else:
            raise ModelError(f"{path} holds neither {SINGLE} nor {INDEX}", field="model")
        for file in sorted(set(names.values())):
            with _opened(file):
                pass
        return cls(names, on_read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the open file."""
        self._open_file = self._handle = None

    def unread(self, prefix: str) -> list[str]:
        """Tensors whose names start with `prefix` that nobody has read any part of."""
        return [name for name in self._files if name.startswith(prefix) and name not in self._read_names]

    def read(
        self, name: str, *, shape: tuple[int, ...], rows: range | None = None, cols: range | None = None
    ) -> Tensor:
        """Read a tensor whose whole shape must be `shape`, or only some of its rows and columns.

        Returns it in the file's dtype, as a view of the mapped file: copy what is kept. Raises ModelError
        naming file and tensor when it is missing, of another shape or of an unsupported dtype.
        """
        file = self._files.get(name)
        if file is None:
            raise ModelError(f"tensor {name} is in no weight file of the model", field="model")
        if file != self._open_file:
            self.close()
            self._handle, self._open_file = _opened(file), file
        try:
            part = self._handle.get_slice(name)
        except SafetensorError:
            raise ModelError(f"{file}: tensor {name} is missing", field="model") from None
        if tuple(part.get_shape()) != shape:
            found = list(part.get_shape())
            raise ModelError(
                f"{file}: tensor {name} has shape {found}, config.json asks for {list(shape)}", field="model"
            )
        if part.get_dtype() not in DTYPES:
            raise ModelError(
                f"{file}: tensor {name} has dtype {part.get_dtype()}, allowed is {', '.join(DTYPES)}", field="model"
            )
        wanted = [slice(r.start, r.stop) if r is not None else slice(None) for r in (rows, cols)]
        tensor: Tensor = part[tuple(wanted[: len(shape)])]
        self._read_names.add(name)
        self.bytes_read += tensor.nbytes
        if self._on_read is not None:
            self._on_read(tensor.nbytes)
        return tensor


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in names.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of weights: {error!r}", field="model") from None


def _opened(file: Path) -> Any:
    """The file, mapped; its header and length are checked."""
    if not file.is_file():
        raise ModelError(f"weight file {file} is missing", field="model")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weight file {file} is broken or truncated: {error}", field="model") from None
