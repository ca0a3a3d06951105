"""The process that tries grammars out: `python -m rayline.router.grammars.child`, one JSON line in, one out.

The grammar library counts most of its work, not all: some schemas of 2 kB keep it busy for minutes, others overflow the
stack, and neither can be stopped inside of a process that serves. So they are met here first, within limits of time,
memory and stack that are narrower than those of the workers: what passes here, passes there.
"""

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

import llguidance

from rayline.cluster.grammar_limits import COMPILE_STACK_BYTES, failure, parser_limits
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import StructuredOutput
from rayline.router.grammars.grammar import grammar_text

CPU_LIMIT_S = 0.5  # of computing, whatever else the machine does
MEMORY_LIMIT_BYTES = 512 * 2**20  # beside what the process begins with
BYTES = 256


class StandIn:
    """A vocabulary of all single bytes and the special tokens, each at its own id. Grammars see no other difference."""

    bos_token_id = None

    def __init__(self, special_ids: Mapping[str, int], vocab_size: int):
        size = max(vocab_size, BYTES + len(special_ids) + 1, max(special_ids.values(), default=0) + 1)
        self.tokens = [b""] * (size + 1)
        self.eos_token_id = size
        self.tokens[size] = b"\xff<end>"
        for name, token_id in special_ids.items():
            self.tokens[token_id] = b"\xff" + name.encode()
        self.special_token_ids = [*special_ids.values(), size]
        free = (i for i, token in enumerate(self.tokens) if not token)
        self._ids = [next(free) for _ in range(BYTES)]
        for byte, token_id in enumerate(self._ids):
            self.tokens[token_id] = bytes([byte])

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text: the library asks for those of what a grammar forces."""
        return [self._ids[byte] for byte in (text if isinstance(text, bytes) else text.encode())]


def answer(order: Mapping[str, Any], vocabulary: llguidance.LLTokenizer, special_ids: Mapping[str, int]) -> str:
    """The grammar's text. Raises InvalidRequest for one that is malformed or beyond the limits."""
    field, kind = order["field"], order["kind"]
    text = order["text"] if kind == "text" else grammar_text(StructuredOutput(kind, order["text"]), special_ids, field)
    matcher = llguidance.LLMatcher(vocabulary, text, log_level=0, limits=parser_limits())
    if failure(matcher) is None:
        matcher.compute_bitmask()
    if (why := failure(matcher)) is not None:
        raise InvalidRequest(f"{field} cannot be followed: {why}", field=field)
    return str(text)


def serve(orders: TextIO, answers: TextIO) -> None:
    """Answer order after order until there are no more. The first line says which special tokens there are."""
    setting = json.loads(orders.readline())
    special_ids = setting["special_ids"]
    vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(StandIn(special_ids, setting["vocab_size"])))
    _limit_memory()
    _say(answers, {})
    for line in orders:
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)  # the kernel then ends this process with SIGPROF
        try:
            reply = {"grammar": answer(json.loads(line), vocabulary, special_ids)}
        except InvalidRequest as error:
            reply = {"error": error.message}
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _say(answers, reply)


def _say(answers: TextIO, reply: Mapping[str, str]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    threading.stack_size(COMPILE_STACK_BYTES)
    thread = threading.Thread(target=serve, args=(sys.stdin, sys.stdout))
    thread.start()
    thread.join()
