"""Where requests bring their grammars: each distinct one is checked once, beside the event loop, and remembered."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Self

from rayline.protos.errors import InvalidRequest, Overloaded, out_of_range
from rayline.protos.types import StructuredOutput
from rayline.router.grammars.grammar import FIELD
from rayline.router.grammars.sandbox import GrammarSandbox
from rayline.router.tokenizer import Tokenizer

MAX_TEXT_BYTES = 256 * 1024
MAX_WAITING = 64
MAX_REMEMBERED = 1024
MAX_REMEMBERED_BYTES = 32 * 2**20
SANDBOXES = 2  # a hostile grammar holds up one for a few seconds

Key = tuple[str, str, str]
"""Kind, text, field."""


class GrammarDesk:
    """Grammars of one model's tokenizer. Thread-safe. Processes are started with the first question."""

    def __init__(self, special_ids: Mapping[str, int], vocab_size: int):
        """`special_ids`: the tokenizer's special tokens by name."""
        self.special_ids = dict(special_ids)
        self._free: SimpleQueue[GrammarSandbox] = SimpleQueue()
        for _ in range(SANDBOXES):
            self._free.put(GrammarSandbox(special_ids, vocab_size))
        self._pool = ThreadPoolExecutor(SANDBOXES, thread_name_prefix="grammar")
        self._known: OrderedDict[Key, str | InvalidRequest] = OrderedDict()
        self._known_bytes = 0
        self._lock = threading.Lock()
        self._waiting = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        return cls(tokenizer.special_names, tokenizer.vocab_size)

    async def grammar(self, wanted: StructuredOutput, field: str = FIELD) -> str:
        """The text for `TokenRules.grammar`. Raises InvalidRequest with `field`, or Overloaded."""
        return await self._answer((wanted.kind, wanted.text, field))

    async def checked(self, text: str, field: str) -> str:
        """The same for a text that `tool_grammar` made."""
        return await self._answer(("text", text, field))

    def grammar_now(self, wanted: StructuredOutput, field: str = FIELD) -> str:
        """`grammar` for callers without an event loop. Waits."""
        return self._now((wanted.kind, wanted.text, field))

    def checked_now(self, text: str, field: str) -> str:
        """`checked` for callers without an event loop. Waits."""
        return self._now(("text", text, field))

    def close(self) -> None:
        """End the processes. Nothing may be asked any more."""
        self._pool.shutdown()
        while not self._free.empty():
            self._free.get().close()

    async def _answer(self, key: Key) -> str:
        _check_size(key)
        if (known := self._recalled(key)) is not None:
            return _given(known)
        if self._waiting >= MAX_WAITING:
            raise Overloaded(
                f"{self._waiting} grammars wait to be checked: at most {MAX_WAITING} may",
                field=key[2],
                retry_after_s=1.0,
            )
        self._waiting += 1
        try:
            return _given(await asyncio.get_running_loop().run_in_executor(self._pool, self._found, key))
        finally:
            self._waiting -= 1

    def _now(self, key: Key) -> str:
        _check_size(key)
        return _given(self._found(key))

    def _found(self, key: Key) -> str | InvalidRequest:
        if (known := self._recalled(key)) is not None:
            return known
        sandbox = self._free.get()
        try:
            found: str | InvalidRequest = sandbox.text(*key)
        except InvalidRequest as error:
            found = error
        finally:
            self._free.put(sandbox)
        self._remember(key, found)
        return found

    def _recalled(self, key: Key) -> str | InvalidRequest | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _remember(self, key: Key, found: str | InvalidRequest) -> None:
        with self._lock:
            if key in self._known:
                return
            self._known[key] = found
            self._known_bytes += _size(key, found)
            while len(self._known) > MAX_REMEMBERED or self._known_bytes > MAX_REMEMBERED_BYTES:
                self._known_bytes -= _size(*self._known.popitem(last=False))


def _check_size(key: Key) -> None:
    _, text, field = key
    size = len(text.encode(errors="replace"))
    if size > MAX_TEXT_BYTES:
        raise out_of_range(field, f"{size} bytes", f"up to {MAX_TEXT_BYTES} bytes")


def _size(key: Key, found: str | InvalidRequest) -> int:
    return len(key[1]) + (len(found) if isinstance(found, str) else len(found.message))


def _given(found: str | InvalidRequest) -> str:
    """The text; the error is raised anew, as exceptions hold the frames they pass."""
    if isinstance(found, InvalidRequest):
        raise InvalidRequest(found.message, field=found.field)
    return found
