"""Command line of `jakiro-bench`. Imports are late, so that --help is quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from jakiro_bench.numbers import Numbers
from jakiro_runtime.backends import BACKENDS

_EPILOG = """\b
Examples:
  jakiro-bench --engine out/smollm2 --prompts examples/smollm2/prompts.jsonl
  jakiro-bench --engine out/smollm2 --prompts mine.jsonl --max-new-tokens 128 --json bench.json --html bench.html
  jakiro-bench --engine out/smollm2 --prompts mine.jsonl --compare llama.cpp,openvino --peer-model openvino=models/smollm2-ov
"""


class _NamedPath(click.ParamType):
    name = "name=path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, separator, path = str(value).partition("=")
        if not (name and separator and path):
            self.fail(f"{value!r} is not NAME=PATH, such as openvino=models/smollm2-ov", param, ctx)
        return name, Path(path)


_FILE = click.Path(path_type=Path)
_SIZES = Numbers("list of batch sizes of 1 to 256, such as 1,2,4,8", 1, 256)


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--engine", "-e", required=True, type=_FILE, metavar="DIR", help="What jakiro-export wrote.")
@click.option("--prompts", "-p", required=True, type=_FILE, metavar="FILE", help="JSON lines with `turns` or `prompt`.")
@click.option("--max-new-tokens", "-n", type=click.IntRange(2), default=128, help="The most tokens of an answer.")
@click.option("--limit", type=click.IntRange(1), default=None, show_default="all", help="Only the first N prompts.")
@click.option("--benchmark", default=None, show_default="all", help="Only prompts whose `benchmark` is this.")
@click.option("--repeats", type=click.IntRange(1), default=3, help="How often everything is asked.")
@click.option("--warmup", type=click.IntRange(0), default=1, help="Answers of each runner before measuring.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the engine; as jakiro-run's.")
@click.option("--threads", type=click.IntRange(1), default=None, show_default="physical cores", help="CPU threads, for all.")
@click.option(
    "--lookup/--no-lookup", default=True, help="Propose from n-grams of the text, too; the head alone is then measured as well."
)
@click.option("--nodes", type=click.IntRange(1), default=None, show_default="as many as are worth it, or all",
              help="Verify the best N nodes of every tree.")  # fmt: skip
@click.option("--raw", "--no-chat", "raw", is_flag=True, help="Give prompts to the model without its chat template.")
@click.option("--cost/--no-cost", default=True, help="Time target passes by rows and context as well.")
@click.option("--profile", is_flag=True, help="Profile the host time of a round, function by function.")
@click.option("--batch", type=_SIZES, default="", metavar="N,N,..", show_default="none",
              help="Time batches of these sizes too, with and without speculation, as jakiro-serve decodes them.")  # fmt: skip
@click.option("--compare", default="", metavar="LIST", help="Runtimes to compare with: llama.cpp, onnxruntime-genai, openvino.")
@click.option(
    "--peer-model",
    "baseline_models",
    type=_NamedPath(),
    multiple=True,
    metavar="NAME=PATH",
    help="Another runtime's model; may be repeated.",
)
@click.option("--json", "json_file", default=None, metavar="FILE", help="Write the report here; - is standard output.")
@click.option("--html", "html_file", default=None, type=_FILE, metavar="FILE", help="Write a page with plots here.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Measure an engine with and without speculation, and with its head alone, in turns, in one process.

    Rates are tokens per second after an answer's first token, pooled over all answers; reported is the median over repeats.
    Every answer is compared token for token: a bitwise engine whose answers differ ends with exit code 1.
    """
    from jakiro_runtime.errors import cli_errors

    with cli_errors(debug):
        _run(**settings)


def _run(json_file: str | None, html_file: Path | None, backend: str, compare: str, **options: Any) -> None:
    from rich.console import Console

    from jakiro_bench.benchmark import BenchOptions, run_benchmark
    from jakiro_bench.page import page
    from jakiro_bench.prompts import read_prompts, select
    from jakiro_bench.table import show
    from jakiro_runtime.engine import Engine

    for file in (json_file if json_file != "-" else None, html_file):
        _check_writable(file)
    asked = BenchOptions(compare=tuple(name.strip() for name in compare.split(",") if name.strip()), **options)
    prompts = select(read_prompts(asked.prompts), asked.benchmark, asked.limit)
    engine = Engine.open(asked.engine, backend, asked.threads)
    data = run_benchmark(engine, prompts, asked)
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if json_file == "-":
        click.echo(text)
    elif json_file:
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    if html_file:
        html_file.write_text(page(data), encoding="utf-8")
    show(data, Console(stderr=json_file == "-"))
    _check_identical(data, engine.manifest.bitwise)


def _check_identical(data: dict[str, Any], bitwise: bool) -> None:
    """Raises EngineError where answers of a bitwise engine differ."""
    from jakiro_runtime.errors import EngineError

    if bitwise and not data["identical"]:
        raise EngineError(
            f"{len(data['detail']['differences'])} answers differ between repeats or with speculation, but this engine is "
            "bitwise and they must not; export it again, and report it if that does not help."
        )
    differing = [str(each["batch"]) for each in data["detail"].get("batches", []) if not each["identical"]]
    if bitwise and differing:
        raise EngineError(
            f"Answers of batches of {', '.join(differing)} differ with speculation, but this engine is bitwise and they must "
            "not; please report it."
        )


def _check_writable(file: str | Path | None) -> None:
    """Refuse a path that cannot be written before an hour of measuring, not after it."""
    from jakiro_runtime.errors import UsageError

    if file is not None and (not Path(file).parent.is_dir() or Path(file).is_dir()):
        raise UsageError(f"{file} cannot be written: its folder must exist, and it must be a file.")


if __name__ == "__main__":
    main()
