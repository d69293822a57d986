"""`jakiro-run`: chat with an engine at a terminal, or answer one prompt."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jakiro_runtime.backends import BACKENDS
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import UsageError, cli_errors
from jakiro_runtime.sampling import Sampling
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
@click.option("--temperature", type=float, default=0.0, help="0 takes the best token; otherwise tokens are drawn.")
@click.option("--top-k", type=int, default=0, help="Draw among the k best tokens; 0 for all.")
@click.option("--top-p", type=float, default=1.0, help="Draw among the fewest tokens that hold this probability.")
@click.option("--min-p", type=float, default=0.0, help="Draw among tokens this probable, relative to the best.")
@click.option("--repetition-penalty", type=float, default=1.0, help="Above 1 discourages tokens that occurred.")
@click.option("--seed", type=int, default=0, help="The same seed gives the same answer, with speculation or without.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be given more than once.")
@click.option("--min-new-tokens", type=int, default=0, help="No end of sequence before the answer has N tokens.")
@click.option("--json-schema", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=None, metavar="FILE",
              help="The answer is JSON of this schema.")  # fmt: skip
@click.option("--regex", default=None, help="The answer matches this regular expression.")
@click.option("--grammar", default=None, metavar="LARK", help="The answer follows this grammar (llguidance's Lark).")
@click.option("--speculation/--no-speculation", default=True, help="Draft and verify trees, or decode with the target alone.")
@click.option(
    "--lookup/--no-lookup",
    default=True,
    help="Propose n-grams too: what followed the last tokens where they stood before joins the trees.",
)
@click.option("--nodes", type=click.IntRange(1), default=None, show_default="as many as are worth it, or all",
              help="Verify the best N nodes of every tree.")  # fmt: skip
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without the chat template.")
@click.option("--stats", type=click.Choice(["line", "json", "none"]), default="line", help="Figures after an answer.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the engine: onnxruntime (CPU), "
              "cuda (ONNX Runtime on a GPU), tensorrt or tensorrt-rtx (engines of jakiro-build). auto: what was built for this "
              "GPU, else the CPU. Only onnxruntime has been run by us; the others are not run on a GPU.")  # fmt: skip
@click.option("--plugin", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
              help="libjakiro_plugins.so, for engines built with it and for faster commits. Not run on a GPU.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=None, show_default="physical cores", help="CPU threads.")
@click.option("--chunk", type=click.IntRange(2), default=128, help="Tokens of a prompt processed in one call.")
@click.option("--check-files", is_flag=True, help="Read every file again and compare it with its checksum first.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Chat with an engine, or answer one prompt.

    The answer goes to standard output; everything else goes to standard error. Ctrl-C stops an answer; twice leaves.
    """
    try:
        with cli_errors(debug):
            _run(**settings)
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        sys.exit(1)


def _run(
    engine: Path,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    speculation: bool,
    lookup: bool,
    nodes: int | None,
    raw: bool,
    stats: str,
    backend: str,
    plugin: Path | None,
    threads: int | None,
    chunk: int,
    check_files: bool,
    stop: tuple[str, ...],
    json_schema: Path | None,
    regex: str | None,
    grammar: str | None,
    **sampling: Any,
) -> None:
    piped = prompt is None and not sys.stdin.isatty()
    if piped:
        prompt = sys.stdin.read().strip("\n")
    if prompt is not None and not prompt.strip():
        source = "standard input" if piped else "--prompt"
        raise UsageError(f"The prompt from {source} is empty; give some text to answer.")
    opened = Engine.open(engine, backend, threads, check_files, plugin)
    session = opened.session(speculate=speculation, nodes=nodes, chunk=chunk, lookup=lookup)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": Sampling(**sampling), "stop": stop}
    if json_schema or regex is not None or grammar is not None:
        schema = json_schema.read_text(encoding="utf-8") if json_schema else None
        options["grammar"] = opened.grammar(json_schema=schema, regex=regex, lark=grammar)
    chat = _Chat(opened, session, system, raw, options, stats)
    if prompt is not None:
        chat.answer(prompt)
    else:
        _talk(chat, engine)


class _Chat:
    """The conversation so far, and how an answer is shown."""

    def __init__(
        self, engine: Engine, session: Session, system: str | None, raw: bool, options: dict[str, Any], stats: str
    ) -> None:
        self.engine, self.session, self.raw = engine, session, raw
        self.options, self.stats = options, stats
        self.messages = [{"role": "system", "content": system}] if system else []

    def answer(self, prompt: str) -> bool:
        """Stream an answer. False where Ctrl-C stopped it."""
        messages = [*self.messages, {"role": "user", "content": prompt}]
        ids = self.engine.encode(prompt) if self.raw else self.engine.chat_prompt(messages)
        text, stopped = [], _Stop()
        with stopped:
            for piece in self.session.generate(ids, **self.options):
                text.append(piece.text)
                sys.stdout.write(piece.text)
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
    click.echo(
        f"{model.name} from {engine}, on {chat.engine.bundle.backend}. "
        "Ctrl-C stops an answer, twice leaves; an empty line is ignored.",
        err=True,
    )
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


if __name__ == "__main__":
    main()
