"""A short name for a model's files, which tells whether two groups compute the same function."""

import hashlib
from pathlib import Path

SAMPLES = 64  # of a file
SAMPLE_BYTES = 4096
WHOLE_BYTES = SAMPLES * SAMPLE_BYTES  # smaller files are read whole
PATTERNS = ("config.json", "*.safetensors")


def fingerprint(path: Path) -> str:
    """16 hex digits of what decides the weights under `path`: names, sizes and samples of the files.

    A file's beginning, which lists its tensors, is always among the samples. Weights that were trained on differ
    nearly everywhere, so samples tell them apart without gigabytes being read.
    """
    digest = hashlib.sha256()
    for file in sorted({file for pattern in PATTERNS for file in path.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            if size <= WHOLE_BYTES:
                digest.update(data.read())
                continue
            for sample in range(SAMPLES):
                data.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(data.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
