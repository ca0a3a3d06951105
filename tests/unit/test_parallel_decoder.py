"""Tensor-parallel ranks in processes of their own against one process: same logits, a share of the files each."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rayline.kernels.vocabulary import vocab_share
from rayline.workers.models.config import ModelConfig, embedding_bytes, head_bytes, layer_bytes
from rayline.workers.weights import Weights

RANK_PROGRAM = Path(__file__).parents[1] / "decoder_rank.py"
THREE_WAYS = {"num_attention_heads": 6, "intermediate_size": 99}
CASES: dict[str, dict[str, Any]] = {
    "llama at tp 2": {"tp": 2, "family": "llama"},
    "llama at tp 2 in two stages": {"tp": 2, "cuts": (1,), "family": "llama"},
    "llama at tp 4, each KV head on two ranks": {"tp": 4, "family": "llama"},
    "llama at tp 4, one KV head, tied, biases": {
        "tp": 4,
        "family": "llama",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama at tp 4 in three stages, tied": {"tp": 4, "cuts": (1, 2), "family": "llama", "tie_word_embeddings": True},
    "llama at tp 3": {"tp": 3, "family": "llama", **THREE_WAYS, "num_key_value_heads": 3},
    "qwen3 at tp 3, one KV head": {"tp": 3, "family": "qwen3", **THREE_WAYS, "num_key_value_heads": 1},
    "mistral at tp 2, window of 7": {"tp": 2, "family": "mistral", "sliding_window": 7},
    "qwen2 at tp 2": {"tp": 2, "family": "qwen2"},
    "qwen3 at tp 2, biases": {"tp": 2, "family": "qwen3", "attention_bias": True},
}


@pytest.fixture(scope="module")
def outcomes(
    random_checkpoint: Callable[..., Path], pages: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """All cases run once by four processes: for each its path, tp, expected logits and every rank's result."""
    directory = tmp_path_factory.mktemp("ranks")
    cases = {name: _case(random_checkpoint, pages(), **options) for name, options in CASES.items()}
    torch.save(list(cases.values()), directory / "cases.pt")
    _run_ranks(directory, 4)
    ranks = [torch.load(directory / f"rank{rank}.pt") for rank in range(4)]
    for index, case in enumerate(cases.values()):
        case["ranks"] = [results[index] for results in ranks[: case["tp"]]]
    return cases


def _case(
    random_checkpoint: Callable[..., Path], pages: Any, tp: int, cuts: tuple[int, ...] = (), **checkpoint: Any
) -> dict[str, Any]:
    """Two sequences, one of them in chunks, then a token of each."""
    path = random_checkpoint(**checkpoint)
    a, b = (torch.randint(3, 1003, (n,), generator=torch.Generator().manual_seed(n)) for n in (31, 14))
    steps = [
        (torch.cat((a[:20], b[:13])), pages.context([(0, 0, 20), (1, 0, 13)])),
        (a[20:30], pages.context([(0, 20, 10)])),
        (torch.cat((a[30:], b[13:])), pages.context([(0, 30, 1), (1, 13, 1)])),
    ]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        first, second = (model(tokens[None]).logits[0] for tokens in (a, b))
    wanted = torch.cat((first[:20], second[:13], first[20:], second[13:]))
    shape = {"blocks": pages.blocks, "block_tokens": pages.block_tokens}
    return {"path": path, "tp": tp, "cuts": cuts, "steps": steps, "wanted": wanted, **shape}


def _run_ranks(directory: Path, world_size: int) -> None:
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, str(RANK_PROGRAM), str(directory)]
    running = [
        subprocess.Popen([*command, str(rank), str(world_size)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    try:
        errors = [process.communicate(timeout=250)[1] for process in running]
        assert all(process.returncode == 0 for process in running), "\n".join(errors)
    finally:
        for process in running:
            process.kill()


@pytest.fixture(params=CASES)
def outcome(request: pytest.FixtureRequest, outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return outcomes[request.param]


def test_ranks_compute_the_logits_of_one_process(outcome: dict[str, Any]) -> None:
    torch.testing.assert_close(outcome["ranks"][0]["logits"], outcome["wanted"], rtol=0, atol=1e-4)


def test_all_ranks_hold_the_same_bits(outcome: dict[str, Any]) -> None:
    first: Tensor = outcome["ranks"][0]["logits"]
    assert all(torch.equal(rank["logits"], first) for rank in outcome["ranks"][1:])


def test_each_rank_reads_what_the_arithmetic_of_its_part_says(outcome: dict[str, Any]) -> None:
    config, tp = ModelConfig.load(outcome["path"]), outcome["tp"]
    wanted = config.layers * layer_bytes(config, tp, 4) + head_bytes(config, tp, 4)
    if not config.tie_word_embeddings or outcome["cuts"]:
        wanted += embedding_bytes(config, tp, 4)
    padding = 2 * (tp * vocab_share(config.vocab_size, tp) - config.vocab_size) * config.hidden_size * 4
    assert all(wanted - padding <= rank["bytes_read"] <= wanted for rank in outcome["ranks"])


@pytest.mark.parametrize("case", ["llama at tp 2", "llama at tp 3", "llama at tp 2 in two stages"])
def test_a_rank_reads_its_share_of_the_files_and_the_norms(outcomes: dict[str, dict[str, Any]], case: str) -> None:
    with Weights.open(outcomes[case]["path"]) as weights:
        share = weights.total_bytes / outcomes[case]["tp"]
    assert all(0.97 * share < rank["bytes_read"] < 1.02 * share for rank in outcomes[case]["ranks"])
