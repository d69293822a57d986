"""From a target and a head to an engine directory."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import Tokenizer

from jakiro_export.artifact.writer import DataFiles, data_bytes, save
from jakiro_export.checkpoints.head import HeadCheckpoint, load_head
from jakiro_export.checkpoints.locate import locate
from jakiro_export.checkpoints.target import Target, load_target
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.graphs import GraphOptions, draft_graph, draft_token_map, target_graph, tree_shape
from jakiro_export.heads.jakiro import TreeShape
from jakiro_export.report import Report
from jakiro_export.tree_search.choose import choose_tree
from jakiro_export.tree_search.shapes import TreeConstraints
from jakiro_export.tree_search.traces import DraftCall, torch_draft
from jakiro_export.verification.verify import Check, check_target, check_text, load_draft
from jakiro_runtime import contract as graph_contract
from jakiro_runtime.backends.onnxruntime import open_graph
from jakiro_runtime.bundle import Bundle
from jakiro_runtime.engine import Engine
from jakiro_runtime.format.integrity import record
from jakiro_runtime.format.manifest import Draft, Manifest, Model
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling import machine
from jakiro_runtime.text.chat import ChatTemplate

_PACKAGE = Path(__file__).resolve().parent
_PROMPT = "Explain in two sentences why the sky is blue, then write a haiku about it."


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how; see `jakiro-export --help`.

    auto: choose the tree by measurement; what the user fixed of it. None takes the shape in `graphs`
    """

    draft: str
    target: str
    out: Path
    graphs: GraphOptions
    max_context: int | None
    verify: bool
    auto: TreeConstraints | None = None


def export(options: ExportOptions, report: Report) -> list[Check]:
    """Write an engine directory.

    Returns:
        the checks it passed; empty with `verify` off

    Raises:
        UsageError, ExportError: see their messages; nothing is left under `options.out`.
    """
    _check_destination(options.out)
    with report.step("Reading checkpoints"):
        target = load_target(locate(options.target, "target"), options.target)
        head = load_head(locate(options.draft, "head"), options.draft)
    _check_pair(target, head, options)
    report.found(_found(target, head, options))
    metadata = _metadata(target, head)
    with report.step("Tracing the target"):
        target_model = target_graph(target, options.graphs, metadata)
    with report.step("Tracing the draft phase"):
        draft_model = draft_graph(head, target, options.graphs, metadata)
    size = data_bytes(target_model) + data_bytes(draft_model)
    _check_space(options.out, size)
    plan: TreePlan | None = None
    with _written_whole(options.out) as folder:
        with DataFiles(folder) as files:
            with report.writing("Writing weights", size) as bar:
                files.progress = _advance(bar)
                save(target_model, folder / "target.onnx", files)
                save(draft_model, folder / "draft.onnx", files)
            del target_model, draft_model
            _write_tokenizer(target, folder)
            if options.auto is not None:
                with report.step("Choosing the tree by measurement"):
                    options, plan = _choose_tree(folder, target, head, options, files)
                report.found([("tree", plan.summary())])
        with report.step("Checking both graphs with onnx.checker"):
            for name in ("target.onnx", "draft.onnx"):
                onnx.checker.check_model(str(folder / name), full_check=True)
        checks: list[Check] = []
        if options.verify:
            with report.step("Comparing ONNX Runtime with torch"):
                checks = _verify(folder, target, head, options)
            report.checks(checks)
            failed = [check for check in checks if not check.passed]
            if failed:
                raise ExportError(
                    f"{len(failed)} of {len(checks)} checks failed, the first: {failed[0].name} differs by "
                    f"{failed[0].value:.3g}, allowed {failed[0].tolerance:.3g}; nothing was written."
                )
        _manifest(folder, target, head, options, checks, plan).write(folder)
    return checks


def _advance(bar: Any) -> Any:
    return (lambda count: bar.advance(bar.task_ids[0], count)) if bar is not None else (lambda count: None)


def _check_destination(out: Path) -> None:
    if out.is_file():
        raise UsageError(f"--out {out} is a file; a folder to write is expected.")
    if out.is_dir() and any(out.iterdir()) and not (out / "engine.json").is_file():
        raise UsageError(f"--out {out} exists and is not an engine directory; give a new folder or empty it first.")


