"""The decoder against transformers, on small random checkpoints of each family."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rayline.cluster.parallel import Parallel
from rayline.kernels.torch_kernels import TorchKernels
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.models.decoder import Decoder
from rayline.workers.weights import Weights

CPU = torch.device("cpu")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama, one KV head, tied, biases": {
        "family": "llama",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, no shared KV heads, no head_dim": {
        "family": "llama",
        "hidden_size": 96,
        "num_key_value_heads": 4,
        "head_dim": None,
    },
    "llama3 rope": {"family": "llama", "rope_parameters": LLAMA3},
    "mistral": {"family": "mistral", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "mistral, window of 7": {"family": "mistral", "sliding_window": 7},
    "qwen2": {"family": "qwen2", "head_dim": 18},
    "qwen2, window of 9 from layer 1 on": {
        "family": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
    },
    "qwen3": {"family": "qwen3", "tie_word_embeddings": True},
    "qwen3, biases, window of 5 in layer 1": {
        "family": "qwen3",
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
}


class Oracle:
    """One checkpoint in transformers, in fp32 and with plain softmax attention."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")

    @torch.inference_mode()
    def logits(self, token_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(token_ids[None]).logits[0]
        return logits

    @torch.inference_mode()
    def greedy(self, token_ids: Tensor, count: int) -> list[int]:
        out = self.model.generate(token_ids[None], max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return [int(token) for token in out[0, len(token_ids) :]]


class Stages:
    """All stages of a model in this process, each with a cache of its own; tp 1."""

    def __init__(self, path: Path, pages: Any, cuts: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> None:
        config = ModelConfig.load(path)
        self.pages = pages
        edges = [0, *cuts, config.layers]
        runs = [range(a, b) for a, b in pairwise(edges)]
        self.parts = []
        for stage, layers in enumerate(runs):
            with Weights.open(path) as weights:
                place = Parallel(stage=stage, pp_size=len(runs))
                decoder = Decoder(config, layers, weights, place, Alone(), TorchKernels(), dtype, CPU)
            shape = (len(layers), pages.blocks, pages.block_tokens, config.kv_heads, config.head_dim)
            self.parts.append((decoder, KvCache(*shape, dtype, CPU)))

    @torch.inference_mode()
    def step(self, slices: Sequence[tuple[Tensor, int, int, int]], wanted: Sequence[int] | None = None) -> Tensor:
        """Compute slices (whole sequence, its number, start, count) in one step."""
        context = self.pages.context([rest for _, *rest in slices], wanted)
        hidden = torch.cat([tokens[start : start + count] for tokens, _, start, count in slices])
        for decoder, cache in self.parts:
            hidden = decoder.forward(hidden, cache, context)
        return hidden


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 1003, (count,), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=VARIANTS)
def oracle(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Oracle:
    return Oracle(random_checkpoint(**VARIANTS[request.param]))


def test_a_whole_prompt_gives_the_logits_of_transformers(oracle: Oracle, pages: Any) -> None:
    prompt = tokens(75)
    assert_close(Stages(oracle.path, pages()).step([(prompt, 0, 0, 75)]), oracle.logits(prompt))


def test_a_prompt_in_chunks_gives_the_same_logits(oracle: Oracle, pages: Any) -> None:
    model, prompt = Stages(oracle.path, pages()), tokens(75)
    chunks = [(0, 17), (17, 1), (18, 30), (48, 2), (50, 25)]
    ours = torch.cat([model.step([(prompt, 0, start, count)]) for start, count in chunks])
    assert_close(ours, oracle.logits(prompt))


def test_prompts_and_decodes_of_many_sequences_share_a_step(oracle: Oracle, pages: Any) -> None:
    model = Stages(oracle.path, pages(blocks=128))
    a, b, c, d, e = (tokens(n, seed=n) for n in (41, 5, 29, 60, 33))
    model.step([(a, 0, 0, 40), (b, 1, 0, 4)])
    model.step([(c, 2, 0, 20), (e, 4, 0, 32)])
    # decode, decode, the rest of a prompt, a whole prompt, decode; two logits rows left out
    ours = model.step(
        [(a, 0, 40, 1), (b, 1, 4, 1), (c, 2, 20, 9), (d, 3, 0, 60), (e, 4, 32, 1)], [0, 1, *range(2, 11), 70, 71]
    )
    theirs = [oracle.logits(a)[40:], oracle.logits(b)[4:], oracle.logits(c)[20:], oracle.logits(d)[59:]]
    assert_close(ours, torch.cat([*theirs, oracle.logits(e)[32:]]))


def test_greedy_decoding_goes_on_as_generate_does(oracle: Oracle, pages: Any) -> None:
    model, prompt = Stages(oracle.path, pages()), tokens(23)
    wanted = oracle.greedy(prompt, 20)
    sequence, start = prompt, 0
    while len(sequence) < len(prompt) + 20:
        count = len(sequence) - start
        logits = model.step([(sequence, 0, start, count)], [count - 1])
        # generate() forbids the end of the sequence (2) as long as min_new_tokens is not reached
        best = logits.index_fill(1, torch.tensor([2]), -torch.inf).argmax(-1)
        start, sequence = len(sequence), torch.cat((sequence, best))
    assert sequence[len(prompt) :].tolist() == wanted


@pytest.fixture(scope="module")
def llama(random_checkpoint: Callable[..., Path]) -> Oracle:
    return Oracle(random_checkpoint("llama", max_shard_size="100KB"))


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("variant", ["llama", "llama, one KV head, tied, biases", "qwen2, window of 9 from layer 1 on"])
def test_stages_hand_on_what_the_whole_model_computes(
    random_checkpoint: Callable[..., Path], pages: Any, variant: str, cuts: tuple[int, ...]
) -> None:
    path, prompt = random_checkpoint(**VARIANTS[variant]), tokens(50)
    whole, staged = Stages(path, pages()), Stages(path, pages(), cuts)
    for start, count in ((0, 30), (30, 1), (31, 19)):
        ours = staged.step([(prompt, 0, start, count)])
        assert torch.equal(ours, whole.step([(prompt, 0, start, count)]))


def test_weights_in_many_shards_are_read_whole(llama: Oracle, pages: Any) -> None:
    assert len(list(llama.path.glob("*.safetensors"))) > 3
    prompt = tokens(30)
    assert_close(Stages(llama.path, pages()).step([(prompt, 0, 0, 30)]), llama.logits(prompt))


def test_a_prompt_longer_than_a_query_tile_is_the_same(llama: Oracle, pages: Any) -> None:
    prompt = tokens(510)
    ours = Stages(llama.path, pages(blocks=40, block_tokens=16)).step([(prompt, 0, 0, 510)])
    assert_close(ours, llama.logits(prompt))


def test_a_window_shorter_than_a_query_tile_is_the_same(random_checkpoint: Callable[..., Path], pages: Any) -> None:
    oracle, prompt = Oracle(random_checkpoint("mistral", sliding_window=33)), tokens(510)
    model = Stages(oracle.path, pages(blocks=40, block_tokens=16))
    ours = torch.cat([model.step([(prompt, 0, 0, 150)]), model.step([(prompt, 0, 150, 360)])])
    assert_close(ours, oracle.logits(prompt))


def test_the_keys_of_older_configs_mean_the_same(random_checkpoint: Callable[..., Path], pages: Any) -> None:
    path, prompt = random_checkpoint("llama", rope_parameters=LLAMA3), tokens(60)
    wanted = Oracle(path).logits(prompt)
    file = path / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    file.write_text(json.dumps(config))
    assert_close(Stages(path, pages()).step([(prompt, 0, 0, 60)]), wanted)
    assert_close(Oracle(path).logits(prompt), wanted, tolerance=0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_files_computed_in_fp32_are_exact(
    random_checkpoint: Callable[..., Path], pages: Any, dtype: str
) -> None:
    oracle, prompt = Oracle(random_checkpoint("qwen3", dtype=dtype)), tokens(40)
    assert ModelConfig.load(oracle.path).dtype == dtype
    assert_close(Stages(oracle.path, pages()).step([(prompt, 0, 0, 40)]), oracle.logits(prompt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_16_bit_arithmetic_is_as_near_to_fp32_as_transformers_is(
    random_checkpoint: Callable[..., Path], pages: Any, family: str, dtype: torch.dtype
) -> None:
    path, prompt = random_checkpoint(family, dtype=str(dtype).removeprefix("torch.")), tokens(64)
    exact = Oracle(path).logits(prompt)
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)(prompt[None]).logits[0].float()
    ours = Stages(path, pages(), dtype=dtype).step([(prompt, 0, 0, 64)])
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm()


def test_no_logits_are_computed_when_none_are_wanted(llama: Oracle, pages: Any) -> None:
    assert Stages(llama.path, pages()).step([(tokens(9), 0, 0, 9)], wanted=[]).shape == (0, 1003)
