"""What the tiers share: a list of checks that is written to JSON as it goes, and the runtime's modules without its packages.

A tier is a program: it needs this file, the repository's folders and what its own head says, never the network. It ends with
status 0 where nothing failed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


class Skip(Exception):
    """A check that cannot run here; its text names what is missing and how to get it."""


def bare_runtime() -> None:
    """Make jakiro_runtime's modules importable without its front, which needs packages that a tier may lack."""
    if "jakiro_runtime" not in sys.modules:
        package = ModuleType("jakiro_runtime")
        package.__path__ = [str(ROOT / "runtime" / "jakiro_runtime")]
        sys.modules["jakiro_runtime"] = package
    support = str(ROOT / "tests" / "support")
    if support not in sys.path:
        sys.path.append(support)


class Checklist:
    """The checks of one tier, printed and written to `file` one by one, so that a crash leaves what was found before."""

    def __init__(self, tier: str, title: str, file: Path | None) -> None:
        self.tier, self.title, self.file = tier, title, file
        self.facts: dict[str, Any] = {}
        self.results: list[dict[str, Any]] = []
        self._write()

    @contextmanager
    def check(self, name: str) -> Iterator[dict[str, Any]]:
        """Runs a check; figures go into the dict that it yields."""
        figures: dict[str, Any] = {}
        start, outcome, reason = time.perf_counter(), "passed", ""
        try:
            yield figures
        except Skip as skip:
            outcome, reason = "skipped", str(skip)
        except Exception as error:
            outcome = "failed"
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            if type(error).__name__ == "EngineError":  # a sentence for the user
                reason = str(error)
        seconds = round(time.perf_counter() - start, 2)
        self.results.append({"check": name, "outcome": outcome, "seconds": seconds, "reason": reason, "figures": figures})
        print("\n".join(lines(self.results[-1])), flush=True)
        self._write()

    def skip(self, name: str, reason: str) -> None:
        with self.check(name):
            raise Skip(reason)

    def done(self) -> int:
        """The exit status."""
        return int(any(result["outcome"] == "failed" for result in self.results))

    def _write(self) -> None:
        if self.file is not None:
            data = {"tier": self.tier, "title": self.title, "facts": self.facts, "checks": self.results}
            self.file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def lines(result: dict[str, Any]) -> list[str]:
    """A result for people."""
    found = [f"  {result['outcome']:8}{result['check']} ({result['seconds']} s)"]
    if result["reason"]:
        found.append(f"          {result['reason']}")
    for name, value in result["figures"].items():
        rows = value if isinstance(value, list) else [value]
        found += [f"          {name}: {row if isinstance(row, str) else json.dumps(row)}" for row in rows]
    return found


def arguments() -> argparse.ArgumentParser:
    """What every tier understands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="where to write what was found")
    return parser


def program(*command: str) -> str | None:
    """The last line that a program prints; None where there is none or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else None


def has(module: str) -> bool:
    """Whether a module is installed."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def nvcc() -> str | None:
    """CUDA's compiler, on the path or where the toolkit puts it."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)
