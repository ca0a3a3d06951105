"""Small tokenizers of the kinds in use, built on the spot."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rayline.router import tokenizer as ours

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "def f(x): return x + 1",
    "Grüße aus Köln, naïve café",
    "日本語のテキスト と 中文",
    "emoji 😀😃 👩‍👩‍👧 🇩🇪",
]
SPECIALS = ["<pad>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen: BPE over bytes, with a special token and an ordinary added one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    tokenizer.add_tokens(["<tool call>", "über"])
    return tokenizer


def byte_level_in_a_sequence() -> Tokenizer:
    """A byte-level decoder followed by another one, so that neighbours matter."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: pieces with a visible blank, single bytes as <0xNN> for what has no piece."""
    pieces = ["<unk>", *SPECIALS[1:], *BYTES, "▁"]
    pieces += sorted(set("".join(LINES[:3])) - {" "})
    merges = [("▁", "t"), ("t", "h"), ("▁t", "he"), ("h", "e"), ("▁", "▁"), ("▁▁", "▁▁")]
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ["<unk>", *SPECIALS[1:]]])
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5: a unigram model over words with a visible blank."""
    words = sorted({word for line in LINES for word in line.split()})
    pieces = [("<unk>", -10.0), ("▁", -3.0), *((f"▁{word}", -4.0) for word in words)]
    pieces += [(letter, -6.0) for letter in sorted(set("".join(LINES)) - {" "})]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: words and ##continuations."""
    letters = sorted(set("".join(LINES)) - {" "})
    pieces = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), "the", "##s", "dog"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "byte_level_in_a_sequence": byte_level_in_a_sequence,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "word_piece": word_piece,
}


def served(kind: str, template: str | None = None, **config: Any) -> ours.Tokenizer:
    """Our tokenizer around one of the kinds."""
    return ours.Tokenizer(KINDS[kind](), config, {} if template is None else {"default": template})


def write(folder: Path, kind: str, **config: Any) -> Path:
    """A model directory with only a tokenizer."""
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
