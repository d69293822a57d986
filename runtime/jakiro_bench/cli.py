"""`jakiro-bench`: speed and acceptance of an engine, against itself without speculation and against other runtimes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jakiro_runtime.backends import BACKENDS

if TYPE_CHECKING:
    from jakiro_bench.prompts import Prompt
    from jakiro_runtime.engine import Engine

_EPILOG = """\b
Examples:
  jakiro-bench --engine out/smollm2 --prompts examples/smollm2/prompts.jsonl
  jakiro-bench --engine out/smollm2 --prompts mine.jsonl --max-new-tokens 128 --json bench.json --html bench.html
  jakiro-bench --engine out/smollm2 --prompts mine.jsonl --compare llama.cpp,openvino --peer-model openvino=models/smollm2-ov
"""


class _PeerModel(click.ParamType):
    name = "name=path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, separator, path = str(value).partition("=")
        if not (name and separator and path):
            self.fail(f"{value!r} is not NAME=PATH, such as openvino=models/smollm2-ov", param, ctx)
        return name, Path(path)


_FILE = click.Path(path_type=Path)


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--engine", "-e", required=True, type=_FILE, metavar="DIR", help="What jakiro-export wrote.")
@click.option("--prompts", "-p", required=True, type=_FILE, metavar="FILE", help="JSON lines with `turns` or `prompt`.")
@click.option("--max-new-tokens", "-n", type=click.IntRange(2), default=128, help="The most tokens of an answer.")
@click.option("--limit", type=click.IntRange(1), default=None, show_default="all", help="Only the first N prompts.")
@click.option("--benchmark", default=None, show_default="all", help="Only prompts whose `benchmark` is this.")
@click.option("--repeats", type=click.IntRange(1), default=3, help="How often everything is asked.")
@click.option("--warmup", type=click.IntRange(0), default=1, help="Answers of each contender that are not measured.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the engine; as jakiro-run's.")
@click.option("--threads", type=click.IntRange(1), default=None, show_default="physical cores", help="CPU threads, for all.")
@click.option("--lookup/--no-lookup", default=True, help="Look the text up, too; the head alone is then measured beside it.")
@click.option("--nodes", type=click.IntRange(1), default=None, show_default="as many as are worth it, or all",
              help="Verify the best N nodes of every tree.")  # fmt: skip
@click.option("--raw", "--no-chat", "raw", is_flag=True, help="Give prompts to the model without its chat template.")
@click.option("--cost/--no-cost", default=True, help="Time target passes by rows and context as well.")
@click.option("--profile", is_flag=True, help="Say where the time outside the graphs goes, function by function.")
@click.option("--compare", default="", metavar="LIST", help="Peers: llama.cpp, onnxruntime-genai, openvino; with commas.")
@click.option("--peer-model", type=_PeerModel(), multiple=True, metavar="NAME=PATH", help="A peer's model; may be repeated.")
@click.option("--json", "json_file", default=None, metavar="FILE", help="Write the report here; - is standard output.")
@click.option("--html", "html_file", default=None, type=_FILE, metavar="FILE", help="Write a page with plots here.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Measure an engine with and without speculation, and with its head alone, in one process, taking turns.

    Rates are tokens after an answer's first one per second, pooled over all answers; reported is the median over repeats.
    Every answer is compared token for token: a bitwise engine whose answers differ ends with exit code 1.
    """
    from jakiro_runtime.errors import cli_errors

    with cli_errors(debug):
        _run(**settings)


def _run(json_file: str | None, html_file: Path | None, **settings: Any) -> None:
    from rich.console import Console

    from jakiro_bench.page import page
    from jakiro_bench.prompts import read_prompts, select
    from jakiro_bench.table import show
    from jakiro_runtime.engine import Engine
    from jakiro_runtime.errors import EngineError

    for file in (json_file if json_file != "-" else None, html_file):
        _check_writable(file)
    prompts = select(read_prompts(settings["prompts"]), settings["benchmark"], settings["limit"])
    engine = Engine.open(settings["engine"], settings["backend"], settings["threads"])
    data = bench(engine, prompts, settings)
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if json_file == "-":
        click.echo(text)
    elif json_file:
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    if html_file:
        html_file.write_text(page(data), encoding="utf-8")
    show(data, Console(stderr=json_file == "-"))
    if not data["identical"] and engine.manifest.bitwise:
        raise EngineError(
            f"{len(data['detail']['differences'])} answers differ between repeats or with speculation, but this engine is "
            "bitwise and they must not; export it again, and report it if that does not help."
        )


