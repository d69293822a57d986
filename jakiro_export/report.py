"""Progress report of an export. Bars and colours at a terminal; plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jakiro_export.verification.check import Check


class Report:
    """Progress and tables on standard error, so that standard output stays free for pipes."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)

    def found(self, rows: Iterable[tuple[str, str]]) -> None:
        """What was found: pairs of a label and a value."""
        table = Table.grid(padding=(0, 2))
        for label, value in rows:
            table.add_row(f"[bold]{label}[/bold]", value)
        self.console.print(table)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One step of unknown length."""
        if not self.console.is_terminal:
            self.console.print(text)
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            progress.add_task(text, total=None)
            yield

    @contextmanager
    def writing(self, text: str, total: int) -> Iterator[Progress | None]:
        """A step measured in bytes; advance the first task of the bar that is given, if one is."""
        if not self.console.is_terminal:
            self.console.print(f"{text}: {total / 1e6:.0f} MB")
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            progress.add_task(text, total=total)
            yield progress

    def checks(self, checks: Iterable[Check]) -> None:
        """The table of checks that ends an export."""
        table = Table(title="ONNX Runtime against torch", title_justify="left")
        table.add_column("check")
        table.add_column("difference", justify="right")
        table.add_column("allowed", justify="right")
        table.add_column("")
        for check in checks:
            verdict = "[green]ok[/green]" if check.passed else "[red]FAILED[/red]"
            table.add_row(check.name, f"{check.value:.2g}", f"{check.tolerance:.2g}", verdict)
        self.console.print(table)
