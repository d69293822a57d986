"""`jakiro-run`: chat with an engine at a terminal, or answer one prompt."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jakiro_runtime.engine import Engine
    from jakiro_runtime.session import Session

_EPILOG = """\b
Examples:
  jakiro-run --engine out/smollm2                          chat at the terminal
  jakiro-run --engine out/smollm2 --prompt "Hello"         one answer
  cat question.txt | jakiro-run --engine out/smollm2       one answer; standard output holds nothing else
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--engine", "-e", required=True, type=click.Path(path_type=Path), metavar="DIR", help="What jakiro-export wrote.")
@click.option("--prompt", "-p", default=None, help="Answer this and leave.")
@click.option("--system", "-s", default=None, help="A system message for the conversation.")
@click.option("--max-new-tokens", "-n", type=click.IntRange(1), default=512, help="The most tokens of an answer.")
@click.option("--speculation/--no-speculation", default=True, help="Draft and verify trees, or decode with the target alone.")
@click.option("--nodes", type=click.IntRange(1), default=None, show_default="all", help="Verify only the best N nodes of a tree.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it stands, without its chat template.")
@click.option("--stats", type=click.Choice(["line", "json", "none"]), default="line", help="Figures after an answer.")
@click.option("--threads", type=click.IntRange(1), default=None, show_default="physical cores", help="CPU threads.")
@click.option("--chunk", type=click.IntRange(2), default=128, help="Tokens of a prompt processed in one call.")
@click.option("--verify", is_flag=True, help="Read every file again and compare it with its checksum first.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Chat with an engine, or answer one prompt.

    The answer goes to standard output; everything else goes to standard error. Ctrl-C stops an answer; twice leaves.
    """
    from jakiro_runtime.errors import EngineError

    try:
        _run(**settings)
    except EngineError as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        sys.exit(1)


def _run(
    engine: Path,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    speculation: bool,
    nodes: int | None,
    raw: bool,
    stats: str,
    threads: int | None,
    chunk: int,
    verify: bool,
) -> None:
    from jakiro_runtime.engine import Engine
    from jakiro_runtime.errors import UsageError

    piped = prompt is None and not sys.stdin.isatty()
    if piped:
        prompt = sys.stdin.read().strip("\n")
    if prompt is not None and not prompt.strip():
        source = "standard input" if piped else "--prompt"
        raise UsageError(f"The prompt from {source} is empty; give some text to answer.")
    opened = Engine.open(engine, threads=threads, full_check=verify)
    session = opened.session(speculate=speculation, nodes=nodes, chunk=chunk)
    chat = _Chat(opened, session, system, raw, max_new_tokens, stats)
    if prompt is not None:
        chat.answer(prompt)
    else:
        _talk(chat, engine)


class _Chat:
    """The conversation so far, and how an answer is shown."""

    def __init__(self, engine: Engine, session: Session, system: str | None, raw: bool, max_new_tokens: int, stats: str) -> None:
        self.engine, self.session, self.raw = engine, session, raw
        self.max_new_tokens, self.stats = max_new_tokens, stats
        self.messages = [{"role": "system", "content": system}] if system else []

    def answer(self, prompt: str) -> bool:
        """Stream an answer. False where Ctrl-C stopped it."""
        messages = [*self.messages, {"role": "user", "content": prompt}]
        ids = self.engine.encode(prompt) if self.raw else self.engine.chat_prompt(messages)
        text, stopped = [], _Stop()
        with stopped:
            for event in self.session.generate(ids, self.max_new_tokens):
                text.append(event.text)
                sys.stdout.write(event.text)
                sys.stdout.flush()
                if stopped.asked:
                    break
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.messages = [*messages, {"role": "assistant", "content": "".join(text)}]
        if self.stats == "json":
            click.echo(json.dumps(self.session.stats.as_dict()), err=True)
        elif self.stats == "line":
            click.echo(click.style(f"[{self.session.stats.line()}]", dim=True), err=True)
        return not stopped.asked


class _Stop:
    """While entered, the first Ctrl-C asks for a stop and a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _Stop:
        def first(*_: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self._before = signal.signal(signal.SIGINT, first)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)


def _talk(chat: _Chat, engine: Path) -> None:
    model = chat.engine.manifest.model
    click.echo(f"{model.name} from {engine}. Ctrl-C stops an answer, twice leaves; an empty line is ignored.", err=True)
    read = _line_reader()
    interrupted = False
    while True:
        try:
            line = read()
            if line.strip():
                interrupted = not chat.answer(line)
        except EOFError:
            click.echo("", err=True)
            return
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            click.echo("\n(Ctrl-C again to leave)", err=True)


def _line_reader() -> Callable[[], str]:
    """A prompt with line editing where the platform has it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() uses it once imported)
    return lambda: input("> ")
