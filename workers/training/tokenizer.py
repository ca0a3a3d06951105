"""The byte-level BPE tokenizer of the embedded model, with its specials and chat template.

Run `python -m rayline.workers.training.tokenizer --out deploy/embedded` to train and write it.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rayline.workers.training.corpus import BEGIN, END, build_corpus

VOCABULARY_TOKENS = 4096
CONTEXT_TOKENS = 2048
PAD = "<|pad|>"
SPECIALS = (PAD, BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>")
PAD_ID, BEGIN_ID, END_ID = 0, 1, 2

# Line breaks keep the indentation that follows them, so that most lines of code start with a
# single token; numbers fall into pairs of digits; a word keeps one blank in front of it.
PIECES = "|".join(
    (
        r"[ \t]+(?=\r?\n)",
        r"(?:\r?\n)+[ \t]*",
        r" ?__\p{L}+__",
        r" ?_*\p{L}[\p{L}\p{M}]*",
        r" ?\p{N}{1,2}",
        r" ?[^\s\p{L}\p{N}_]+",
        r" ?_+",
        r"[^\S\r\n]+(?!\S)",
        r"\s+",
    )
)

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learns the merges; the specials take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, BEGIN_ID)],
    )
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """What transformers needs besides tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": list(SPECIALS[3:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(tokenizer_config(), indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE + "\n",
    }
    for name, text in texts.items():
        unfinished = folder / f".{name}.part"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)


def main() -> None:
    """Trains on the training split's whole files and writes the result."""
    parser = argparse.ArgumentParser(description="Train the embedded model's tokenizer.")
    parser.add_argument("--out", type=Path, default=Path("deploy/embedded"))
    folder: Path = parser.parse_args().out
    corpus = build_corpus()
    tokenizer = train_tokenizer(file.text for file in corpus.train_files)
    write_tokenizer(tokenizer, folder)
    texts = [file.text for file in corpus.held_out_files]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    print(f"held out: {sum(len(text.encode()) for text in texts) / tokens:.2f} bytes per token")


if __name__ == "__main__":
    main()
