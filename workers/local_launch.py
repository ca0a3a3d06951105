"""Ranks as child processes of this one: for offline use on one machine, with neither Ray nor gRPC."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rayline.protos.errors import Unavailable
from rayline.workers.channel import Channel, listen
from rayline.workers.rank import SECRET_VARIABLE
from rayline.workers.ranks import accept_ranks
from rayline.workers.spec import RankSpec

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0


class LocalLauncher:
    """Starts `python -m rayline.workers.rank` once a rank and ends what it started."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="rayline-"))

    @property
    def store_host(self) -> str:
        return "127.0.0.1"

    def launch(self, specs: Sequence[RankSpec]) -> dict[int, Channel]:
        """Start the ranks and wait until each has said hello. Raises Unavailable when one ends early."""
        secret = secrets.token_hex(32)
        server, address = listen(f"unix:{self._folder / 'leader'}")
        try:
            for spec in specs:
                self._start(spec, address, secret)
            return accept_ranks([server], len(specs), secret, START_TIMEOUT_S, self._check)
        finally:
            server.close()
            shutil.rmtree(self._folder, ignore_errors=True)  # nobody else comes: nothing is left to leave behind

    def kill(self) -> None:
        """End every rank by force."""
        for process in list(self._processes.values()):
            process.kill()

    def close(self) -> None:
        """End every rank: it has been told to stop, is waited for, then ended by force."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def process_ids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes.values())

    def _start(self, spec: RankSpec, address: str, secret: str) -> None:
        rank = spec.parallel.rank
        environment = {
            **os.environ,
            SECRET_VARIABLE: secret,
            "OMP_NUM_THREADS": str(spec.threads),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # found as this process found it
        }
        command = [sys.executable, "-m", "rayline.workers.rank", address, str(rank)]
        self._processes[rank] = subprocess.Popen(command, env=environment, start_new_session=True)

    def _check(self) -> None:
        for rank, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise Unavailable(f"rank {rank} ended with exit code {code} before it could load")
