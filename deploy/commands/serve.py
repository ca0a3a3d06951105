"""`rayline serve`: the whole system from one command line."""

from pathlib import Path
from typing import Any

import click

from rayline.cluster.config import SECTIONS
from rayline.deploy.commands.flags import config_flags, config_from
from rayline.deploy.ray_environment import prepare_ray
from rayline.protos.errors import ConfigError


@config_flags(SECTIONS)
@click.command("serve")
@click.argument("model", required=False)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of config keys; flags win.")
def command(model: str | None, config_file: Path | None, **flags: Any) -> int:
    """Serve MODEL (a directory, a hub id, or by default the embedded model) to gRPC and OpenAI-HTTP clients.

    Ctrl-C drains: running streams finish within --drain-timeout-s, then everything stops. SIGHUP reads the file
    again: groups come, go or are replaced one by one, and their streams move.
    """
    config = config_from(model, config_file, flags)
    prepare_ray()
    try:
        from rayline.deploy.serve import serve  # needs Ray and gRPC, which an offline install lacks
    except ModuleNotFoundError as error:
        if error.name in {"ray", "grpc", "fastapi", "uvicorn"}:
            raise ConfigError(f"{error.name} is not installed: pip install 'rayline[serve]'") from None
        raise
    return serve(config, reread=lambda: config_from(model, config_file, flags))
