"""One benchmark run: the engine with and without speculation, its head alone, and other runtimes, measured into one report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from jakiro_bench import baselines
from jakiro_bench.baselines import Skipped
from jakiro_bench.batches import WAVES, by_batch
from jakiro_bench.host_profile import host_profile, replayed_host_us
from jakiro_bench.measure import Render, Run, conversation, measure
from jakiro_bench.prompts import Prompt
from jakiro_bench.recording import RankCounts, RecordingGraph
from jakiro_bench.report import HEAD_ALONE, PLAIN, SPECULATIVE, baseline_metrics, head_alone, report, tree_choice
from jakiro_bench.runners import EngineRunner, Runner
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import UsageError
from jakiro_runtime.profiling import cost, machine


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how; see `jakiro-bench --help`.

    nodes: verify the best N nodes of every tree; None leaves it to the engine
    batch: sizes of batches to time, as a server decodes them
    compare, baseline_models: names of other runtimes, and (name, path) of their models
    """

    engine: Path
    prompts: Path
    benchmark: str | None = None
    limit: int | None = None
    max_new_tokens: int = 128
    repeats: int = 3
    warmup: int = 1
    threads: int | None = None
    nodes: int | None = None
    lookup: bool = True
    raw: bool = False
    cost: bool = True
    profile: bool = False
    batch: tuple[int, ...] = ()
    compare: tuple[str, ...] = ()
    baseline_models: tuple[tuple[str, Path], ...] = ()


@dataclass
class _Runners:
    """Who takes part. head: decodes with the head alone, its trees recorded; it is `speculative` where nothing is looked up."""

    head: EngineRunner
    all: list[Runner]
    baselines: list[Runner]
    skipped: list[Skipped]


def run_benchmark(engine: Engine, prompts: Sequence[Prompt], options: BenchOptions) -> dict[str, Any]:
    """Measure everything and return the report.

    Raises:
        UsageError: no prompt fits the context, an unknown baseline, a model without chat template and no --raw
    """
    if engine.bundle.template is None and not options.raw:
        raise UsageError("This engine's model has no chat template; give the prompts as they stand, with --raw.")
    load, described = machine.load_average(), machine.describe(options.threads)
    runners = _runners(engine, options, described["threads"])
    run = _measured(runners, engine, prompts, options)
    data = report(run, runners.head)
    detail = data["detail"]
    if engine.manifest.tree and not options.nodes:
        detail["tree_choice"] = tree_choice(engine.manifest.tree, head_alone(run))
    if options.profile:
        detail["host_profile"] = _host_profile(engine, run.turns[0].ids, options)
    detail["peak_memory_mb"] = machine.peak_memory_mb()
    detail["peak_memory_of"] = [runner.name for runner in runners.all]
    if options.cost:
        detail.update(_costs(engine, round(detail["nodes_per_round"]) + 1, described["threads"]))
    if options.batch:
        detail["batches"] = _batches(engine, [turn.ids for turn in run.turns], options)
    if options.compare or options.baseline_models:
        detail.update(_compared(run, runners))
    described["load_average"] = [load, machine.load_average()]
    return {**data, "machine": described, "settings": _settings(engine, len(prompts), options)}


def _runners(engine: Engine, options: BenchOptions, threads: int) -> _Runners:
    recording = RecordingGraph(engine.bundle.draft)
    recorded = Engine(engine.bundle.replace(draft=recording)).session(nodes=options.nodes, lookup=False)
    head = EngineRunner(HEAD_ALONE if options.lookup else SPECULATIVE, recorded, recording)
    with_lookup = [EngineRunner(SPECULATIVE, engine.session(nodes=options.nodes))] if options.lookup else []
    plain = EngineRunner(PLAIN, engine.session(speculate=False))
    others, skipped = baselines.open_baselines(options.compare, options.baseline_models, engine, threads)
    return _Runners(head, [*with_lookup, head, plain, *others], others, skipped)


