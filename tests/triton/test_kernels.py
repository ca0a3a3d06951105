"""All operations of the Triton kernels in the interpreter: against torch one by one, and as a decoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_operations import COLUMNS, ROWS, operations, uncompared
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels import triton_rowwise
from rayline.kernels.backend import AttentionShape, Kernels, KvLayer, RopeTables
from rayline.kernels.native_quant import DEFAULT_GROUPS, Quantisation
from rayline.kernels.quantise import dequantise, quantise
from rayline.kernels.rope import inverse_frequencies, rope_tables
from rayline.kernels.rowwise import RoundedRows, RowWeight
from rayline.kernels.torch_kernels import RowwiseTorchKernels, TorchKernels
from rayline.kernels.triton_kernels import TritonKernels
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.models.decoder import Decoder
from rayline.workers.weights import Weights

SHAPE = AttentionShape(heads=6, kv_heads=2, head_dim=32, scale=0.2)
UNITS = 50
WAYS: dict[str, TritonKernels] = {
    "ordinary": TritonKernels("triton", False, None, UNITS),
    "exact": TritonKernels("exact-sm90", True, None, UNITS),
}
every_way = pytest.mark.parametrize("way", WAYS)


def fp16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def attended(kernels: Kernels, pages: Any) -> Tensor:
    """Two steps: the earlier tokens, then the present ones on top of them."""
    paged = pages(block_tokens=16)
    size = (paged.blocks, 16 * SHAPE.kv_heads * SHAPE.head_dim)
    layer = KvLayer(torch.zeros(size).half(), torch.zeros(size).half(), 16, SHAPE.kv_heads, SHAPE.head_dim)
    rope = RopeTables(*rope_tables(inverse_frequencies(SHAPE.head_dim, 10_000.0), 64))
    norms = (fp16(SHAPE.head_dim, seed=8) + 1, fp16(SHAPE.head_dim, seed=9) + 1)
    out = torch.empty(0)
    for seed, slices in enumerate(([(0, 0, 3), (1, 0, 39)], [(0, 3, 3), (1, 39, 1), (2, 0, 18)])):
        context = paged.context(slices)
        qkv = fp16(len(context.positions), (SHAPE.heads + 2 * SHAPE.kv_heads) * SHAPE.head_dim, seed=seed)
        q = kernels.write_kv(qkv, SHAPE, rope, norms, 1e-5, layer, context)
        out = kernels.attend(q, SHAPE, layer, context, torch.linspace(-1, 2, SHAPE.heads))
    return out


OPERATIONS = operations(fp16)


def expect_parity(ours: Tensor, theirs: Tensor) -> None:
    """Within a few roundings to fp16 of the largest number: sums go in another order."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * 2.0**-11 * float(theirs.abs().max()))
    assert float(theirs.abs().max()) > 0.1


@every_way
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_in_triton_gives_what_torch_gives(name: str, way: str) -> None:
    expect_parity(OPERATIONS[name](WAYS[way]), OPERATIONS[name](TorchKernels()))


@every_way
def test_attention_in_triton_gives_what_torch_gives(way: str, pages: Any) -> None:
    expect_parity(attended(WAYS[way], pages), attended(TorchKernels(), pages))


def test_every_operation_of_the_interface_is_compared() -> None:
    assert not uncompared(OPERATIONS)


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_rounded_weights_multiply_as_their_values(weights: Any, is_exact: bool) -> None:
    """Also of a vocabulary's matrix, which gets 8 bits in a 4-bit model, and is read by the embedding."""
    kernels, rows = TritonKernels("triton", is_exact, Quantisation(weights), UNITS), fp16(COLUMNS, 600, seed=1)
    x, torchs = fp16(ROWS, 600), TorchKernels()

    def values(bits: Any) -> Tensor:
        return dequantise(quantise(rows, bits, DEFAULT_GROUPS[f"int{bits}"]))

    mine = values(4 if weights == "int4" else 8)
    expect_parity(kernels.linear(x, kernels.pack([rows])), (x.float() @ mine.T).half())
    tied = kernels.tied(rows)
    expect_parity(kernels.linear_fp32(x, tied), x.float() @ values(8).T)
    ids = torch.tensor([5, 149])
    assert kernels.embedding(ids, tied).equal(torchs.embedding(ids, torchs.table(values(8).half())))


