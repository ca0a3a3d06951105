"""Triton's interpreter without what takes most of its time."""

from dataclasses import replace
from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter


class Replaced:
    """What the interpreter gets instead of its own record of replaced functions."""

    def restore(self) -> None:
        """They stay replaced."""


def hurry() -> None:
    """Replace Triton's language by the interpreter's for the rest of this process.

    The interpreter would do so again at each call inside a kernel, and `tl.sum` is one. Nor does it look for sums that
    overflow, which it would say nothing of.
    """
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: Replaced()
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
