"""Products with weights of 4 and 8 bits: against plain torch, and bit for bit against themselves."""

import pytest
import torch
from native import every_isa, library_or_skip
from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.library import ISAS
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.native_quant import Activations, Quantisation, Weights, pack_integers
from rayline.kernels.program import Operations, Team
from rayline.kernels.quantise import GROUPS, Quantised, dequantise, quantise, round_activations
from rayline.kernels.tree import join_pairwise

every_weight = pytest.mark.parametrize(("weights", "group"), [("int4", 32), ("int4", 64), ("int8", 64), ("int8", 128)])
every_activation = pytest.mark.parametrize("activations", ["exact", "int8"])
SHAPES = [(512, 128), (576, 200), (96, 70)]  # depth, columns: whole and ragged groups and panels


def kernels(
    weights: Weights, group: int, activations: Activations = "exact", isa: str | None = None, threads: int = 1
) -> NativeKernels:
    return NativeKernels(Operations(Team(library_or_skip(isa), threads)), Quantisation(weights, activations, group))


def some(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(torch.bfloat16)


def bits_of(weights: Weights) -> int:
    return 4 if weights == "int4" else 8


def values(weight: Tensor, weights: Weights, group: int) -> Tensor:
    return dequantise(quantise(weight, 4 if weights == "int4" else 8, group)).double()


def rounded(x: Tensor, group: int) -> Tensor:
    whole, steps = round_activations(x, group)
    return (whole.double() * steps.double()[..., None]).flatten(1)[:, : x.shape[1]]


def relative(out: Tensor, truth: Tensor) -> float:
    return float((out.double() - truth).norm() / truth.norm())


@every_isa
@every_weight
def test_the_packer_quantises_as_plain_torch_does(weights: Weights, group: int, isa: str) -> None:
    ours = kernels(weights, group, isa=isa)
    weight = some(200, 512)
    weight[3] = 0
    weight[5, :group] = weight[5, :group].abs()
    weight[7] *= 1e-36
    truth = pack_integers(ours.operations, [quantise(weight, 4 if weights == "int4" else 8, group)])
    assert torch.equal(ours.pack([weight]).data, truth.data)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", GROUPS)
def test_no_weight_is_further_off_than_half_a_step(bits: int, group: int) -> None:
    weight = some(64, 300).float()
    weight[0] = weight[0].abs()
    kept = quantise(weight, 4 if bits == 4 else 8, group)
    steps = kept.scales.repeat_interleave(group, dim=1)[:, :300]
    assert bool(((dequantise(kept) - weight).abs() <= steps * 0.50001).all())
    error = relative(dequantise(kept), weight.double())
    assert error < (0.11 if bits == 4 else 0.007)


def test_a_value_is_scale_times_whole_number_less_minimum() -> None:
    kept = quantise(some(8, 64), 4, 32)
    q, by_group = kept.q.double(), [part.repeat_interleave(32, dim=1).double() for part in (kept.scales, kept.minima)]
    assert torch.equal(dequantise(kept).double(), by_group[0] * q - by_group[1])


def test_a_group_that_no_kernel_has_is_refused() -> None:
    with pytest.raises(ValueError, match="48"):
        quantise(some(8, 96), 4, 48)
    with pytest.raises(ValueError, match="48"):
        Quantisation("int4", group=48)


@every_isa
@every_weight
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_exact_activations_meet_the_dequantised_weight(weights: Weights, group: int, rows: int, isa: str) -> None:
    ours = kernels(weights, group, isa=isa)
    for depth, columns in SHAPES:
        x, weight = some(rows, depth, 1), some(columns, depth, 2)
        out = ours.linear_fp32(x, ours.pack([weight], segments=4))
        assert relative(out, x.double() @ values(weight, weights, group).T) < 1e-6


@every_isa
@every_weight
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_activations_in_8_bits_meet_their_own_rounding(weights: Weights, group: int, rows: int, isa: str) -> None:
    ours = kernels(weights, group, "int8", isa)
    for depth, columns in SHAPES:
        x, weight = some(rows, depth, 1), some(columns, depth, 2)
        out = ours.linear_fp32(x, ours.pack([weight], segments=4))
        kept = values(weight, weights, group)
        assert relative(out, rounded(x, group) @ kept.T) < 1e-6
        assert relative(out, x.double() @ kept.T) < 0.01


@every_isa
@every_weight
def test_a_group_of_whole_numbers_is_summed_exactly(weights: Weights, group: int, isa: str) -> None:
    ours = kernels(weights, group, "int8", isa)
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-127, 128, (9, group), generator=generator).to(torch.bfloat16)
    x[:, 0] = 127  # the step is 1
    bits = bits_of(weights)
    q = torch.randint(0, 2**bits, (64, group), generator=generator).to(torch.uint8)
    zeros = torch.randint(0, 16, (64, 1), generator=generator).to(torch.uint8) if bits == 4 else None
    weight = pack_integers(ours.operations, [Quantised(q, torch.ones(64, 1), zeros, 4 if bits == 4 else 8, group)])
    truth = x.long() @ (q.long() - (128 if zeros is None else zeros.long())).T
    assert torch.equal(ours.linear_fp32(x, weight).long(), truth)


