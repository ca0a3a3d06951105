"""`rayline bench model`: a model of random weights to measure with."""

from pathlib import Path

import click

from rayline.deploy.model_path import resolve_model

SHAPES = ("1b", "135m", "tiny")


@click.command("model")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(SHAPES), default="1b", show_default=True, help="Sizes of its layers.")
@click.option(
    "--context", type=click.IntRange(min=16), default=131072, show_default=True, help="Tokens of the longest request."
)
@click.option("--tokenizer", default="embedded", show_default=True, help="Model whose tokenizer it gets.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights.")
def command(directory: Path, shape: str, context: int, tokenizer: str, seed: int) -> None:
    """Write a Llama of random weights into a new DIRECTORY, to measure lengths and sizes no model at hand has."""
    from rayline.workers.bench.random_model import RANDOM_SHAPES, write_random_model  # imports torch: not for `--help`

    write_random_model(directory, resolve_model(tokenizer), RANDOM_SHAPES[shape], context, seed)
    click.echo(f"{directory}: {shape}, context of {context} tokens")
