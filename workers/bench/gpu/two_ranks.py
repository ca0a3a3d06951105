"""Two ranks in processes of their own on one device, which sum by memory that both see.

python -m rayline.workers.bench.gpu.two_ranks FOLDER RANK    one of them; the last lines of stderr say how it went
"""

import logging
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from rayline.kernels.graphs import CudaRecorder, Recorder
from rayline.protos.errors import ConfigError
from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.bench.gpu.report import Check
from rayline.workers.collectives import Collective, TensorParallelGroup
from rayline.workers.devices import Staging
from rayline.workers.symmetric_group import Meeting, TorchMeeting, fastest_group

LIMIT_S = 60.0
ROUNDS = 10
SHAPE = (3, 256)


def two_processes() -> Check:
    """That their sums are right, launched and replayed; or that they are not used, and why."""
    with TemporaryDirectory() as folder:
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # found as this process found it
        }
        command = [sys.executable, "-m", "rayline.workers.bench.gpu.two_ranks", folder]
        ranks = [
            subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        try:
            said = [rank.communicate(timeout=LIMIT_S)[1].splitlines() for rank in ranks]
        except subprocess.TimeoutExpired:
            said = [[f"no end within {LIMIT_S:.0f} s"]]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    title = "sums over ranks: two processes on one device get the gathered bits, or do not sum so"
    is_right = all(rank.returncode == 0 for rank in ranks)
    return Check(title, is_right, "; ".join(sorted({line for lines in said for line in lines[-2:]})))


def tried(gathered: Collective, kernels: object, meeting: Meeting, recorder: Recorder, like: torch.Tensor) -> str:
    """What came of it on one rank. like: of the dtype and the device of the sums. Raises ValueError for wrong sums."""
    try:
        group = fastest_group(gathered, kernels, "symmetric", meeting, like.dtype, like.device)
    except ConfigError as error:
        return f"not used: {error.message}"
    partial, total = torch.ones(SHAPE, device=like.device), like.new_zeros(SHAPE)

    def step() -> None:
        total.copy_(group.sum_tree(partial, None, like.dtype))

    replay, wrong = recorder.record(step), 0
    for _ in range(ROUNDS):
        partial *= 1.1
        replay()
        wrong += not total.equal(gathered.sum_tree(partial, None, like.dtype))
    if wrong:
        raise ValueError(f"{wrong} of {ROUNDS} replayed sums were wrong")
    return "used"


def main(folder: str, rank: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = dist.group.WORLD
    assert group is not None
    gathered = TensorParallelGroup(group, 2, Staging(device, is_on=True))
    kernels = Machine(device, torch.bfloat16, 0.0).kernels("ordinary")
    like = torch.empty(0, dtype=torch.bfloat16, device=device)
    logging.info(tried(gathered, kernels, TorchMeeting(group, rank), CudaRecorder(), like))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
