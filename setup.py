"""Builds the C++ kernels with whatever compiler there is. Without one the package installs and torch computes."""

import sys
from hashlib import sha256
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
SOURCES = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "kernels/native").glob("*.[ch]*"))
DIGEST = sha256(b"".join((HERE / source).read_bytes() for source in SOURCES)).hexdigest()  # as kernels/library.py does

# No fused or reordered arithmetic but what the sources write: the bits are the same for every compiler and CPU.
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # false alarms in the headers of AVX-512

setup(
    ext_modules=[
        Extension(
            "rayline.kernels._native",
            sources=[source for source in SOURCES if source.endswith(".cpp")],
            depends=[source for source in SOURCES if source.endswith(".h")],
            define_macros=[("RL_SOURCES", f'"{DIGEST}"')],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"] if sys.platform != "darwin" else [],
            language="c++",
            optional=True,
        )
    ],
    options={"build_ext": {"parallel": True}},
)
