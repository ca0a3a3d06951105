"""Program of one tensor-parallel rank: run the cases of a file, write what came out.

    python decoder_rank.py DIRECTORY RANK WORLD_SIZE

DIRECTORY/cases.pt holds a list of cases, each a dict: path, tp, cuts (first layers of the later stages),
blocks, block_tokens and steps, a list of (token ids, ForwardContext). A rank sits out the cases with fewer
ranks. It holds its share of all stages and hands the hidden states on within the process.
DIRECTORY/rank<RANK>.pt gets, for each case it took part in, the case's index, logits and bytes read.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rayline.cluster.parallel import Parallel
from rayline.kernels.torch_kernels import TorchKernels
from rayline.workers.cache import KvCache
from rayline.workers.collectives import TensorParallelGroup
from rayline.workers.devices import Staging
from rayline.workers.models.config import ModelConfig, kv_heads_of_rank
from rayline.workers.models.decoder import Decoder
from rayline.workers.weights import Weights

CPU = torch.device("cpu")


def run(case: dict[str, Any], rank: int, collective: TensorParallelGroup) -> dict[str, Any]:
    config = ModelConfig.load(case["path"])
    stages = list(pairwise([0, *case["cuts"], config.layers]))
    parts, bytes_read = [], 0
    for stage, (first, end) in enumerate(stages):
        place = Parallel(rank, case["tp"], stage, len(stages))
        with Weights.open(case["path"]) as weights:
            decoder = Decoder(config, range(first, end), weights, place, collective, TorchKernels(), torch.float32, CPU)
            bytes_read += weights.bytes_read
        kv_heads = kv_heads_of_rank(config, case["tp"])
        shape = (end - first, case["blocks"], case["block_tokens"], kv_heads, config.head_dim)
        parts.append((decoder, KvCache(*shape, torch.float32, CPU)))
    logits = []
    for hidden, context in case["steps"]:
        for decoder, cache in parts:
            hidden = decoder.forward(hidden, cache, context)
        logits.append(collective.gather_columns(hidden)[:, : config.vocab_size])
    return {"logits": torch.cat(logits), "bytes_read": bytes_read}


def main(directory: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    results = {}
    with torch.inference_mode():
        groups = {tp: dist.new_group(list(range(tp))) for tp in range(2, world_size + 1)}
        for index, case in enumerate(torch.load(directory / "cases.pt", weights_only=False)):
            if rank < case["tp"]:
                results[index] = run(case, rank, TensorParallelGroup(groups[case["tp"]], case["tp"], Staging(CPU)))
    torch.save(results, directory / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
