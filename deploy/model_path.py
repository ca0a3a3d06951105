"""From what the operator named to a directory: the embedded model, a local folder, or a hub id."""

from pathlib import Path

from rayline.protos.errors import ModelError

EMBEDDED = "embedded"
EMBEDDED_NAME = "rayline-python"


def resolve_model(path: str) -> Path:
    """The model's directory. Raises ModelError when there is none and no hub can be asked."""
    if path == EMBEDDED:
        return Path(__file__).resolve().with_name("embedded")
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise ModelError(f"model = {path!r} is not a directory", field="model")
    return _from_hub(path)


def served_name(path: str, name: str) -> str:
    """What clients call the model: the configured name, else the directory's or the hub's."""
    if name:
        return name
    return EMBEDDED_NAME if path == EMBEDDED else path.rstrip("/").rsplit("/", 1)[-1]


def _from_hub(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download  # optional extra: most installs have no network
    except ModuleNotFoundError:
        raise ModelError(
            f"model = {hub_id!r} is not a directory, and a hub id needs: pip install 'rayline[hub]'", field="model"
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except Exception as error:
        raise ModelError(f"model = {hub_id!r} is not a directory and the hub gave: {error}", field="model") from None
