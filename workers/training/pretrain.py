"""Trains the embedded model and its draft from the standard library's own source.

Run `python -m rayline.workers.training.pretrain --out deploy/embedded`; the defaults repeat the
shipped weights. `--checkpoints FOLDER` saves the state now and then, and resumes from it.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn
from tokenizers import Tokenizer
from torch import Tensor

from rayline.workers.training.compact_llama import (
    DRAFT_SHAPE,
    TARGET_SHAPE,
    CompactLlama,
    LlamaShape,
    write_model,
)
from rayline.workers.training.corpus import Corpus, build_corpus
from rayline.workers.training.tokenizer import CONTEXT_TOKENS, train_tokenizer, write_tokenizer

Report = Callable[[int, str], None]


@dataclass(frozen=True)
class TrainingSettings:
    """One training run. The schedule is warm up, hold, decay: until the decay begins a run does
    not depend on its length, so a checkpoint can be continued to any later end."""

    steps: int
    decay_steps: int
    warmup_steps: int = 40
    batch_tokens: int = 8192
    stable_sequence_tokens: int = 512
    decay_sequence_tokens: int = 1024
    # The last part of the decay sees the whole context.
    full_context_share_of_decay: float = 0.35
    matrix_learning_rate: float = 6e-3
    embedding_learning_rate: float = 4e-3
    matrix_weight_decay: float = 0.1
    largest_gradient_norm: float = 1.0
    seed: int = 1234
    threads: int = 2
    checkpoint_every_steps: int = 100
    evaluate_every_steps: int = 200
    quick_evaluation_tokens: int = 32768


TARGET_TRAINING = TrainingSettings(steps=1400, decay_steps=400)
DRAFT_TRAINING = TrainingSettings(steps=1200, decay_steps=400)


def token_stream(tokenizer: Tokenizer, documents: tuple[str, ...], seed: int) -> Tensor:
    """The tokens of all documents, one after the other in a shuffled order."""
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    tokens = [torch.tensor(one.ids, dtype=torch.int16) for one in encoded]
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return torch.cat([tokens[index] for index in order.tolist()])


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, a plateau, and a linear decay to zero."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    return warm * min(1.0, (settings.steps - step) / max(1, settings.decay_steps))


def sequence_tokens(step: int, settings: TrainingSettings) -> int:
    """Short sequences first, because they cost the least; the whole context at the end."""
    left = settings.steps - step
    if left > settings.decay_steps:
        return settings.stable_sequence_tokens
    if left > settings.decay_steps * settings.full_context_share_of_decay:
        return settings.decay_sequence_tokens
    return CONTEXT_TOKENS


def window_starts(stream_tokens: int, step: int, settings: TrainingSettings) -> list[int]:
    """Where a step's sequences begin. Every pass over the stream cuts it at other places and
    visits the pieces in another order, so the sequences of a batch come from many documents."""
    length = sequence_tokens(step, settings)
    rows = settings.batch_tokens // length
    windows = (stream_tokens - 1) // length - 1
    starts: list[int] = []
    for index in range(step * rows, (step + 1) * rows):
        turn, at = divmod(index, windows)
        generator = torch.Generator().manual_seed(settings.seed + turn)
        shift = int(torch.randint(length, (1,), generator=generator))
        order = torch.randperm(windows, generator=generator)
        starts.append(shift + int(order[at]) * length)
    return starts


def batch_at(stream: Tensor, step: int, settings: TrainingSettings) -> tuple[Tensor, Tensor]:
    """The inputs of a step and, one token further on, its targets."""
    count = sequence_tokens(step, settings) + 1
    starts = window_starts(len(stream), step, settings)
    rows = torch.stack([stream[start : start + count] for start in starts]).long()
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def make_optimizers(model: CompactLlama, settings: TrainingSettings) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not name.endswith("proj.weight")]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.matrix_weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=settings.embedding_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for group in (*muon.param_groups, *adam.param_groups):
        group["peak_lr"] = group["lr"]
    return muon, adam


@torch.no_grad()
def held_out_loss(model: CompactLlama, stream: Tensor) -> float:
    """Nats per token over windows of the whole context that do not overlap."""
    total, seen = 0.0, 0
    for start in range(0, len(stream) - 1, CONTEXT_TOKENS):
        window = stream[start : start + CONTEXT_TOKENS + 1].long()
        count = len(window) - 1
        total += float(model(window[None, :-1], window[None, 1:])) * count
        seen += count
    return total / seen


@contextmanager
def progress(name: str, steps: int) -> Iterator[Report]:
    """A bar on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield lambda step, text: print(f"{name} {step}/{steps} {text}", flush=True)
        return
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[text]}")) as bar:
        task = bar.add_task(name, total=steps, text="")
        yield lambda step, text: bar.update(task, completed=step, text=text)