class Run:
    """A decoder over a small random checkpoint, with some kernels."""

    def __init__(self, path: Path, kernels: Kernels, pages: Any) -> None:
        config = ModelConfig.load(path)
        with Weights.open(path) as weights:
            layers, cpu = range(config.layers), torch.device("cpu")
            self.decoder = Decoder(config, layers, weights, Parallel(), Alone(), kernels, torch.float16, cpu)
        self.pages = pages(block_tokens=16)
        shape = (config.layers, self.pages.blocks, 16, config.kv_heads, config.head_dim)
        self.cache = KvCache(*shape, torch.float16, cpu)

    @torch.inference_mode()
    def logits(self, tokens: Tensor, slices: list[tuple[int, int, int]]) -> Tensor:
        """One step over slices (sequence, start, count) of sequences that all hold `tokens`."""
        inputs = torch.cat([tokens[start : start + count] for _, start, count in slices])
        return self.decoder.forward(inputs, self.cache, self.pages.context(slices)).clone()


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(
        "qwen3",
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=2,
        vocab_size=300,
        use_sliding_window=True,
        sliding_window=11,
        layer_types=["full_attention", "sliding_attention"],
        tie_word_embeddings=True,
    )


TOKENS = torch.arange(24) * 37 % 300


@every_way
def test_a_decoder_gives_the_logits_of_torch(way: str, checkpoint: Path, pages: Any) -> None:
    runs = [Run(checkpoint, kernels, pages) for kernels in (WAYS[way], TorchKernels())]
    for slices in ([(0, 0, 20), (1, 0, 3)], [(0, 20, 1), (1, 3, 9), (2, 0, 1)]):
        ours, theirs = (run.logits(TOKENS, slices) for run in runs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["fp8", "w8a8"])
def test_a_decoder_in_8_bits_gives_the_logits_of_torch_in_8_bits(kind: Any, checkpoint: Path, pages: Any) -> None:
    ours = Run(checkpoint, TritonKernels("triton", False, None, UNITS, rounding=kind), pages)
    theirs = Run(checkpoint, RowwiseTorchKernels(kind), pages)
    for slices in ([(0, 0, 20), (1, 0, 3)], [(0, 20, 1), (1, 3, 9)]):
        mine, expected = ours.logits(TOKENS, slices), theirs.logits(TOKENS, slices)
        # A number that is rounded to the other neighbour moves its row's logits by some hundredths.
        assert float((mine - expected).norm() / expected.norm()) < 0.03


class Apart(TritonKernels):
    """Rounds what norm and gate made in a launch of its own."""

    def rounded_rms_norm(self, x: Tensor, weight: Tensor, eps: float, target: RowWeight) -> RoundedRows:
        return triton_rowwise.rounded(self.rms_norm(x, weight, eps), target.kind)

    def rounded_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, target: RowWeight
    ) -> tuple[RoundedRows, Tensor]:
        normed, total = self.add_rms_norm(x, residual, weight, eps)
        return triton_rowwise.rounded(normed, target.kind), total

    def rounded_silu_gate(self, gate_up: Tensor, target: RowWeight) -> RoundedRows:
        return triton_rowwise.rounded(self.silu_gate(gate_up), target.kind)


@pytest.mark.parametrize("kind", ["fp8", "w8a8"])
def test_norm_and_gate_round_for_their_products_and_change_no_bit(
    kind: Any, checkpoint: Path, pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only attention's result is still rounded by a launch of its own, in both layers."""
    launches: list[str] = []
    launch = Kernel.launch

    def counted(kernel: Kernel, grid: tuple[int, ...], variant: Variant, **arguments: Any) -> None:
        launches.append(kernel.name)
        launch(kernel, grid, variant, **arguments)

    monkeypatch.setattr(Kernel, "launch", counted)
    told = []
    for kernels in (TritonKernels, Apart):
        launches.clear()
        run = Run(checkpoint, kernels("triton", False, None, UNITS, rounding=kind), pages)
        told.append((run.logits(TOKENS, [(0, 0, 20), (1, 0, 3)]), launches.count("round_rows")))
    (ours, few), (theirs, many) = told
    assert ours.equal(theirs)
    assert (few, many) == (2, 8)


@pytest.mark.parametrize("weights", [None, "int4", "int8", "fp8", "w8a8"])
def test_logits_of_the_exact_class_have_the_same_bits_however_they_are_batched(
    weights: Any, checkpoint: Path, pages: Any
) -> None:
    quantisation = Quantisation(weights) if weights in ("int4", "int8") else None
    rounding = weights if weights in ("fp8", "w8a8") else None
    run = Run(checkpoint, TritonKernels("exact-sm90", True, quantisation, UNITS, rounding=rounding), pages)
    whole = run.logits(TOKENS, [(0, 0, 24)])
    first = run.logits(TOKENS, [(1, 0, 9), (2, 0, 4)])
    second = run.logits(TOKENS, [(2, 4, 1), (1, 9, 14)])
    third = run.logits(TOKENS, [(1, 23, 1)])
    assert torch.cat((first[:9], second[1:], third)).equal(whole)


def test_a_form_that_is_not_compiled_ahead_of_time_is_refused() -> None:
    known, unknown = Variant((("BLOCK", 16),)), Variant((("BLOCK", 32),))
    with pytest.raises(ValueError, match="is not compiled for"):
        Kernel(test_a_form_that_is_not_compiled_ahead_of_time_is_refused, {}, [known]).launch((1,), unknown)
