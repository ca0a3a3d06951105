"""The command line. A command's file is imported when the command runs, so that `--help` is quick and
`rayline generate` works without Ray and gRPC."""

import sys
from collections.abc import Sequence

import click

from rayline.deploy.commands.lazy_group import Entry, LazyGroup
from rayline.protos.errors import ConfigError, InvalidRequest, ModelNotFound, RaylineError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _serve() -> click.Command:
    from rayline.deploy.commands.serve import command

    return command


def _generate() -> click.Command:
    from rayline.deploy.commands.generate import command

    return command


def _chat() -> click.Command:
    from rayline.deploy.commands.chat import command

    return command


def _bench() -> click.Command:
    from rayline.deploy.commands.bench import command

    return command


def _status() -> click.Command:
    from rayline.deploy.commands.status import command

    return command


def _chaos() -> click.Command:
    from rayline.deploy.commands.chaos import command

    return command


def _drain() -> click.Command:
    from rayline.deploy.commands.drain import command

    return command


COMMANDS = {
    "serve": Entry("Serve a model to gRPC and OpenAI-HTTP clients.", _serve),
    "generate": Entry("Continue a prompt, offline or on a running server.", _generate),
    "chat": Entry("Talk to a model, offline or on a running server.", _chat),
    "bench": Entry("Measure the engine, single operations or a running server.", _bench),
    "chaos": Entry("Break what runs, and compare the streams with undisturbed ones.", _chaos),
    "status": Entry("Show the health and the models of a running server.", _status),
    "drain": Entry("Empty a group or a node: its streams go on elsewhere.", _drain),
}


@click.command(cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rayline")
def rayline() -> None:
    """Rayline serves large language models, on one machine or a cluster."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the result is the exit status.

    0: done. 1: it failed. 2: what was asked for cannot be done as asked. 130: interrupted.
    """
    try:
        status = rayline.main(list(arguments), prog_name="rayline", standalone_mode=False)
    except RaylineError as error:
        return _fail(error.message, 2 if isinstance(error, ConfigError | InvalidRequest | ModelNotFound) else 1)
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(error.format_message() + hint, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"rayline: error: {' '.join(message.split())}", err=True)
    return status


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