class Trainer:
    """One model on its way through its steps."""

    def __init__(self, name: str, shape: LlamaShape, settings: TrainingSettings) -> None:
        torch.manual_seed(settings.seed)
        self.name = name
        self.settings = settings
        self.model = CompactLlama(shape)
        self.compiled = torch.compile(self.model, dynamic=False)
        self.optimizers = make_optimizers(self.model, settings)
        self.step = 0

    def save(self, folder: Path) -> None:
        """Keeps the newest state."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{self.name}.part"
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "model": self.model.state_dict(), "optimizers": optimizers}
        torch.save(state, unfinished)
        unfinished.replace(folder / f"{self.name}.pt")

    def load(self, folder: Path) -> None:
        """Continues from the saved state where there is one."""
        path = folder / f"{self.name}.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def train_step(self, stream: Tensor) -> float:
        """One batch; returns its loss."""
        inputs, targets = batch_at(stream, self.step, self.settings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss: Tensor = self.compiled(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.largest_gradient_norm)
        factor = learning_rate_factor(self.step, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def run(self, stream: Tensor, held_out: Tensor, checkpoints: Path | None) -> None:
        """All steps that are left."""
        settings = self.settings
        if checkpoints:
            self.load(checkpoints)
        begun_s, begun_step = time.monotonic(), self.step
        with progress(self.name, settings.steps) as report:
            while self.step < settings.steps:
                loss = self.train_step(stream)
                if self.step % 10 == 0:
                    tokens = (self.step - begun_step) * settings.batch_tokens
                    rate = tokens / (time.monotonic() - begun_s)
                    report(self.step, f"loss {loss:.3f}, {rate:.0f} tokens/s")
                if self.step % settings.evaluate_every_steps == 0:
                    quick = held_out_loss(self.model, held_out[: settings.quick_evaluation_tokens])
                    report(self.step, f"held-out loss {quick:.4f}")
                if checkpoints and self.step % settings.checkpoint_every_steps == 0:
                    self.save(checkpoints)


def train_one(trainer: Trainer, corpus: Corpus, tokenizer: Tokenizer, out: Path, checkpoints: Path | None) -> None:
    """Trains a model, prints how well it does on the held-out files, and writes it."""
    settings = trainer.settings
    torch.set_num_threads(settings.threads)
    stream = token_stream(tokenizer, corpus.train_documents, settings.seed)
    held_out = token_stream(tokenizer, corpus.held_out_documents, settings.seed)
    print(f"{trainer.name}: {len(stream)} tokens, {len(held_out)} held out", flush=True)
    begun_s = time.monotonic()
    trainer.run(stream, held_out, checkpoints)
    loss = held_out_loss(trainer.model, held_out)
    text_bytes = sum(len(file.text.encode()) for file in corpus.held_out_files)
    bits = loss * (len(held_out) - 1) / math.log(2) / text_bytes
    print(
        f"{trainer.name}: held-out perplexity {math.exp(loss):.2f} per token, "
        f"{bits:.3f} bits per byte; {time.monotonic() - begun_s:.0f} s"
    )
    write_model(trainer.model, out)


def main() -> None:
    """Trains the tokenizer, the model and the draft, one after the other."""
    parser = argparse.ArgumentParser(description="Train the embedded model and its draft.")
    parser.add_argument("--out", type=Path, default=Path("deploy/embedded"))
    parser.add_argument("--checkpoints", type=Path, help="a folder to save to and resume from")
    parser.add_argument("--steps", type=int, default=TARGET_TRAINING.steps)
    parser.add_argument("--draft-steps", type=int, default=DRAFT_TRAINING.steps)
    parser.add_argument("--decay-steps", type=int, default=TARGET_TRAINING.decay_steps)
    arguments = parser.parse_args()
    corpus = build_corpus()
    tokenizer = train_tokenizer(file.text for file in corpus.train_files)
    write_tokenizer(tokenizer, arguments.out)
    target = replace(TARGET_TRAINING, steps=arguments.steps, decay_steps=arguments.decay_steps)
    draft = replace(DRAFT_TRAINING, steps=arguments.draft_steps, decay_steps=arguments.decay_steps)
    for name, shape, settings, folder in (
        ("target", TARGET_SHAPE, target, arguments.out),
        ("draft", DRAFT_SHAPE, draft, arguments.out / "draft"),
    ):
        trainer = Trainer(name, shape, settings)
        train_one(trainer, corpus, tokenizer, folder, arguments.checkpoints)


if __name__ == "__main__":
    main()