def _check_space(out: Path, size: int) -> None:
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size + 64 * 2**20:
        raise ExportError(f"Writing {size / 1e9:.2f} GB to {out} needs more than the {free / 1e9:.2f} GB that are free.")


def _check_pair(target: Target, head: HeadCheckpoint, options: ExportOptions) -> None:
    config: Any = target.config
    for what, ours, theirs in (
        ("hidden size", head.config.hidden, config.hidden_size),
        ("vocabulary", head.config.vocab, config.vocab_size),
    ):
        if ours != theirs:
            raise ExportError(
                f"Head and target do not fit: the head in {head.path} has {what} {ours}, the target "
                f"{options.target} {theirs}; use the head that was trained for this target."
            )
    shape = tree_shape(head, options.graphs)
    if shape.nodes > shape.candidates:
        raise UsageError(
            f"--nodes {shape.nodes} is more than the {shape.candidates} candidates that --depth {shape.depth} and "
            f"--top-k {shape.top_k} give."
        )
    proposed = min(options.graphs.draft_vocab or config.vocab_size, config.vocab_size)
    if shape.top_k > proposed:
        raise UsageError(f"--top-k {shape.top_k} is more than the {proposed} tokens the head may propose.")


def architecture(target: Target) -> str:
    """The model class the target's configuration names."""
    names = getattr(target.config, "architectures", None)
    return str(names[0]) if names else type(target.model()).__name__


def context_limit(target: Target, max_context: int | None) -> int:
    """The most positions the engine serves: what the target was made for, its sliding window, or less if asked."""
    config: Any = target.config
    limit = int(config.max_position_embeddings)
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if window and (windowed or getattr(config, "layer_types", None) is None):
        limit = min(limit, int(window))
    if max_context is not None and max_context > limit:
        raise UsageError(f"--max-context {max_context} is more than the {limit} positions this target can attend to.")
    return max_context or limit


def _found(target: Target, head: HeadCheckpoint, options: ExportOptions) -> Iterator[tuple[str, str]]:
    config: Any = target.config
    kv = config.num_key_value_heads
    tied = bool(getattr(config, "tie_word_embeddings", False))
    shapes = target.store.shapes().items()
    count = sum(int(np.prod(shape)) for name, shape in shapes if not (tied and name == "lm_head.weight"))
    yield (
        "target",
        f"{options.target}: {architecture(target)}, {count / 1e6:.1f} M parameters, {config.num_hidden_layers} layers, hidden "
        f"{config.hidden_size}, {config.num_attention_heads} heads over {kv} key/value heads, vocabulary "
        f"{config.vocab_size}, context {context_limit(target, options.max_context)}",
    )
    yield (
        "head",
        f"{options.draft}: {'Jakiro*' if head.config.star else 'Jakiro'}, {head.parameters / 1e6:.2f} M parameters, "
        f"{head.config.experts} experts of inner size {head.config.inner}",
    )
    graphs, shape = options.graphs, tree_shape(head, options.graphs)
    token_map = draft_token_map(head, graphs.draft_vocab)
    proposed = "all tokens" if token_map is None else f"{len(token_map)} tokens"
    yield (
        "engine",
        f"target {graphs.precision}, head {graphs.draft_precision}, {'bitwise' if graphs.bitwise else 'numerical'} equality, "
        f"opset {graphs.opset}; tree of "
        f"{shape.nodes} nodes, depth {shape.depth}, top-k {shape.top_k}, head proposes {proposed}",
    )


