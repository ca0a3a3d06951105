"""The bf16 product in C++: against torch in fp64, and the promise that a row's bits depend on that row alone."""

import pytest
import torch
from native import every_isa, native_kernels
from torch import Tensor

from rayline.kernels.library import DOT_PRODUCT_ISA, ISAS, prefers_dpbf16
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.pages import count_huge_pages
from rayline.kernels.tree import join_pairwise

UNIT = 2.0**-24  # of fp32's rounding
BF16_UNIT = 2.0**-8
any_isa = pytest.mark.parametrize("isa", (*ISAS, DOT_PRODUCT_ISA))
each_class = pytest.mark.parametrize("isa", ("avx512", "avx2", DOT_PRODUCT_ISA))

SHAPES = [  # rows, columns, depth, segments
    (1, 64, 128, 1),
    (3, 1, 2, 8),
    (5, 31, 6, 8),
    (2, 100, 34, 2),
    (7, 129, 530, 4),
    (13, 96, 576, 8),
    (30, 65, 300, 8),
    (70, 40, 64, 1),
    (259, 16, 48, 2),
]


def randoms(rows: int, columns: int, depth: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, depth, generator=generator).bfloat16()
    return x, torch.randn(columns, depth, generator=generator).bfloat16()


def packed_matrix(kernels: NativeKernels, weight: Tensor) -> Tensor:
    """What a packed weight holds, padding included, by the layout that native/gemm.h draws."""
    depth = weight.shape[1]
    data = kernels.pack([weight]).data
    return data.view(-1, depth // 2, 64, 2).permute(0, 2, 1, 3).reshape(-1, depth)


@any_isa
@pytest.mark.parametrize(("rows", "columns", "depth", "segments"), SHAPES)
def test_a_product_is_within_fp32_rounding_of_the_exact_one(
    isa: str, rows: int, columns: int, depth: int, segments: int
) -> None:
    kernels = native_kernels(isa)
    x, weight = randoms(rows, columns, depth)
    bias = torch.randn(columns).bfloat16()
    packed = kernels.pack([weight], segments)
    exact = x.double() @ weight.double().T
    room = x.double().abs() @ weight.double().abs().T * depth * UNIT
    assert torch.all((kernels.linear_fp32(x, packed) - exact).abs() <= room)
    rounded = kernels.linear(x, packed, bias)
    assert torch.all((rounded - (exact + bias)).abs() <= room + (exact + bias).abs() * BF16_UNIT)


@any_isa
def test_the_bf16_result_is_the_fp32_sum_with_the_bias_rounded_once(isa: str) -> None:
    kernels = native_kernels(isa)
    x, weight = randoms(9, 90, 66)
    bias = torch.randn(90).bfloat16()
    packed = kernels.pack([weight], 4)
    sums = kernels.linear_fp32(x, packed)
    assert torch.equal(kernels.linear(x, packed), sums.bfloat16())
    assert torch.equal(kernels.linear(x, packed, bias), (sums + bias.float()).bfloat16())


@pytest.mark.parametrize(("rows", "columns", "depth", "segments"), SHAPES)
def test_all_instruction_sets_of_the_fma_class_give_the_same_bits(
    rows: int, columns: int, depth: int, segments: int
) -> None:
    x, weight = randoms(rows, columns, depth)
    sums = []
    for isa in ISAS:
        kernels = native_kernels(isa)
        sums.append(kernels.linear_fp32(x, kernels.pack([weight], segments)))
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@each_class
@pytest.mark.parametrize(("columns", "depth", "segments"), [(200, 1042, 8), (129, 600, 1)])
def test_a_row_has_the_same_bits_in_any_batch(isa: str, columns: int, depth: int, segments: int) -> None:
    kernels = native_kernels(isa)
    x, weight = randoms(70, columns, depth)
    packed = kernels.pack([weight], segments)
    alone = torch.cat([kernels.linear_fp32(row[None], packed) for row in x])
    for rows in range(1, 71):
        first = (70 - rows) // 2
        assert torch.equal(kernels.linear_fp32(x[first : first + rows], packed), alone[first : first + rows])
    order = torch.randperm(70)
    assert torch.equal(kernels.linear_fp32(x[order], packed), alone[order])


@each_class
def test_rows_beyond_one_block_have_the_bits_they_have_alone(isa: str) -> None:
    kernels = native_kernels(isa)
    x, weight = randoms(600, 70, 130)
    packed = kernels.pack([weight], 8)
    together = kernels.linear_fp32(x, packed)
    for row in (0, 199, 200, 255, 256, 400, 599):
        assert torch.equal(kernels.linear_fp32(x[row : row + 1], packed)[0], together[row])


@each_class
@pytest.mark.parametrize("rows", (1, 6, 12, 13, 40))
@pytest.mark.parametrize("columns", (30, 64, 200, 320))
def test_the_number_of_threads_changes_no_bit(isa: str, rows: int, columns: int) -> None:
    x, weight = randoms(rows, columns, 1000)
    sums = []
    for threads in (1, 2, 3):
        kernels = native_kernels(isa, threads)
        sums.append(kernels.linear_fp32(x, kernels.pack([weight], 8)))
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@any_isa
@pytest.mark.parametrize("tp", (2, 4, 8))
def test_partial_sums_of_ranks_join_to_the_bits_of_the_whole(isa: str, tp: int) -> None:
    kernels = native_kernels(isa)
    x, weight = randoms(3, 70, 1040)
    whole = kernels.linear_fp32(x, kernels.pack([weight], 8))
    pairs = zip(x.chunk(tp, dim=1), weight.chunk(tp, dim=1), strict=True)
    partials = [kernels.linear_fp32(part.contiguous(), kernels.pack([columns], 8 // tp)) for part, columns in pairs]
    assert torch.equal(join_pairwise(torch.stack(partials)), whole)


def test_the_order_of_the_sum_shows_in_the_bits() -> None:
    """So the tests of equal bits would see another order."""
    kernels = native_kernels()
    x, weight = randoms(3, 70, 1040)
    one, eight = (kernels.linear_fp32(x, kernels.pack([weight], segments)) for segments in (1, 8))
    assert not torch.equal(one, eight)


def test_the_two_classes_differ_in_bits_and_in_name() -> None:
    x, weight = randoms(3, 70, 1040)
    fma, pairs = native_kernels("avx512"), native_kernels(DOT_PRODUCT_ISA)
    assert (fma.name, pairs.name) == ("fma", "dpbf16")
    sums = [kernels.linear_fp32(x, kernels.pack([weight])) for kernels in (fma, pairs)]
    assert not torch.equal(sums[0], sums[1])


@every_isa
@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("columns", (1, 63, 64, 200))
@pytest.mark.parametrize("depth", (2, 30, 32, 98))
def test_a_packed_weight_holds_every_number_and_zeros_behind(isa: str, threads: int, columns: int, depth: int) -> None:
    _, weight = randoms(1, columns, depth)
    held = packed_matrix(native_kernels(isa, threads), weight)
    assert torch.equal(held[:columns], weight)
    assert not held[columns:].any()
    assert held.shape[0] % 64 == 0


@every_isa
def test_row_blocks_pack_as_if_they_were_one_matrix(isa: str) -> None:
    kernels = native_kernels(isa, threads=2)
    blocks = [randoms(1, rows, 70, seed=rows)[1] for rows in (48, 7, 7, 100, 64)]
    assert torch.equal(kernels.pack(blocks).data, kernels.pack([torch.cat(blocks)]).data)


@every_isa
def test_slices_of_rows_and_of_columns_pack_without_a_copy(isa: str) -> None:
    kernels = native_kernels(isa)
    _, weight = randoms(1, 200, 160)
    for part in (weight[40:168], weight[:, 80:], weight[::3, :40]):
        assert torch.equal(kernels.pack([part]).data, kernels.pack([part.contiguous()]).data)


def test_what_cannot_be_packed_is_refused() -> None:
    kernels = native_kernels()
    _, weight = randoms(1, 64, 64)
    with pytest.raises(ValueError, match="even"):
        kernels.pack([weight[:, :63]])
    with pytest.raises(ValueError, match="segments"):
        kernels.pack([weight], 3)
    with pytest.raises(ValueError, match="depth"):
        kernels.pack([weight, weight[:, :32]])
    with pytest.raises(ValueError, match="bf16"):
        kernels.pack([weight.float()])
    with pytest.raises(ValueError, match="one piece"):
        kernels.pack([weight.T])


@every_isa
def test_rows_are_looked_up_in_a_table_and_in_a_packed_weight(isa: str) -> None:
    kernels = native_kernels(isa)
    _, weight = randoms(1, 150, 70)
    ids = torch.tensor([1000, 1149, 1063, 1064, 999, 1150, 0])
    expected = torch.cat([weight[[0, 149, 63, 64]], torch.zeros(3, 70, dtype=torch.bfloat16)])
    for table in (kernels.table(weight), kernels.pack([weight])):
        assert torch.equal(kernels.embedding(ids, table, first=1000), expected)


def test_free_huge_pages_are_counted_in_all_zones() -> None:
    zones = "Node 0, zone    DMA32     77     28     36     28     31     24     21     21     19      5    245\n"
    zones += "Node 0, zone   Normal  53372  39237  31854  22763  13162  10611   6269   2042   1242      4      1\n"
    assert count_huge_pages(zones) == 5 + 2 * 245 + 4 + 2 * 1


def test_dot_products_are_preferred_where_they_are_the_faster_instruction() -> None:
    assert prefers_dpbf16("AuthenticAMD", has_avx512_bf16=True)
    assert not prefers_dpbf16("AuthenticAMD", has_avx512_bf16=False)
    assert not prefers_dpbf16("GenuineIntel", has_avx512_bf16=True)
