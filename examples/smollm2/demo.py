"""What speculation is worth on this machine: one answer, streamed, then the same answer without speculation, and a table."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from jakiro_runtime import Engine, EngineError, Session

REPEATS = 5


def answer(session: Session, prompt: list[int], limit: int, show: bool) -> list[int]:
    """Generate an answer, showing it as it comes."""
    tokens: list[int] = []
    for chunk in session.generate(prompt, limit):
        tokens += chunk.tokens
        if show:
            print(chunk.text, end="", flush=True)
    return tokens


@click.command()
@click.option("--engine", default="out/smollm2", type=click.Path(path_type=Path), show_default=True, help="Engine directory.")
@click.option("--prompt", default="Explain in three sentences how a bicycle stays upright.", show_default=True)
@click.option("--max-new-tokens", default=128, show_default=True)
def main(engine: Path, prompt: str, max_new_tokens: int) -> None:
    """Answer a prompt with and without speculation, in the same engine."""
    console = Console()
    try:
        with console.status(f"Opening {engine}"):
            opened = Engine.open(engine)
            ids = opened.chat_prompt([{"role": "user", "content": prompt}])
            speculative, plain = opened.session(), opened.session(speculate=False)
            for session in (speculative, plain):  # first calls allocate; they are not what is measured
                answer(session, ids, 8, show=False)
                session.reset()
        console.print(f"[bold]{prompt}[/bold]\n")
        fast, slow, taken = [], [], []
        for turn in range(REPEATS):  # in turns; the fastest of each counts, the machine may be busy
            fast.append(answer(speculative, ids, max_new_tokens, show=turn == 0))
            if turn == 0:
                print("\n")
            with console.status("The same without speculation" if turn == 0 else "Both again"):
                slow.append(answer(plain, ids, max_new_tokens, show=False))
            taken.append((speculative.stats, plain.stats))
            for session in (speculative, plain):
                session.reset()
    except EngineError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    table = Table()
    for column in ("", "speculative", "plain"):
        table.add_column(column, justify="left" if not column else "right")
    ours, theirs = (min(stats, key=lambda each: each.decode) for stats in zip(*taken, strict=True))
    table.add_row("tokens", str(ours.new_tokens), str(theirs.new_tokens))
    table.add_row("tokens/s", f"{ours.tokens_per_second:.1f}", f"{theirs.tokens_per_second:.1f}")
    table.add_row("tau, tokens per target pass", f"{ours.tau:.2f}", f"{theirs.tau:.2f}")
    table.add_row("ms per round", f"{1e3 * ours.decode / ours.rounds:.1f}", f"{1e3 * theirs.decode / theirs.rounds:.1f}")
    console.print(table)
    console.print(f"speed-up: {ours.tokens_per_second / theirs.tokens_per_second:.2f}x")
    identical = all(each == fast[0] for each in (*fast, *slow))
    console.print(f"output identical: {'yes' if identical else 'NO'}")
    if not identical:
        sys.exit(1)


if __name__ == "__main__":
    main()
