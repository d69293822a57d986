"""`jakiro-inspect`: what is in an engine directory or a head, and what it would need and do on a device that is not here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

DRAFT_VOCAB = 32768

_EPILOG = """\b
Examples:
  jakiro-inspect out/llama2
  jakiro-inspect ckpt/                                     the family of a head, and what it would draft
  jakiro-inspect out/llama2 --budget orin-nx-16gb
  jakiro-inspect --budget --all                            the table in docs/jetson.md
  jakiro-inspect llama2-7b --estimate agx-orin-64gb --tau 4.8
  jakiro-inspect llama3.1-8b --estimate thor-128gb --precision w4a16 --batch 8
  jakiro-inspect out/llama2 --estimate rtx-4090 --bench report.json

Budgets and estimates are worked out from sizes and data sheets; nothing of them has run on a GPU.
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("engine", metavar="DIR|CKPT|MODEL", required=False)
@click.option("--budget", metavar="DEVICE", is_flag=False, flag_value="", help="Memory it needs on a device, such as "
              "orin-nx-16gb. An estimate.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="With --budget: a table of the known models on every Jetson.")
@click.option("--estimate", metavar="DEVICE", help="Time of a round and tokens a second on a device. An estimate.")
@click.option("--tau", type=click.FloatRange(1), help="Tokens per target pass, as jakiro-bench measures it.")
@click.option("--bench", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A report of jakiro-bench: its "
              "tau, and from its acceptance by rank the best number of nodes.")  # fmt: skip
@click.option("--context", type=click.IntRange(1), default=None, show_default="512 for times, all for memory",
              help="Positions in the cache.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=1, help="Sequences at once.")
@click.option("--precision", default=None, show_default="fp16", metavar="NAME", help="For a MODEL: fp16, bf16, w4a16, "
              "w8a8, fp8 or nvfp4. An engine directory has its own.")  # fmt: skip
@click.option("--draft-vocab", type=click.IntRange(1), default=None, show_default="32768", help="For a MODEL: tokens "
              "that its head proposes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Say what is in the engine directory DIR, or what head is in the folder CKPT.

    With --budget or --estimate: the memory and speed of DIR, or of a MODEL by its alias.
    """
    from jakiro_runtime.errors import cli_errors

    with cli_errors(debug):
        _run(**settings)


@dataclass(frozen=True)
class _Subject:
    """What the figures are worked out from; target and draft are `estimates.cost_model.CostModel`."""

    target: Any
    draft: Any
    hidden: int
    vocab: int
    max_context: int
    nodes: int
    top_k: int
    before: Any = None  # the draft phase in half precision over the whole vocabulary
    graphs: tuple[Any, ...] = ()

    def refusal(self, sm: int) -> str | None:
        """Why TensorRT builds nothing from these graphs for a GPU; None where nothing is known against it."""
        from jakiro_export.errors import ExportError
        from jakiro_export.tensorrt.graphs import check_types

        try:
            for graph in self.graphs:
                check_types(graph, sm)
        except ExportError as error:
            return str(error)
        return None


def _subject(engine: str, precision: str | None, draft_vocab: int | None) -> _Subject:
    from jakiro_export.errors import UsageError
    from jakiro_export.estimates import cost_model
    from jakiro_export.tensorrt import graphs
    from jakiro_runtime.format.manifest import Manifest

    if engine in cost_model.SIZES and not Path(engine).is_dir():
        if precision is not None and precision not in cost_model.WEIGHTS:
            raise UsageError(
                f"There are no figures for --precision {precision!r}; there are for {', '.join(cost_model.WEIGHTS)}."
            )
        plain = cost_model.SIZES[engine]
        sizes = plain.at(precision or "fp16", draft_vocab or DRAFT_VOCAB)
        return _Subject(sizes.target(), sizes.draft(5), sizes.hidden, sizes.vocab, 4096, 60, 10, plain.draft(5))
    if precision is not None or draft_vocab is not None:
        option = "--precision" if precision is not None else "--draft-vocab"
        raise UsageError(f"{option} is for a model by its alias; an engine directory has its own.")
    manifest = Manifest.read(engine)
    both = tuple(graphs.read(Path(engine) / manifest.graphs[name]) for name in ("target", "draft"))
    model, tree = manifest.model, manifest.draft
    target, draft = map(cost_model.of_graph, both)
    return _Subject(target, draft, model.hidden_size, model.vocab_size, model.max_context, tree.nodes, tree.top_k, None, both)


def _run(
    engine: str | None,
    budget: str | None,
    every: bool,
    estimate: str | None,
    tau: float | None,
    bench: Path | None,
    context: int | None,
    batch: int,
    precision: str | None,
    draft_vocab: int | None,
    as_json: bool,
) -> None:
    from jakiro_export.errors import UsageError

    if every:
        if budget != "" or engine is not None:
            raise UsageError("--all is for --budget without a device and a model: jakiro-inspect --budget --all.")
        from jakiro_export.estimates import table

        click.echo("\n".join(table.markdown(context or 4096, batch)))
        return
    if engine is None:
        raise UsageError("Name an engine directory, or a model by its alias.")
    if budget == "":
        raise UsageError("--budget needs a device, such as --budget orin-nx-16gb, or --all.")
    if (tau is not None or bench is not None) and estimate is None:
        raise UsageError(f"{'--tau' if tau is not None else '--bench'} is for --estimate DEVICE; give that too.")
    if budget is None and estimate is None:
        folder = Path(engine)
        is_head = (folder / "config.json").is_file() and not (folder / "engine.json").is_file()
        data = _head(folder) if is_head else _contents(engine)
    else:
        subject, data = _subject(engine, precision, draft_vocab), {}
        if budget is not None:
            data["budget"] = _budget(subject, budget, context or subject.max_context, batch)
        if estimate is not None:
            data["estimate"] = _estimate(subject, estimate, tau, bench, context or 512, batch)
    click.echo(json.dumps(data, indent=2) if as_json else "\n".join(_lines(data)))


def _contents(engine: str) -> dict[str, Any]:
    from jakiro_runtime.format.manifest import Manifest

    manifest = Manifest.read(engine)
    model, tree = manifest.model, manifest.draft
    engines = manifest.extra.get("tensorrt", {})
    experts = f", {tree.num_experts} experts" if tree.num_experts > 1 else ""
    return {
        "model": f"{model.name}, {model.architecture}, {model.num_layers} layers, hidden {model.hidden_size}, vocabulary "
        f"{model.vocab_size}, {model.max_context} positions",
        "head": f"{tree.variant}{experts}; tree of {tree.nodes} nodes, depth {tree.depth}, top-k {tree.top_k}",
        "tree": f"chosen by --tree auto: {manifest.tree.summary()}" if manifest.tree else "as given at export",
        "precision": ", ".join(f"{name} {kind}" for name, kind in manifest.precision.items()) + f"; {manifest.equality} equality",
        "files": {name: f"{file.bytes / 1e6:.1f} MB" for name, file in manifest.files.items()},
        "checks": f"{len(manifest.checks)} when it was exported" if manifest.checks else "none: exported with --no-verify",
        "engines": {
            sm: f"{entry['runtime']} {entry['version']}, {'ahead of time, ' if entry['ahead_of_time'] else ''}"
            + (f"{len(entry['checks'])} checks on the GPU" if entry["checks"] else "not run on a GPU")
            for sm, entry in engines.items()
        }
        or "none; jakiro-build makes them",
    }


def _head(path: Path) -> dict[str, Any]:
    from jakiro_export.heads.config import TreeShape
    from jakiro_export.heads.registry import load_head

    head = load_head(path, str(path))
    config, tree, store = head.config, head.tree(TreeShape()), head.checkpoint.store
    told = _trained_for(head.checkpoint.config)
    kind = "a tree of another shape can be asked for" if tree.searchable else "its own tree, always"
    return {
        "family": head.variant,
        "dialect": head.dialect,
        "head": head.summary,
        "target": f"{f'{told}, ' if told else ''}hidden size {config.target_hidden}, vocabulary {config.vocab}",
        "reads": head.reads,
        "drafts": f"{tree.shape.nodes} nodes, depth {tree.shape.depth}, top-k {tree.shape.top_k}: {kind}",
        "flags": head.flags,
        "tensors": {name: f"{store.dtype(name)} {list(shape)}" for name, shape in sorted(store.shapes().items())},
    }


def _trained_for(config: dict[str, Any]) -> str | None:
    """The target that a head's `config.json` names, in whatever field; None where it names none."""
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    named = (config.get(key) for key in ("target_model_name_or_path", "_name_or_path", "target_model_type"))
    return next((name for name in (verifier.get("name_or_path"), *named) if isinstance(name, str) and name), None)


def _budget(subject: _Subject, device: str, context: int, batch: int) -> dict[str, Any]:
    from jakiro_export.estimates import budget, devices

    gpu = devices.find(device)
    found = budget.budget(subject.target, subject.draft, gpu, subject.hidden, subject.vocab, context, batch)
    fits = "it fits" if found.running <= gpu.memory else "it does not fit"
    builds = "it can be built there" if found.build <= gpu.memory else "too much to build there in one piece"
    refusal = subject.refusal(gpu.sm)
    if refusal is not None:
        builds = f"TensorRT builds nothing from it: {refusal.rstrip('.')}"
    return {
        "device": f"{gpu.label}, {gpu.memory / 2**30:.0f} GiB{' shared with the system' if gpu.shared else ''}",
        "for": f"{batch} sequence{'s' if batch > 1 else ''} of {context} positions",
        **{name: f"{size / 2**30:.2f} GiB" for name, size in found.rows() if size},
        "verdict": f"{fits}; {builds}",
        "note": "estimated from sizes, not run on a GPU",
    }


def _estimate(subject: _Subject, device: str, tau: float | None, bench: Path | None, context: int, batch: int) -> dict[str, Any]:
    from jakiro_export.estimates import devices, estimate

    gpu = devices.find(device)
    sizes = (subject.target, subject.draft, gpu)
    found = estimate.estimate(*sizes, subject.nodes, subject.top_k, context, batch)
    data: dict[str, Any] = {
        "device": gpu.label,
        "for": f"{batch} sequence{'s' if batch > 1 else ''} behind {context} positions",
        "plain step": f"{found.plain * 1e3:.1f} ms, {batch / found.plain:.1f} tokens/s",
        "round": f"{found.round * 1e3:.1f} ms: draft {found.draft * 1e3:.1f}, target over {subject.nodes + 1} rows "
        f"{found.verify * 1e3:.1f}, host {estimate.HOST_SECONDS * 1e3:.1f}",
        "draft phase": _draft_phase(subject),
        "break-even": f"tau {found.break_even:.2f}",
    }
    shares, said = None, "assumed acceptance"
    if bench is not None:
        measured, shares = _measured(bench)
        tau, said = tau or measured, "measured acceptance"
    if tau is not None:
        speed = batch * found.speed(tau)
        data["with speculation"] = f"{speed:.1f} tokens/s at tau {tau:.2f}, {speed * found.plain / batch:.2f} times plain"
    if shares or bench is None:
        used = shares or estimate.ASSUMED_SHARES
        nodes, there, best = estimate.best_nodes(*sizes, used, subject.top_k, context, batch)
        data["best tree"] = f"{nodes} nodes: tau {there:.2f}, {batch * best.speed(there):.1f} tokens/s ({said})"
        fixed = min(60, len(used))
        at = estimate.estimate(*sizes, fixed, subject.top_k, context, batch)
        data[f"a tree of {fixed}"] = f"tau {1 + sum(used[:fixed]):.2f}, {batch * at.speed(1 + sum(used[:fixed])):.1f} tokens/s"
    data["note"] = "a roofline estimate, not run on a GPU"
    return data


def _draft_phase(subject: _Subject) -> str:
    text = f"{subject.draft.read / 1e9:.2f} GB of weights read, {subject.draft.launches} launches"
    if subject.before is None or subject.before.read == subject.draft.read:
        return text
    return f"{text}; in half precision over the whole vocabulary {subject.before.read / 1e9:.2f} GB"


def _measured(path: Path) -> tuple[float, list[float] | None]:
    """tau and, where they were counted, the shares of accepted nodes by rank, of a report of jakiro-bench."""
    from jakiro_export.errors import UsageError

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        ranks = data["detail"]["acceptance"]["by_rank"]
        return float(data["tau"]), ranks["by_tree_rank"] if ranks else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no report of jakiro-bench ({type(error).__name__}: {error}); make one with --json."
        ) from error


def _lines(data: dict[str, Any], indent: str = "") -> list[str]:
    width = max((len(name) for name, value in data.items() if not isinstance(value, dict)), default=0)
    lines = []
    for name, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:{width}}  {value}")
    return lines


if __name__ == "__main__":
    main()
