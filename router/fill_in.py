"""Fill-in-the-middle: the output goes between a prefix and a suffix, marked by the special tokens of code models.

Prefix-suffix-middle order of Bavarian et al. 2022 (https://arxiv.org/abs/2207.14255), which all of these models know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rayline.protos.errors import InvalidRequest
from rayline.router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Marks:
    """The tokens before the prefix, before the suffix (in the gap's place) and before the middle."""

    prefix: str
    suffix: str
    middle: str


BAR = "\uff5c"  # the full-width bar of DeepSeek's special tokens

FORMS = (
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 and 3 Coder, CodeGemma
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite, Stable Code
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Marks("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    Marks(
        f"<{BAR}fim▁begin{BAR}>", f"<{BAR}fim▁hole{BAR}>", f"<{BAR}fim▁end{BAR}>"
    ),  # DeepSeek-Coder, DeepSeek-V2 and V3
    Marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # CodeGeeX 4, GLM 4
    Marks("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),  # Seed-Coder
    Marks("[PREFIX]", "[SUFFIX]", ""),  # Codestral, which takes the suffix first and no mark for the middle
)


def fill_in_ids(tokenizer: Tokenizer, prefix: str, suffix: str) -> tuple[int, ...]:
    """A prompt whose continuation fills the gap. Raises InvalidRequest for a model that has no such tokens."""
    before = tokenizer.encode("", add_special_tokens=True)  # bos, of tokenizers that begin with one
    head, tail = (tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix))
    for form in FORMS:
        marks = [tokenizer.token_id(mark) for mark in (form.prefix, form.suffix, form.middle) if mark]
        ids = [mark for mark in marks if mark is not None]
        if len(ids) < len(marks):
            continue
        if not form.middle:
            return (*before, ids[1], *tail, ids[0], *head)
        return (*_without_end(before, tokenizer), ids[0], *head, ids[1], *tail, ids[2])
    raise InvalidRequest(
        "suffix cannot be used: this model's vocabulary has no fill-in-the-middle tokens", field="suffix"
    )


def _without_end(before: Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    """Some tokenizers put an end of sequence behind every text; inside a prompt it would end it."""
    return before[:-1] if before and before[-1] == tokenizer.eos_id != tokenizer.bos_id else before