@every_weight
@every_activation
def test_a_row_has_the_same_bits_in_any_batch(weights: Weights, group: int, activations: Activations) -> None:
    ours = kernels(weights, group, activations)
    x = some(260, 576, 4)
    weight = ours.pack([some(130, 576, 5)], segments=8)
    whole = ours.linear_fp32(x, weight)
    for rows in (*range(1, 21), 31, 64, 127, 129, 200):
        assert torch.equal(ours.linear_fp32(x[:rows], weight), whole[:rows])
    for row in (0, 100, 259):
        assert torch.equal(ours.linear_fp32(x[row : row + 1], weight), whole[row : row + 1])


@every_weight
@every_activation
def test_instruction_sets_and_threads_give_equal_bits(weights: Weights, group: int, activations: Activations) -> None:
    x, matrix = some(40, 300, 6), some(200, 300, 7)

    def product(isa: str | None, threads: int, rows: int) -> Tensor:
        ours = kernels(weights, group, activations, isa, threads)
        return ours.linear_fp32(x[:rows], ours.pack([matrix], segments=2))

    for rows in (1, 4, 40):
        truth = product(None, 1, rows)
        assert torch.equal(product(None, 3, rows), truth)
        for isa in ISAS:
            assert torch.equal(product(isa, 1, rows), truth)


@every_weight
@every_activation
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_partial_sums_of_ranks_join_to_the_bits_of_one(
    weights: Weights, group: int, activations: Activations, tp: int
) -> None:
    ours = kernels(weights, group, activations)
    depth = 16 * group
    x, matrix = some(7, depth, 8), some(96, depth, 9)
    whole = ours.linear_fp32(x, ours.pack([matrix], segments=8))
    share = depth // tp
    parts = [slice(rank * share, (rank + 1) * share) for rank in range(tp)]
    sums = [ours.linear_fp32(x[:, part].contiguous(), ours.pack([matrix[:, part]], 8 // tp)) for part in parts]
    assert torch.equal(join_pairwise(torch.stack(sums)), whole)


@every_weight
def test_parts_are_laid_out_as_one(weights: Weights, group: int) -> None:
    ours = kernels(weights, group)
    whole = some(300, 160, 10)
    parts = ours.pack([whole[:70], whole[70:71], whole[71:]])
    assert torch.equal(parts.data, ours.pack([whole]).data)


@every_weight
def test_bias_is_added_before_the_sum_is_rounded(weights: Weights, group: int) -> None:
    ours = kernels(weights, group)
    x, bias = some(5, 128, 11), some(1, 70, 12)[0]
    weight = ours.pack([some(70, 128, 13)])
    wide = ours.linear_fp32(x, weight)
    assert torch.equal(ours.linear(x, weight, bias), (wide + bias.float()).to(torch.bfloat16))
    assert torch.equal(ours.linear(x, weight), wide.to(torch.bfloat16))


@every_isa
def test_a_tied_vocabulary_is_kept_once_in_8_bits(isa: str) -> None:
    ours = kernels("int4", 64, isa=isa)
    rows = some(200, 300, 14)
    weight = ours.tied(rows)
    assert weight.format == ours.head(rows).format == "int8"
    kept = dequantise(quantise(rows, 8, 64)).to(torch.bfloat16)
    ids = torch.tensor([0, 199, 63, 64, 7, 250, -1])
    found = ours.embedding(ids + 1000, weight, first=1000)
    assert torch.equal(found[:5], kept[ids[:5]])
    assert not found[5:].any()


def test_the_class_names_what_changes_bits() -> None:
    assert kernels("int4", 0).name == "fma-int4g64"
    assert kernels("int8", 64, "int8").name == "fma-int8g64a8"


def test_a_weight_of_4_bits_takes_four_and_a_half() -> None:
    weight: Weight = kernels("int4", 64).pack([some(256, 512)])
    assert weight.bytes == pytest.approx(256 * 512 * 4.5 / 8, abs=64)