def _metadata(target: Target, head: HeadCheckpoint) -> dict[str, str]:
    return {
        "jakiro_version": importlib.metadata.version("jakiro-export"),
        "source_target": f"{target.name} ({target.path.name})",
        "source_head": f"{head.name} ({head.path.name})",
    }


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `out` when the block ends, or goes without a trace when it fails."""
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = out.absolute().parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            old = partial.with_name(f".{out.name}.old-{os.getpid()}")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_tokenizer(target: Target, folder: Path) -> None:
    target.tokenizer().save_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ExportError(f"The tokenizer of {target.path} has no fast form (tokenizer.json), which the runtime needs.")
    generation = {"eos_token_id": target.eos_token_ids(), **target.generation_config()}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _verify(folder: Path, target: Target, head: HeadCheckpoint, options: ExportOptions) -> list[Check]:
    ids = target.tokenizer()(_PROMPT)["input_ids"]
    prompt = np.array((ids * 16)[: max(16, len(ids))], np.int64)
    sample = (_PACKAGE / "verification" / "sample.txt").read_text(encoding="utf-8")
    text = np.array(target.tokenizer()(sample)["input_ids"], np.int64)
    return [
        *check_target(folder / "target.onnx", target, prompt, options.graphs.precision),
        *check_text(folder, head, target, options.graphs, text),
    ]


def _choose_tree(
    folder: Path, target: Target, head: HeadCheckpoint, options: ExportOptions, files: DataFiles
) -> tuple[ExportOptions, TreePlan]:
    """Measure, choose and leave that tree's draft graph written; the options that say so."""
    assert options.auto is not None
    metadata, opened = _metadata(target, head), open_graph(folder / "target.onnx")
    manifest, template = _manifest(folder, target, head, options, [], None, records=False), ChatTemplate.read(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    written = tree_shape(head, options.graphs)

    def of(shape: TreeShape) -> ExportOptions:
        return replace(options, graphs=replace(options.graphs, shape=shape))

    def write(shape: TreeShape) -> Engine:
        nonlocal written
        if shape != written:
            save(draft_graph(head, target, of(shape).graphs, metadata), folder / "draft.onnx", files)
            written = shape
        draft = replace(manifest.draft, depth=shape.depth, top_k=shape.top_k, nodes=shape.nodes)
        eos = frozenset(manifest.model.eos_token_ids)
        return Engine(Bundle(replace(manifest, draft=draft), opened, open_graph(folder / "draft.onnx"), tokenizer, template, eos))

    def eager(shape: TreeShape) -> DraftCall:
        config = head.config
        contract = graph_contract.draft(config.kv_heads, config.head_dim, config.hidden, shape.nodes)
        return torch_draft(load_draft(head, target, of(shape).graphs), contract, shape.depth + 1)

    proposed = manifest.draft.draft_vocab or manifest.model.vocab_size
    shape, plan = choose_tree(write, eager, written, options.auto, proposed, searchable=not head.config.star)
    place = machine.describe(None)
    return of(shape), replace(plan, measured={"cpu": place["cpu"], "threads": place["threads"], **plan.measured})


def _manifest(
    folder: Path,
    target: Target,
    head: HeadCheckpoint,
    options: ExportOptions,
    checks: list[Check],
    plan: TreePlan | None,
    records: bool = True,
) -> Manifest:
    config: Any = target.config
    graphs, shape = options.graphs, tree_shape(head, options.graphs)
    token_map = draft_token_map(head, graphs.draft_vocab)
    packages = ("jakiro-export", "torch", "transformers", "onnx", "onnxruntime")
    return Manifest(
        model=Model(
            name=options.target,
            architecture=architecture(target),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_context=context_limit(target, options.max_context),
            bos_token_id=getattr(config, "bos_token_id", None),
            eos_token_ids=target.eos_token_ids(),
        ),
        draft=Draft(
            variant="jakiro_star" if head.config.star else "jakiro",
            num_kv_heads=head.config.kv_heads,
            head_dim=head.config.head_dim,
            depth=shape.depth,
            top_k=shape.top_k,
            nodes=shape.nodes,
            draft_vocab=None if token_map is None else len(token_map),
            pairing=shape.pairing,
            parallel_step=shape.parallel,
            num_experts=head.config.experts,
        ),
        precision={"target": graphs.precision, "draft": graphs.draft_precision},
        equality="bitwise" if graphs.bitwise else "numerical",
        graphs={"target": "target.onnx", "draft": "draft.onnx"},
        files={file.name: record(file) for file in sorted(folder.iterdir())} if records else {},
        versions={name: importlib.metadata.version(name) for name in packages},
        source={**_metadata(target, head), "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        checks=[check.as_dict() for check in checks],
        tree=plan,
        extra={"opset": graphs.opset},
    )
