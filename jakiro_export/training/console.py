"""Console output of a training: at a terminal a bar with the time left, in a log a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jakiro_export.training.heldout import Measure
from jakiro_runtime.errors import UsageError, cli_errors

CONSOLE = Console(stderr=True, soft_wrap=True, highlight=False)


def log(measure: Measure) -> None:
    """One line of held-out figures."""
    depths = " ".join(f"{a:.3f}" for a in measure.accuracy)
    contrast = "" if measure.contrast is None else f"contrast {measure.contrast:.3f}  "
    CONSOLE.print(
        f"step {measure.step:6d}  {measure.hours:5.2f} h  loss {measure.loss:6.3f}  held-out accuracy {depths}  "
        f"{contrast}tau of the chain {measure.chain_tau:.2f}"
    )


@contextmanager
def in_work(folder: Path) -> Iterator[None]:
    """A command that keeps what it makes in `folder`, alone there; what goes wrong becomes a sentence."""
    again = "the same command goes on from what was kept"
    with cli_errors(False, f"Interrupted; {again}.", f"once there is room, {again}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"Another process is at work in {folder}; wait for it, or give another --work.") from None
        with lock:
            yield


class bar:
    """A bar with the time left at a terminal, one line in a log. Called with how much is done."""

    def __init__(self, text: str, total: float) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.text, self.total = text, total
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=CONSOLE)

    def __enter__(self) -> Any:
        if not CONSOLE.is_terminal:
            CONSOLE.print(self.text)
            return lambda done: None
        self.progress.start()
        task = self.progress.add_task(self.text, total=self.total)
        return lambda done: self.progress.update(task, completed=float(np.minimum(done, self.total)))

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
