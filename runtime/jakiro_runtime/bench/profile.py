"""Where the time of a round goes that is spent outside the graphs."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jakiro_runtime.session import Session

_SHOWN = 12
_PACKAGE = Path(__file__).parents[1]


def host_profile(session: Session, prompt: Sequence[int], limit: int) -> dict[str, Any]:
    """Profile one answer after another one that warms up.

    The profiler makes every call dearer, by about half a microsecond: the shares are to be read, and the sum is an upper bound.

    Returns:
        rounds; us: microseconds a round outside the graphs; functions: the dearest ones, each with calls and us a round, its
        callees not counted
    """
    for _ in session.generate(prompt, limit):
        pass
    session.reset()
    profiler = cProfile.Profile()
    answer = session.generate(prompt, limit)
    next(answer)  # the prompt is not what is profiled
    profiler.enable()
    for _ in answer:
        pass
    profiler.disable()
    rounds = max(1, session.stats.rounds)
    functions = []
    for (file, _, name), (_, calls, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if "run_with_iobinding" not in name:
            functions.append(
                {"function": _label(file, name), "calls": round(calls / rounds, 2), "us": round(1e6 * own / rounds, 2)}
            )
    functions.sort(key=lambda entry: -entry["us"])
    return {"rounds": rounds, "us": round(sum(entry["us"] for entry in functions), 1), "functions": functions[:_SHOWN]}


def _label(file: str, name: str) -> str:
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return f"{path.relative_to(_PACKAGE).as_posix()}: {name}"
    return name if file == "~" else f"{path.name}: {name}"
