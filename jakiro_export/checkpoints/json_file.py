"""JSON files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jakiro_export.errors import ExportError


def read_object(file: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        what: names the file's role in an error, such as "The head's configuration"

    Raises:
        ExportError: it is damaged, or no object
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{what} {file} cannot be read ({type(error).__name__}: {error}); download it again.") from error
    if not isinstance(data, dict):
        raise ExportError(f"{what} {file} holds a {type(data).__name__}, where a JSON object is expected; download it again.")
    return data
