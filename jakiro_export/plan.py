"""Export plan: what the user asked for, what was found, and everything that follows from both, resolved once."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_export.checkpoints.quantised import QuantisedStore
from jakiro_export.checkpoints.target import Target
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.model import DraftTree
from jakiro_export.heads.trees import EAGLE_PATHS, StaticPaths
from jakiro_export.precisions import PRECISIONS, AttentionImpl, Precision
from jakiro_export.quantization.recipe import RECIPES, SCALED, Recipe, read_recipe
from jakiro_export.targets import families
from jakiro_runtime.format.manifest import Draft, Manifest, Model

GPU_DRAFT_VOCAB = 32768  # tokens that a head proposes in a quantised precision for GPUs, unless the user says
BLOCKED_OPSET = 21  # the first with DequantizeLinear in blocks
_PACKAGES = ("jakiro-export", "torch", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class ExportOptions:
    """What the user asked for; see `jakiro-export --help`. None: not said.

    Raises:
        UsageError: options that contradict each other
    """

    draft: str
    target: str
    out: Path
    family: str | None = None
    precision: str = "fp32"
    draft_precision: str | None = None
    equality: str | None = None
    tree: str | None = None
    depth: int | None = None
    top_k: int | None = None
    nodes: int | None = None
    pairing: str = "parent"
    parallel: bool = True
    draft_vocab: int | None = None
    max_context: int | None = None
    opset: int = 23
    recipe: Path | None = None
    scaling: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        target, head = self.precisions
        if self.recipe is not None and not target.quantized:
            raise UsageError(
                f"--recipe says how matrices are quantised, and --precision {target.name} quantises none; give another."
            )
        if self.scaling and target.name != "w4a16":
            raise UsageError(f"--scaling is for --precision w4a16, whose rounding it helps; --precision is {target.name}.")
        if self.opset < BLOCKED_OPSET and any(each.quantized and each.gpu for each in (target, head)):
            raise UsageError(f"--precision {self.precision} needs --opset {BLOCKED_OPSET} or later, which has weights in blocks.")
        if self.equality == "bitwise" and target.gpu:
            raise UsageError(
                "--equality bitwise needs --precision fp32, int8 or int4: half-precision sums are rounded on the way."
            )
        if target.activations != head.activations:
            one, other = (target, head) if target.gpu else (head, target)
            raise UsageError(
                f"Target and head exchange features: with one of them in {one.name}, which computes in {one.activations}, the "
                f"other cannot be in {other.name}, which computes in {other.activations}."
            )
        if target.name == "bf16" and self.verify:
            raise UsageError("--precision bf16 needs --no-verify: the checks run on the CPU, where ONNX Runtime has no bf16.")
        if self.tree not in (None, "auto", "fixed", "static"):
            raise UsageError(f"--tree {self.tree} is unknown; there are auto, fixed and static.")
        if self.tree == "static" and (self.depth, self.top_k, self.nodes) != (None, None, None):
            raise UsageError("--tree static has a shape of its own; leave out --depth, --top-k and --nodes.")
        if self.tree == "auto" and target.gpu:
            raise UsageError(
                f"--tree auto measures on this machine's CPU, but {target.name} engines are for GPUs; give --depth and --nodes."
            )

    @property
    def precisions(self) -> tuple[Precision, Precision]:
        """Of target and head. Raises UsageError for a name that is none, or not for heads."""
        target = _precision(self.precision)
        head = _precision(self.draft_precision or (self.precision if target.for_head else "int8"))
        if not head.for_head:
            raise UsageError(f"--draft-precision {head.name} is not offered: heads are small, and lose too much by it.")
        return target, head

    @property
    def searches(self) -> bool:
        """Whether tree, or nodes of a tree, are chosen by measurement: for a CPU, unless its shape is given."""
        if self.tree is not None and (self.tree != "static" or self.precisions[0].gpu):
            return self.tree == "auto"
        return not self.precisions[0].gpu and (self.depth, self.top_k, self.nodes) == (None, None, None)

    @property
    def shape(self) -> TreeShape:
        """The tree asked for; where it is searched, the one to begin with."""
        if not self.searches:
            return TreeShape(self.depth or 5, self.top_k or 8, self.nodes or 31, self.pairing, self.parallel)
        top_k = self.top_k or min(4, self.draft_vocab or 4)
        shape = TreeShape(self.depth or 2, top_k, self.nodes or 31, self.pairing, self.parallel)
        return replace(shape, nodes=min(shape.nodes, shape.candidates))


def _precision(name: str) -> Precision:
    if name not in PRECISIONS:
        raise UsageError(f"There is no precision {name!r}; there are {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


@dataclass(frozen=True)
class TargetPlan:
    """How the target's graph is written.

    context: positions that it serves; None for all that the model serves
    feature_layers: the layers whose inputs the head reads; none: the features after the final norm
    opset: 20 writes norms and rotary embeddings as primitives; 23 and later as single operators
    own_recipe: the user's, in place of the precision's
    """

    checkpoint: Target
    precision: Precision
    attention: AttentionImpl
    opset: int
    context: int | None = None
    own_recipe: Recipe | None = None
    feature_layers: tuple[int, ...] = ()

    @property
    def recipe(self) -> Recipe | None:
        """Which matrices are quantised, and how: the user's, else the precision's; None for none."""
        return self.own_recipe or RECIPES.get(self.precision.name)


@dataclass(frozen=True)
class DraftPlan:
    """How the draft graph is written. opset: as `TargetPlan` has it."""

    head: DraftHead
    target: Target
    tree: DraftTree
    token_map: np.ndarray | None
    precision: Precision
    opset: int
    own_recipe: Recipe | None = None

    @property
    def recipe(self) -> Recipe | None:
        """As `TargetPlan` has it."""
        return self.own_recipe or RECIPES.get(self.precision.name)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """As `TargetPlan` has it."""
        return self.head.feature_layers(self.target.config.num_hidden_layers)

    @property
    def draft_vocab(self) -> int | None:
        """How many tokens the head may propose; None for all."""
        return None if self.token_map is None else len(self.token_map)

    @property
    def attention(self) -> AttentionImpl:
        """No sum of a head has to be exact: it guesses. Fused operators are for int8's graphs, where they save the most."""
        return self.precision.attention(bitwise=False)