def bench(engine: Engine, prompts: list[Prompt], settings: dict[str, Any]) -> dict[str, Any]:
    """Measure everything and return the report.

    Args:
        settings: of the command line, by parameter name

    Raises:
        UsageError: no prompt fits the context, an unknown peer, a raw-only model without --raw
    """
    from jakiro_bench import baselines as peers
    from jakiro_bench.host_profile import host_alone, host_profile
    from jakiro_bench.measure import conversation, measure
    from jakiro_bench.recording import Watch
    from jakiro_bench.report import HEAD_ALONE, PLAIN, SPECULATIVE, head_alone, peer_figures, report, tree_choice
    from jakiro_bench.runners import Contender, Ours
    from jakiro_runtime.engine import Engine
    from jakiro_runtime.errors import UsageError
    from jakiro_runtime.profiling import cost, machine

    if engine.bundle.template is None and not settings["raw"]:
        raise UsageError("This engine's model has no chat template; give the prompts as they stand, with --raw.")
    load = machine.load_average()
    limit, room = settings["max_new_tokens"], engine.manifest.model.max_context
    described = machine.describe(settings["threads"])
    watch = Watch(engine.bundle.draft)
    watched = Engine(engine.bundle.replace(draft=watch))
    nodes, lookup = settings["nodes"], settings["lookup"]
    head = Ours(HEAD_ALONE if lookup else SPECULATIVE, watched.session(nodes=nodes, lookup=False), watch)
    looking_up = [Ours(SPECULATIVE, engine.session(nodes=nodes))] if lookup else []
    plain = Ours(PLAIN, engine.session(speculate=False))
    names = [name.strip() for name in settings["compare"].split(",") if name.strip()]
    others, left_out = peers.open_peers(names, settings["peer_model"], engine, described["threads"])
    contenders: list[Contender] = [*looking_up, head, plain, *others]
    render = conversation(engine, settings["raw"])

    warmup = settings["warmup"]
    total = len(contenders) * sum(len(prompt.turns) for prompt in prompts)
    with _progress("Warming up", warmup * total // max(1, len(prompts))) as advance:
        for prompt in [prompt for prompt in prompts if _fits(render, prompt, limit, room)][:warmup]:
            one = type(prompt)(prompt.id, prompt.turns[:1])
            measure(contenders, [one], render, 1, limit, room, PLAIN, advance)
    head.ranks = type(head.ranks)()
    with _progress("Measuring", settings["repeats"] * total) as advance:
        run = measure(contenders, prompts, render, settings["repeats"], limit, room, PLAIN, advance)
    if not run.turns:
        raise UsageError(
            f"No prompt fits this engine's context of {room} tokens with {limit} new ones; "
            "give shorter prompts or a smaller --max-new-tokens."
        )
    if all(len(answer.tokens) < 2 for turn in run.turns for answer in turn.answers[PLAIN]):
        raise UsageError("Every answer ended with its first token, so there is nothing to time; give other prompts.")
    data = report(run, head)
    detail = data["detail"]
    if engine.manifest.tree and not nodes:
        detail["tree_choice"] = tree_choice(engine.manifest.tree, head_alone(run))
    if settings["profile"]:
        asked = run.turns[0].ids
        detail["host_profile"] = host_profile(engine.session(nodes=nodes, lookup=lookup), asked, limit)
        detail["host_profile"]["alone_us"] = host_alone(engine, asked, limit, nodes, lookup)
    detail["peak_memory_mb"] = machine.peak_memory_mb()
    detail["peak_memory_of"] = [contender.name for contender in contenders]
    if settings["cost"]:
        with _progress("Timing target passes", len(cost.PASTS) * 8) as advance:
            detail["cost_by_rows"] = cost.cost_by_rows(engine, progress=advance)
        speed = cost.read_speed(described["threads"])
        rows = round(detail["nodes_per_round"]) + 1
        detail["long_context"] = cost.long_context(detail["cost_by_rows"], rows, speed)
    if names or settings["peer_model"]:
        found = peer_figures(run, [peer.name for peer in others])
        detail["peers"] = {peer.name: {**peers.describe(peer), **found[peer.name]} for peer in others}
        detail["peers_left_out"] = [left._asdict() for left in left_out]
    described["load_average"] = [load, machine.load_average()]
    return {**data, "machine": described, "settings": _settings(engine, len(prompts), settings)}


def _fits(render: Callable[[Any, Any], list[int]], prompt: Prompt, limit: int, room: int) -> bool:
    return len(render(prompt.turns[:1], [])) + limit <= room


def _settings(engine: Engine, prompts: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, and of which engine."""
    manifest = engine.manifest
    draft = manifest.draft
    return {
        "model": manifest.model.name,
        "engine": str(settings["engine"]),
        "precision": ", ".join(f"{part} {kind}" for part, kind in manifest.precision.items()),
        "equality": manifest.equality,
        "tree": {"depth": draft.depth, "top_k": draft.top_k, "nodes": draft.nodes},
        "nodes": settings["nodes"],
        "lookup": settings["lookup"],
        "draft_vocab": draft.draft_vocab,
        "prompts": str(settings["prompts"]),
        "prompt_count": prompts,
        **{name: settings[name] for name in ("benchmark", "limit", "max_new_tokens", "repeats", "warmup", "threads")},
        "chat": not settings["raw"],
        "temperature": 0,
    }


def _check_writable(file: str | Path | None) -> None:
    """Refuse a path that cannot be written before an hour of measuring, not behind it."""
    from jakiro_runtime.errors import UsageError

    if file is not None and (not Path(file).parent.is_dir() or Path(file).is_dir()):
        raise UsageError(f"{file} cannot be written: its folder must exist, and it must be a file.")


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, at a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


if __name__ == "__main__":
    main()
