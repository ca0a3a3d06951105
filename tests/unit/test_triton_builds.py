"""Every Triton kernel compiles ahead of time for each architecture, in every form it can be launched in.

No GPU is needed: Triton brings its own assembler. Compilers run in processes of their own, on an empty cache.
"""

import ast
import importlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")

from rayline.kernels.triton_launch import MODEL, Kernel, Variant

pytestmark = pytest.mark.timeout(1200)  # a minute of two cores, which others may be using

ROOT = Path(__file__).parents[2]
MODULES = (
    "triton_attention",
    "triton_edits",
    "triton_elementwise",
    "triton_product",
    "triton_quant",
    "triton_reduce",
    "triton_rounding",
    "triton_rowwise",
    "triton_sampling",
    "triton_truncation",
)
# A program's shared memory in bytes, as NVIDIA's tables of compute capabilities have it.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


# Multiply-adds, and products and sums without a rounding mode, which NVIDIA's assembler may join to such.
FUSED = re.compile(r"\b(?:fma\.[a-z0-9.]*f32|(?:mul|add|sub)\.f32)\w*")


@dataclass(frozen=True)
class Build:
    module: str
    kernel: int
    variant: Variant
    dtype: str
    architecture: int


@dataclass(frozen=True)
class Built:
    build: Build
    shared_bytes: int
    cubin_bytes: int
    fused: tuple[str, ...]
    is_in_order: bool | None


def kernels(module: str) -> tuple[Kernel, ...]:
    found: tuple[Kernel, ...] = importlib.import_module(f"rayline.kernels.{module}").KERNELS
    return found


def builds() -> Iterator[Build]:
    """Every variant for every architecture in bf16; one in fp16, which only names other instructions, of each kernel
    that takes numbers of the model's dtype."""
    for module in MODULES:
        for at, kernel in enumerate(kernels(module)):
            variants = sorted(kernel.variants, key=repr)
            architectures = [each for each in SHARED_BYTES if each >= kernel.architecture]
            yield from (Build(module, at, v, "bf16", architecture) for v in variants for architecture in architectures)
            if MODEL in kernel.types.values():
                yield Build(module, at, variants[0], "fp16", 90)


def compiled(build: Build) -> Built:
    """In a process of its own."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernels(build.module)[build.kernel]
    types, constants = kernel.signature(build.variant, build.dtype)
    names = kernel.function.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned(build.variant)}
    source = ASTSource(
        fn=kernel.function, signature={name: types[name] for name in names}, constexprs=constants, attrs=aligned
    )
    options = {"num_warps": build.variant.warps, "num_stages": build.variant.stages, "enable_fp_fusion": False}
    binary = triton.compile(source, target=GPUTarget("cuda", build.architecture, 32), options=options)
    fused = tuple(sorted(set(FUSED.findall(binary.asm["ptx"]))))
    return Built(build, binary.metadata.shared, len(binary.asm["cubin"]), fused, is_in_order(binary.asm["ptx"]))


def is_in_order(ptx: str) -> bool | None:
    """Whether all threads have written before a release to other devices, and none reads before the acquire. None where
    nothing is released."""
    before, release, after = ptx.partition("atom.global.sys.release.exch.b32")
    if not release:
        return None
    written = before[before.rindex("st.global") :]
    acquired = after[after.rindex("atom.global.sys.acquire.add.u32") :]
    return "bar.sync" in written and "bar.sync" in acquired[: acquired.index("ld.global")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Built]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'typing'}:{ROOT / 'tests' / 'unit'}")
        workers = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            return list(pool.map(compiled, builds(), chunksize=4))


def test_every_form_compiles_for_every_architecture(built: list[Built]) -> None:
    assert len(built) == len(list(builds()))
    assert all(each.cubin_bytes > 1000 for each in built)
    assert {each.build.architecture for each in built} == set(SHARED_BYTES)


def test_every_form_fits_into_the_shared_memory_of_its_architecture(built: list[Built]) -> None:
    large = [each for each in built if each.shared_bytes > SHARED_BYTES[each.build.architecture]]
    assert not large


def test_no_product_is_fused_with_a_sum_behind_the_back_of_the_exact_class(built: list[Built]) -> None:
    """Two forms of one kernel would fuse differently."""
    assert [(each.build, each.fused) for each in built if each.fused] == []


def test_sums_over_ranks_are_released_and_acquired_by_whole_programs(built: list[Built]) -> None:
    releasing = [each for each in built if each.is_in_order is not None]
    assert {each.build.module for each in releasing} == {"triton_reduce"}
    assert {each.build.architecture for each in releasing} == set(SHARED_BYTES)
    assert all(each.is_in_order for each in releasing)
    ptx = "st.global; bar.sync 0; atom.global.sys.release.exch.b32; atom.global.sys.acquire.add.u32; ld.global"
    assert is_in_order(ptx) is False, "nobody waits for the thread that acquires"


def test_every_triton_function_that_is_launched_is_compiled_and_tested() -> None:
    """A function that no other one calls is an entry: it must be a kernel of its module, and named in a test."""
    wrapped = {kernel.name: module for module in MODULES for kernel in kernels(module)}
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "triton").glob("test_*.py"))
    found = set()
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("triton" in ast.unparse(d) for d in node.decorator_list):
                assert path.stem.endswith("_code"), f"{path}: Triton functions live in files of their own"
                if not node.name.startswith("_"):
                    found.add(node.name)
                    assert path.stem == f"{wrapped[node.name]}_code"
                    assert f"from rayline.kernels.{wrapped[node.name]} import" in tests or (
                        f"import {wrapped[node.name]}" in tests
                    )
    assert found == set(wrapped)
    assert {path.stem for path in (ROOT / "kernels").glob("triton_*_code.py")} == {f"{m}_code" for m in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_numbers_of_a_step_are_not_specialised(module: str) -> None:
    """Else a rank would compile while it serves, whenever a batch has a size not seen before."""
    for kernel in kernels(module):
        names = kernel.function.arg_names
        fixed = {names[at] if isinstance(at, int) else at for at in kernel.function.do_not_specialize}
        assert {name for name, type_ in kernel.types.items() if type_ == "i32"} == fixed
        assert set(kernel.unaligned) == set(kernel.function.do_not_specialize_on_alignment or ())
        constants = {name for variant in kernel.variants for name, _ in variant.constants}
        assert list(names) == [*kernel.types, *(name for name in names if name in constants)]
