"""A model's tokenizer, read from its directory by the `tokenizers` library alone.

Nothing here decides where text may be cut (`detokenizer.py`) or how a chat is laid out (`chat.py`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from rayline.protos.conversation import Conversation
from rayline.protos.errors import InvalidRequest, ModelError
from rayline.router.chat import ChatTemplates

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARK = "\u2581"  # SentencePiece's visible blank


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in for each byte (GPT-2's table): character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class DecoderKind:
    """How token strings become text. byte_level: tokens spell bytes; byte_fallback: some are <0xNN>."""

    byte_level: bool
    byte_fallback: bool
    single: bool


class Tokenizer:
    """Text to ids and back. Reading is thread-safe: nothing changes after the constructor."""

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], templates: Mapping[str, str]):
        """`config` is the content of tokenizer_config.json, `templates` its chat templates by name."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._config = config
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.chat_templates = self._chat_templates(templates)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read tokenizer.json, tokenizer_config.json and the chat templates of a model directory.

        Without a tokenizer.json, `transformers` converts what there is. Raises ModelError naming the file.
        """
        config = _read_json(path / "tokenizer_config.json")
        file = path / "tokenizer.json"
        if not file.exists():
            return cls(_converted(path), config, _templates(path, config))
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
            raise ModelError(f"{file} cannot be read as a tokenizer: {error}", field="path") from error
        return cls(backend, config, _templates(path, config))

    def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of `text`; with `add_special_tokens` also those the model expects around it (bos).

        Other threads run meanwhile: the library gives up the interpreter's lock for batches alone, so this is one.
        Raises InvalidRequest for text that no UTF-8 can hold: JSON lets half a surrogate pair through.
        """
        try:
            (found,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError:
            raise InvalidRequest(
                "prompt holds half of a surrogate pair, which is no character", field="prompt"
            ) from None
        return tuple(found.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`. Ids outside the vocabulary stand for nothing; bytes that are no UTF-8 for U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, None outside the vocabulary."""
        return self._backend.id_to_token(token_id)

    def token_id(self, token: str) -> int | None:
        """The id of a token by the vocabulary's own spelling."""
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds in the middle of a text; a special token's are its name."""
        token = self.token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return token.encode()
        if self.decoder.byte_level:
            return spelled_bytes(token)
        if self.decoder.byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.replace(SPACE_MARK, " ").encode()

    @property
    def special_names(self) -> dict[str, int]:
        """Special tokens by name."""
        return {name: i for i in self.special_ids if (name := self.token(i)) is not None}

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; bytes that are no character by themselves show as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    @cached_property
    def decoder(self) -> DecoderKind:
        """What the decoder in tokenizer.json is made of."""
        tree = json.loads(self._backend.to_str()).get("decoder") or {}
        parts = [part["type"] for part in tree.get("decoders", [tree]) if "type" in part]
        return DecoderKind("ByteLevel" in parts, "ByteFallback" in parts, len(parts) == 1)

    def render_chat(self, conversation: Conversation) -> str:
        """The prompt for a conversation. Raises InvalidRequest without a template, or in the template's words."""
        if self.chat_templates is None:
            raise InvalidRequest("messages cannot be used: this model has no chat template", field="messages")
        return self.chat_templates.render(conversation)

    @property
    def template_text(self) -> str:
        """The source of the template that lays out tools, "" where there is none."""
        return "" if self.chat_templates is None else self.chat_templates.text

    def _id_of(self, key: str) -> int | None:
        name = _content(self._config.get(key))
        return None if name is None else self._backend.token_to_id(name)

    def _chat_templates(self, templates: Mapping[str, str]) -> ChatTemplates | None:
        if not templates:
            return None
        names = {key: _content(value) for key, value in self._config.items() if key.endswith("_token")}
        return ChatTemplates(templates, {key: name for key, name in names.items() if name is not None})


def spelled_bytes(token: str) -> bytes:
    """The bytes a byte-level token spells; an added token with a character outside the alphabet is plain UTF-8."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _content(value: object) -> str | None:
    """A token's text: a plain string, or the content of an AddedToken record."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}", field="path") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{file} must hold an object, not {type(tree).__name__}", field="path")
    return tree


def _templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; a chat_template.jinja wins over tokenizer_config.json, as in transformers."""
    found: dict[str, str] = {}
    in_config = config.get("chat_template")
    if isinstance(in_config, str):
        found["default"] = in_config
    elif isinstance(in_config, list):
        found |= {entry["name"]: entry["template"] for entry in in_config}
    if (file := path / "chat_template.jinja").exists():
        found["default"] = file.read_text(encoding="utf-8")
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = file.read_text(encoding="utf-8")
    return found


def _converted(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a directory without tokenizer.json, converted by transformers."""
    try:
        from transformers import AutoTokenizer  # heavy, and only needed for such directories

        backend = AutoTokenizer.from_pretrained(str(path), local_files_only=True).backend_tokenizer
    except (ImportError, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{path} holds no tokenizer.json and none that converts: {error}", field="path") from error
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(f"{path} holds no tokenizer.json and its tokenizer cannot be converted", field="path")
    return backend