def _measured(runners: _Runners, engine: Engine, prompts: Sequence[Prompt], options: BenchOptions) -> Run:
    """Warm up, then measure. Raises UsageError where there was nothing to time."""
    limit, room = options.max_new_tokens, engine.manifest.model.max_context
    render = conversation(engine, options.raw)
    total = len(runners.all) * sum(len(prompt.turns) for prompt in prompts)
    with _progress("Warming up", options.warmup * total // max(1, len(prompts))) as advance:
        for prompt in [prompt for prompt in prompts if _fits(render, prompt, limit, room)][: options.warmup]:
            first_turn = Prompt(prompt.id, prompt.turns[:1])
            measure(runners.all, [first_turn], render, 1, limit, room, PLAIN, advance)
    runners.head.ranks = RankCounts()
    with _progress("Measuring", options.repeats * total) as advance:
        run = measure(runners.all, prompts, render, options.repeats, limit, room, PLAIN, advance)
    if not run.turns:
        raise UsageError(
            f"No prompt fits this engine's context of {room} tokens with {limit} new ones; "
            "give shorter prompts or a smaller --max-new-tokens."
        )
    if all(len(answer.tokens) < 2 for turn in run.turns for answer in turn.answers[PLAIN]):
        raise UsageError("Every answer ended with its first token, so there is nothing to time; give other prompts.")
    return run


def _fits(render: Render, prompt: Prompt, limit: int, room: int) -> bool:
    return len(render(prompt.turns[:1], [])) + limit <= room


def _host_profile(engine: Engine, prompt: Sequence[int], options: BenchOptions) -> dict[str, Any]:
    profile = host_profile(engine.session(nodes=options.nodes, lookup=options.lookup), prompt, options.max_new_tokens)
    profile["alone_us"] = replayed_host_us(engine, prompt, options.max_new_tokens, options.nodes, options.lookup)
    return profile


def _costs(engine: Engine, rows: int, threads: int) -> dict[str, Any]:
    """Target passes by rows and context; and what a longer context costs a verification of `rows` rows."""
    with _progress("Timing target passes", len(cost.PASTS) * cost.REPEATS) as advance:
        table = cost.cost_by_rows(engine, progress=advance)
    return {"cost_by_rows": table, "long_context": cost.long_context(table, rows, cost.read_speed(threads))}


def _batches(engine: Engine, prompts: Sequence[Sequence[int]], options: BenchOptions) -> list[dict[str, Any]]:
    with _progress("Timing batches", 2 * WAVES * options.repeats * sum(options.batch)) as advance:
        asked = (prompts, options.batch, options.max_new_tokens, options.repeats, options.nodes, options.lookup)
        return by_batch(engine, *asked, progress=advance)


def _compared(run: Run, runners: _Runners) -> dict[str, Any]:
    """What other runtimes came to; the keys keep their names from earlier reports."""
    metrics = baseline_metrics(run, [each.name for each in runners.baselines])
    return {
        "peers": {each.name: {**baselines.describe(each), **metrics[each.name]} for each in runners.baselines},
        "peers_left_out": [each._asdict() for each in runners.skipped],
    }


def _settings(engine: Engine, prompts: int, options: BenchOptions) -> dict[str, Any]:
    """What was asked for, and of which engine."""
    manifest = engine.manifest
    draft = manifest.draft
    return {
        "model": manifest.model.name,
        "engine": str(options.engine),
        "precision": ", ".join(f"{part} {kind}" for part, kind in manifest.precision.items()),
        "equality": manifest.equality,
        "tree": {"depth": draft.depth, "top_k": draft.top_k, "nodes": draft.nodes},
        "nodes": options.nodes,
        "lookup": options.lookup,
        "draft_vocab": draft.draft_vocab,
        "prompts": str(options.prompts),
        "prompt_count": prompts,
        "benchmark": options.benchmark,
        "limit": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "batch": list(options.batch),
        "threads": options.threads,
        "chat": not options.raw,
        "temperature": 0,
    }


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, at a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
