"""Saved sessions: NumPy archives with the tokens of a conversation and what the caches hold of it."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jakiro_runtime.errors import EngineError, UsageError

Rows = tuple[np.ndarray, np.ndarray]
"""Keys and values of one cache, [layers, kv_heads, length, head_dim] each."""


@dataclass(frozen=True)
class SavedSession:
    """A conversation on disk.

    fingerprint: of the engine that wrote it (`Manifest.fingerprint`)
    tokens: what the caches stand for, and the one token that they do not hold yet
    caches: by graph name; a session without speculation has no draft cache
    """

    fingerprint: str
    tokens: list[int]
    caches: dict[str, Rows]

    def write(self, path: Path) -> None:
        """Write it in one step: a reader finds the old file or the new one, never half of one."""
        arrays = {"tokens": np.array(self.tokens, np.int64), "engine": np.array(self.fingerprint)}
        for name, (keys, values) in self.caches.items():
            arrays[f"{name}_keys"], arrays[f"{name}_values"] = keys, values
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as out:
                np.savez(out, **arrays)  # type: ignore[arg-type]
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path, fingerprint: str, vocab_size: int) -> SavedSession:
        """Read what `write` wrote, for the engine of this fingerprint.

        Raises:
            UsageError: there is no such file, or another engine wrote it
            EngineError: it is damaged
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            raise UsageError(f"There is no saved session at {path}.") from None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
            raise EngineError(f"The saved session {path} is damaged ({error}).") from error
        except (AttributeError, TypeError) as error:  # a single array, which is no archive
            raise EngineError(f"The saved session {path} is damaged: it is no archive of arrays.") from error
        if str(found.get("engine")) != fingerprint:
            raise UsageError(f"The session {path} was not saved by this engine; restore it with the engine that wrote it.")
        tokens = found.get("tokens")
        if tokens is None or tokens.dtype != np.int64 or tokens.ndim != 1:
            raise _damaged(path, "its tokens are missing or no list of whole numbers")
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise _damaged(path, f"it holds a token outside 0..{vocab_size - 1}")
        caches: dict[str, Rows] = {}
        for name in ("target", "draft"):
            parts = [found.get(f"{name}_{what}") for what in ("keys", "values")]
            if parts[0] is None and parts[1] is None and name == "draft":
                continue
            if any(part is None or part.ndim != 4 for part in parts):
                raise _damaged(path, f"the {name}'s keys or values are missing or mis-shaped")
            keys, values = parts
            if keys.shape[2] > max(0, len(tokens) - 1):  # type: ignore[union-attr]
                raise _damaged(path, f"the {name}'s cache holds more rows than the conversation has tokens")
            caches[name] = keys, values  # type: ignore[assignment]
        return SavedSession(fingerprint, tokens.tolist(), caches)


def _damaged(path: Path, reason: str) -> EngineError:
    return EngineError(f"The saved session {path} does not fit this engine: {reason}; it is damaged.")