@dataclass(frozen=True)
class ExportPlan:
    """An export, resolved.

    equality: "bitwise" where plain and speculative decoding shall agree bit for bit, else "numerical"
    search: depth, top_k and nodes that the user fixed, None each for the search; None where the tree is not to be searched
    must_search: the user asked for it: where it cannot be, there is no engine
    metadata: where the graphs come from
    """

    target: TargetPlan
    draft: DraftPlan
    out: Path
    max_context: int
    equality: str
    search: tuple[int | None, int | None, int | None] | None
    must_search: bool
    verify: bool
    metadata: dict[str, str]

    def with_tree(self, tree: DraftTree) -> ExportPlan:
        """The same with another tree."""
        return replace(self, draft=replace(self.draft, tree=tree))

    def summary(self) -> Iterator[tuple[str, str]]:
        """Target, head and engine in words: pairs of a label and a line."""
        target, draft, shape = self.target.checkpoint, self.draft, self.draft.tree.shape
        config, count = target.config, target.parameters
        yield (
            "target",
            f"{target.name}: {families.architecture(config)}, {count / 1e6:.1f} M parameters, {config.num_hidden_layers} layers, "
            f"hidden {config.hidden_size}, {config.num_attention_heads} heads over {config.num_key_value_heads} key/value heads, "
            f"vocabulary {config.vocab_size}, context {self.max_context}",
        )
        if target.quantised is not None:
            yield "weights", f"{target.quantised}: {self._taken()}"
        yield "head", f"{draft.head.checkpoint.name}: {draft.head.summary}"
        proposed = "all tokens" if draft.token_map is None else f"the {len(draft.token_map)} {draft.head.frequency} tokens"
        yield (
            "engine",
            f"target {self.target.precision.name}, head {draft.precision.name}, {self.equality} equality, "
            f"opset {self.target.opset}; tree of {shape.nodes} nodes, depth {shape.depth}, top-k {shape.top_k}, "
            f"head proposes {proposed}",
        )

    def _taken(self) -> str:
        """What becomes of the numbers of a quantised checkpoint."""
        store, precision = self.target.checkpoint.store, self.target.precision
        assert isinstance(store, QuantisedStore)
        kinds = {"w4a16": "int4", "w8a8": "int8", "fp8": "fp8", "nvfp4": "fp4"}
        if kinds.get(precision.name) == store.kind:
            return "taken as they are where the recipe has this form, no number is rounded again"
        return f"unpacked, and rounded again to {precision.name}" if precision.quantized else f"unpacked to {precision.name}"

    def manifest(self) -> Manifest:
        """The content of engine.json but for files, checks and the choice of the tree."""
        target, draft, shape = self.target.checkpoint, self.draft, self.draft.tree.shape
        sizes = families.sizes(target.config)
        return Manifest(
            model=Model(
                name=target.name,
                architecture=families.architecture(target.config),
                vocab_size=sizes.vocab,
                hidden_size=sizes.hidden,
                num_layers=sizes.layers,
                num_kv_heads=sizes.kv_heads,
                head_dim=sizes.head_dim,
                max_context=self.max_context,
                bos_token_id=getattr(target.config, "bos_token_id", None),
                eos_token_ids=target.eos_token_ids(),
            ),
            draft=Draft(
                variant=draft.head.variant,
                num_kv_heads=draft.head.config.kv_heads,
                head_dim=draft.head.config.head_dim,
                depth=shape.depth,
                top_k=shape.top_k,
                nodes=shape.nodes,
                draft_vocab=draft.draft_vocab,
                pairing=shape.pairing,
                parallel_step=shape.parallel,
                num_experts=draft.head.num_experts,
                num_layers=draft.head.config.layers,
                feature_layers=list(draft.feature_layers),
            ),
            precision={"target": self.target.precision.name, "draft": draft.precision.name},
            equality=self.equality,
            graphs={"target": "target.onnx", "draft": "draft.onnx"},
            files={},
            versions={name: importlib.metadata.version(name) for name in _PACKAGES},
            source={**self.metadata, "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
            extra={"opset": self.target.opset},
        )


def make_plan(options: ExportOptions, target: Target, head: DraftHead) -> ExportPlan:
    """Resolve options for this target and head.

    Raises:
        UsageError: an option asks for what the target or the head cannot give
        ExportError: target and head do not fit each other
    """
    config: Any = target.config
    _check_pair(target, head)
    precision, draft_precision = options.precisions
    draft_vocab = options.draft_vocab or (GPU_DRAFT_VOCAB if draft_precision.gpu and draft_precision.quantized else None)
    equality = options.equality or ("numerical" if precision.gpu else "bitwise")
    context = families.context_limit(config, options.max_context)
    if head.window is not None and head.window < context:
        raise UsageError(
            f"The head in {head.checkpoint.path} sees {head.window} positions only, and the engine serves {context}; give "
            f"--max-context {head.window}."
        )
    feature_layers = head.feature_layers(config.num_hidden_layers)
    tree = StaticPaths(EAGLE_PATHS) if options.tree == "static" else head.tree(options.shape)
    recipe = SCALED if options.scaling else None
    if options.recipe is not None:
        recipe = read_recipe(options.recipe, precision.gpu)
    token_map = head.token_map(draft_vocab)
    _check_tree(tree.shape, config.vocab_size if token_map is None else len(token_map))
    return ExportPlan(
        target=TargetPlan(
            target,
            precision,
            target_attention(config, precision, equality == "bitwise", context),
            options.opset,
            context,
            recipe,
            feature_layers,
        ),
        draft=DraftPlan(
            head,
            target,
            tree,
            token_map,
            draft_precision,
            options.opset,
            recipe if draft_precision.quantized else None,
        ),
        out=options.out,
        max_context=context,
        equality=equality,
        search=(options.depth, options.top_k, options.nodes) if options.searches else None,
        must_search=options.tree == "auto",
        verify=options.verify,
        metadata={
            "jakiro_version": importlib.metadata.version("jakiro-export"),
            "source_target": f"{target.name} ({target.path.name})",
            "source_head": f"{head.checkpoint.name} ({head.checkpoint.path.name})",
        },
    )


def target_attention(config: Any, precision: Precision, bitwise: bool, context: int) -> AttentionImpl:
    """How a target's attention is written; where it is more than a softmax over all positions, not fused."""
    attention = precision.attention(bitwise)
    if attention == "fused" and not families.has_plain_attention(config, context):
        return "bitwise" if bitwise else "numerical"
    return attention


def _check_pair(target: Target, head: DraftHead) -> None:
    config: Any = target.config
    for what, ours, theirs in (
        ("hidden size", head.config.target_hidden, config.hidden_size),
        ("vocabulary", head.config.vocab, config.vocab_size),
    ):
        if ours != theirs:
            raise ExportError(
                f"Head and target do not fit: the head in {head.checkpoint.path} has {what} {ours}, the target "
                f"{target.name} {theirs}; use the head that was trained for this target."
            )


def _check_tree(shape: TreeShape, proposed: int) -> None:
    """proposed: how many tokens the head may propose."""
    if shape.nodes > shape.candidates:
        raise UsageError(
            f"--nodes {shape.nodes} is more than the {shape.candidates} candidates that --depth {shape.depth} and "
            f"--top-k {shape.top_k} give."
        )
    if shape.top_k > proposed:
        raise UsageError(f"--top-k {shape.top_k} is more than the {proposed} tokens the head may propose.")
