"""Runs tests/triton in Triton's interpreter: it must be chosen before Triton is imported, so in another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to interpret")
pytestmark = pytest.mark.timeout(1200)

TESTS = Path(__file__).parents[1] / "triton"


@pytest.mark.parametrize("tests", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_in_the_interpreter(tests: str) -> None:
    """Nothing may be skipped there: a skip would hide that the interpreter was not on."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-m", tests, str(TESTS)]
    run = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=TESTS.parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0 and "skipped" not in run.stdout, run.stdout[-8000:] + run.stderr[-2000:]
