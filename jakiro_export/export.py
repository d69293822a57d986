"""From a target and a head to an engine directory, in five steps: load, plan, trace, write, check."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import psutil
from tokenizers import Tokenizer

from jakiro_export.artifact.directory import check_space, destination, written_whole
from jakiro_export.artifact.writer import DataFiles, data_bytes, save
from jakiro_export.checkpoints.locate import locate
from jakiro_export.checkpoints.target import Target, load_target
from jakiro_export.checkpoints.tokenizer import check_tokenizer, write_tokenizer
from jakiro_export.errors import ExportError
from jakiro_export.graphs import draft_graph, target_graph
from jakiro_export.heads.model import DraftTree
from jakiro_export.heads.registry import load_head
from jakiro_export.plan import ExportOptions, ExportPlan, make_plan
from jakiro_export.quantization.scaling import scale_by_activations
from jakiro_export.report import Report
from jakiro_export.targets import families
from jakiro_export.tree_search.choose import choose_tree
from jakiro_export.tree_search.shapes import TreeConstraints
from jakiro_export.tree_search.traces import DraftCall, torch_draft
from jakiro_export.verification.check import Check
from jakiro_export.verification.compare import compare
from jakiro_export.verification.draft import load_draft
from jakiro_runtime.backends.onnxruntime import open_graph
from jakiro_runtime.bundle import Bundle
from jakiro_runtime.engine import Engine
from jakiro_runtime.format.integrity import record
from jakiro_runtime.format.manifest import Manifest
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling import machine
from jakiro_runtime.text.chat import ChatTemplate

_TIMES_WEIGHTS = 1.5  # memory of an opened engine, in bytes of its weights


def export(options: ExportOptions, report: Report) -> Manifest:
    """Write an engine directory.

    Returns:
        what its engine.json says

    Raises:
        UsageError, ExportError: see their messages; nothing is left under `options.out`.
    """
    place = destination(options.out)
    with report.step("Reading checkpoints"):
        target = load_target(locate(options.target, "target"), options.target)
        families.check(target.config)
        check_tokenizer(target.tokenizer(), target.path)
        head = load_head(locate(options.draft, "head"), options.draft, options.family)
        head.check_values()
    if options.scaling:
        with report.step("Scaling by activations"):
            scale_by_activations(target)
    plan = make_plan(options, target, head)
    report.found(plan.summary())
    with report.step("Tracing the target"):
        target_model = target_graph(plan.target, plan.metadata)
    with report.step("Tracing the draft phase"):
        draft_model = draft_graph(plan.draft, plan.metadata)
    size = data_bytes(target_model) + data_bytes(draft_model)
    check_space(place, size)
    chosen: TreePlan | None = None
    with written_whole(place) as folder:
        with DataFiles(folder) as files:
            with report.writing("Writing weights", size) as bar:
                files.progress = _advance(bar)
                save(target_model, folder / "target.onnx", files)
                save(draft_model, folder / "draft.onnx", files)
            del target_model, draft_model
            _write_tokenizer(target, folder)
            if plan.search is not None:
                plan, chosen = _measured(folder, plan, files, report)
        checks = _check(folder, plan, report)
        manifest = replace(
            plan.manifest(),
            files={
                str(file.relative_to(folder).as_posix()): record(file) for file in sorted(folder.rglob("*")) if file.is_file()
            },
            checks=[check.as_dict() for check in checks],
            tree=chosen,
        )
        manifest.write(folder)
    return manifest


def _advance(bar: Any) -> Callable[[int], None]:
    return (lambda count: bar.advance(bar.task_ids[0], count)) if bar is not None else (lambda count: None)


def _write_tokenizer(target: Target, folder: Path) -> None:
    write_tokenizer(target.tokenizer(), folder, target.path)
    generation = {"eos_token_id": target.eos_token_ids(), **target.generation}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _measured(folder: Path, plan: ExportPlan, files: DataFiles, report: Report) -> tuple[ExportPlan, TreePlan | None]:
    """Choose the tree by measurement; where that cannot be and nobody asked for it, keep the one there is, and say so."""
    weights = sum(file.stat().st_size for file in folder.glob("*.data"))
    available = psutil.virtual_memory().available
    try:
        if not plan.must_search and _TIMES_WEIGHTS * weights > available:
            raise ExportError(
                f"opening {weights / 1e9:.1f} GB of weights takes more than the {available / 1e9:.1f} GB of free memory"
            )
        with report.step("Choosing the tree by measurement"):
            plan, chosen = _choose_tree(folder, plan, files)
    except ExportError as error:
        if plan.must_search:
            raise
        report.found([("tree", f"not measured ({str(error).rstrip('.')}): speculation may be slower than none; see --tree")])
        return plan, None
    report.found([("tree", chosen.summary())])
    return plan, chosen


def _choose_tree(folder: Path, plan: ExportPlan, files: DataFiles) -> tuple[ExportPlan, TreePlan]:
    """Measure, choose and leave that tree's draft graph written; the plan that says so."""
    assert plan.search is not None
    opened, template = open_graph(folder / "target.onnx"), ChatTemplate.read(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    head, written = plan.draft.head.config, plan.draft.tree

    def write(tree: DraftTree) -> Engine:
        nonlocal written
        with_tree = plan.with_tree(tree)
        if tree is not written:
            save(draft_graph(with_tree.draft, plan.metadata), folder / "draft.onnx", files)
            written = tree
        manifest = with_tree.manifest()
        eos = frozenset(manifest.model.eos_token_ids)
        return Engine(Bundle(manifest, opened, open_graph(folder / "draft.onnx"), tokenizer, template, eos))

    def eager(tree: DraftTree) -> DraftCall:
        with_tree = plan.with_tree(tree)
        return torch_draft(load_draft(with_tree.draft), with_tree.manifest().draft_contract, tree.shape.depth + 1)

    proposed = plan.draft.draft_vocab or head.vocab
    tree, chosen = choose_tree(write, eager, written, TreeConstraints(*plan.search), proposed)
    place = machine.describe(None)
    measured = {"cpu": place["cpu"], "threads": place["threads"], **chosen.measured}
    return plan.with_tree(tree), replace(chosen, measured=measured)


def _check(folder: Path, plan: ExportPlan, report: Report) -> list[Check]:
    """Check both graphs by ONNX's rules and, where the plan asks for it, against torch. Raises ExportError where one fails."""
    with report.step("Checking both graphs with onnx.checker"):
        for name in ("target.onnx", "draft.onnx"):
            onnx.checker.check_model(str(folder / name), full_check=True)
    if not plan.verify:
        return []
    with report.step("Comparing ONNX Runtime with torch"):
        checks = compare(folder, plan)
    report.checks(checks)
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ExportError(
            f"{len(failed)} of {len(checks)} checks failed, the first: {failed[0].name} differs by "
            f"{failed[0].value:.3g}, allowed {failed[0].tolerance:.3g}; nothing was written."
        )
    return checks
