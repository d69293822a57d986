"""`jakiro-run`: chat with an engine at a terminal, or answer one prompt."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click
from click.core import ParameterSource

from jakiro_runtime.backends import BACKENDS
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import UsageError, cli_errors, one_line, say
from jakiro_runtime.format.files import read_text
from jakiro_runtime.sampling import Sampling
from jakiro_runtime.sampling.generation_config import GenerationDefaults
from jakiro_runtime.session import Session
from jakiro_runtime.streams import answer_stream, open_closed_streams

_EPILOG = """\b
Examples:
  jakiro-run --engine out/smollm2                          chat at the terminal
  jakiro-run --engine out/smollm2 --prompt "Hello"         one answer
  cat question.txt | jakiro-run --engine out/smollm2       one answer; standard output holds nothing else
"""


class _Command(click.Command):
    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_closed_streams()
        return super().main(*args, **kwargs)


@click.command(cls=_Command, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
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
@click.option("--min-new-tokens", type=click.IntRange(0), default=0, help="No end of sequence before the answer has N tokens.")
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
@click.option("--use-generation-config", is_flag=True, help="Take what the checkpoint's generation_config.json asks for where no "
              "option says otherwise.")  # fmt: skip
@click.option("--parse-special/--no-parse-special", default=None, show_default="only with --raw",
              help="Special tokens that the prompt spells, such as <|im_end|>, are special; else plain text.")  # fmt: skip
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without the chat template.")
@click.option("--stats", type=click.Choice(["line", "json", "none"]), default="line", help="Figures after an answer.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the engine: onnxruntime (CPU), "
              "cuda (ONNX Runtime on a GPU), tensorrt or tensorrt-rtx (engines of jakiro-build). auto: what was built for this "
              "GPU, else the CPU. cuda has run a tiny engine on a GPU, jakiro-build's engines have not.")  # fmt: skip
@click.option("--plugin", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
              help="libjakiro_plugins.so, for engines built with it and for faster commits. Not run on a GPU.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), default=None, show_default="physical cores", help="CPU threads.")
@click.option("--chunk", type=click.IntRange(2), default=128, help="Tokens of a prompt processed in one call.")
@click.option("--check-files", is_flag=True, help="Read every file again and compare it with its checksum first.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Chat with an engine, or answer one prompt.

    The answer goes to standard output; everything else goes to standard error. Ctrl-C stops an answer; twice leaves.
    """
    try:
        with cli_errors(debug), answer_stream() as out:
            _run(out, **settings)
    except BrokenPipeError:  # the reader of our output left
        sys.exit(1)


def _run(
    out: IO[str],
    engine: Path,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    speculation: bool,
    lookup: bool,
    nodes: int | None,
    use_generation_config: bool,
    parse_special: bool | None,
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
        try:
            prompt = sys.stdin.read().strip("\n")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"The prompt from standard input is not {error.encoding} text; give text in that encoding."
            ) from error
    if prompt is not None and not prompt.strip():
        source = "standard input" if piped else "--prompt"
        raise UsageError(f"The prompt from {source} is empty; give some text to answer.")
    given = Sampling(**sampling)
    schema = _read_schema(json_schema) if json_schema else None
    opened = Engine.open(engine, backend, threads, check_files, plugin)
    session = opened.session(speculate=speculation, nodes=nodes, chunk=chunk, lookup=lookup)
    how = _sampling(engine, given, use_generation_config)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": how, "stop": stop}
    if json_schema or regex is not None or grammar is not None:
        options["grammar"] = opened.grammar(json_schema=schema, regex=regex, lark=grammar)
    chat = _Chat(opened, session, system, raw, parse_special, options, stats, out)
    if prompt is not None:
        chat.answer(prompt)
    else:
        _talk(chat, engine)


def _read_schema(file: Path) -> str:
    try:
        return read_text(file, 1 << 24)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The JSON schema {file} cannot be read: {one_line(error)}.") from error


def _sampling(engine: Path, given: Sampling, use_config: bool) -> Sampling:
    """How tokens are drawn: by the options, and by the checkpoint's generation config where the user wants it."""
    defaults, context = GenerationDefaults.read(engine), click.get_current_context()
    named = {name for name in defaults.asked if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    asked = {name: value for name, value in defaults.asked.items() if name not in named}
    missing = [f"{name} (which jakiro-run does not have)" for name in defaults.unsupported]
    if use_config:
        if missing:
            say(f"The checkpoint's generation config also asks for {', '.join(missing)}; answers do without.")
        return replace(given, **asked)
    if (asked or missing) and not named:
        wanted = ", ".join([*(f"{name} {value:g}" for name, value in asked.items()), *missing])
        say(f"The checkpoint's generation config asks for {wanted}; greedy defaults are used (--use-generation-config takes it).")
    return given


class _Chat:
    """The conversation so far, and how an answer is shown."""

    def __init__(
        self,
        engine: Engine,
        session: Session,
        system: str | None,
        raw: bool,
        parse_special: bool | None,
        options: dict[str, Any],
        stats: str,
        out: IO[str],
    ) -> None:
        self.engine, self.session, self.raw = engine, session, raw
        self.parse_special = raw if parse_special is None else parse_special
        self.options, self.stats, self.out = options, stats, out
        self.messages = [{"role": "system", "content": system}] if system else []

    def answer(self, prompt: str) -> bool:
        """Stream an answer. False where Ctrl-C stopped it."""
        messages = [*self.messages, {"role": "user", "content": prompt}]
        if self.raw:
            ids = self.engine.encode(prompt, parse_special=self.parse_special)
        else:
            ids = self.engine.chat_prompt(messages, self.parse_special)
        text, stopped, reason = [], _Stop(), None
        with stopped:
            for piece in self.session.generate(ids, **self.options):
                text.append(piece.text)
                reason = piece.finish_reason
                self.out.write(piece.text)
                self.out.flush()
                if stopped.asked:
                    break
        self.out.write("\n")
        self.out.flush()
        if reason == "constraint":
            say("The answer ends here: its rules (a grammar, --min-new-tokens) allow no token next.")
        self.messages = [*messages, {"role": "assistant", "content": "".join(text)}]
        if self.stats == "json":
            say(json.dumps(self.session.stats.as_dict()))
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
