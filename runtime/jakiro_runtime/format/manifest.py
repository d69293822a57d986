"""Manifest: `engine.json`, which says what an engine directory holds."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jakiro_runtime import contract
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.fields import FieldError, read_record, surplus
from jakiro_runtime.format.files import read_text
from jakiro_runtime.format.tree_plan import TreePlan

NAME = "engine.json"
SCHEMA = 1
EXPORT_AGAIN = "export it again, or copy the whole directory again"
_LARGEST = 64 << 20  # bytes of an engine.json
_PARTS = {"model": 0, "draft": 0, "tree": 0}  # objects whose unknown keys are kept, too


def _size(most: int, least: int = 1) -> Any:
    return field(metadata={"least": least, "most": most})


@dataclass
class Model:
    """The target's sizes; `max_context` counts prompt and answer together, in tokens."""

    name: str
    architecture: str
    vocab_size: int = _size(1 << 24)
    hidden_size: int = _size(1 << 20)
    num_layers: int = _size(1 << 12)
    num_kv_heads: int = _size(1 << 12)
    head_dim: int = _size(1 << 14)
    max_context: int = _size(1 << 30)
    bos_token_id: int | None = None
    eos_token_ids: list[int] = field(default_factory=list)


@dataclass
class Draft:
    """The draft graph: its own cache, and the shape of the tree that it drafts.

    The tree has `depth + 1` levels and `nodes` nodes, the root not counted.

    num_layers: of the head, each with its cache
    feature_layers: the target's layers whose inputs the head reads, side by side, ascending from 0; `model.num_layers` stands for
        the output of the last one. None: the features after the final norm
    """

    variant: str
    num_kv_heads: int = _size(1 << 12)
    head_dim: int = _size(1 << 14)
    depth: int = _size(1 << 10, 0)
    top_k: int = _size(1 << 16)
    nodes: int = _size(1 << 14)
    draft_vocab: int | None = None
    pairing: str = "parent"
    parallel_step: bool = True
    num_experts: int = 2
    num_layers: int = field(default=1, metadata={"least": 1, "most": 1 << 8})
    feature_layers: list[int] = field(default_factory=list)

    @property
    def levels(self) -> int:
        """The most tokens of the tree that one round can accept."""
        return self.depth + 1


@dataclass
class FileRecord:
    """One file of the directory, by size and SHA-256."""

    bytes: int
    sha256: str


@dataclass
class Manifest:
    """The whole of `engine.json`. Keys this version does not know are kept in `extra` and written back.

    equality: "bitwise" where plain and speculative decoding agree bit for bit, else "numerical"
    files: every other file of the directory, by relative path
    tree: how the tree was chosen; None where the user gave its shape
    """

    model: Model
    draft: Draft
    precision: dict[str, str]
    equality: str
    graphs: dict[str, str]
    files: dict[str, FileRecord]
    versions: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    tree: TreePlan | None = None
    schema: int = SCHEMA
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def bitwise(self) -> bool:
        return self.equality == "bitwise"

    @property
    def target_contract(self) -> contract.GraphContract:
        """What the target graph takes and gives."""
        model = self.model
        sizes = (model.num_layers, model.num_kv_heads, model.head_dim, model.hidden_size, model.vocab_size)
        return contract.target(*sizes, self.draft.feature_layers)

    @property
    def draft_contract(self) -> contract.GraphContract:
        """What the draft graph takes and gives."""
        draft = self.draft
        sizes = (draft.num_kv_heads, draft.head_dim, self.model.hidden_size, draft.nodes)
        return contract.draft(*sizes, draft.feature_layers, draft.num_layers)

    @property
    def fingerprint(self) -> str:
        """What a saved session must come from: the graphs' checksums."""
        return " ".join(record.sha256 for name, record in sorted(self.files.items()) if ".onnx" in name)

    @staticmethod
    def read(directory: str | os.PathLike[str]) -> Manifest:
        """Read `engine.json` of an engine directory; looks at no other file.

        Raises:
            UsageError: there is no such directory, or it holds no engine
            EngineError: the file is damaged, or of a schema this version does not know
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise UsageError(f"There is no engine directory at {folder}; make one with jakiro-export --out {folder}.")
        try:
            data = json.loads(read_text(folder / NAME, _LARGEST))
        except FileNotFoundError:
            raise UsageError(
                f"{folder} holds no {NAME}, so it is not an engine directory; give the folder jakiro-export wrote."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise EngineError(f"{folder / NAME} cannot be read ({error}); {EXPORT_AGAIN}.") from error
        return Manifest.from_dict(data, str(folder / NAME))

    @staticmethod
    def from_dict(data: Any, where: str = NAME) -> Manifest:
        """The manifest of a parsed `engine.json`. Raises EngineError as `read` does."""
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int):
            raise EngineError(f"{where} has no schema number, expected {SCHEMA}; {EXPORT_AGAIN}.")
        if schema != SCHEMA:
            remedy = "update the jakiro runtime" if schema > SCHEMA else "export it again with this version"
            raise EngineError(f"{where} has schema {schema}, but this version reads schema {SCHEMA}; {remedy}.")
        try:
            known = {key: value for key, value in data.items() if key != "extra"}
            manifest = read_record(Manifest, known)
            _check(manifest)
        except FieldError as error:
            raise EngineError(f"In {where}, {error}; {EXPORT_AGAIN}.") from error
        manifest.extra = surplus(Manifest, data)
        for part in _PARTS:
            if isinstance(data.get(part), dict) and (more := surplus(type(getattr(manifest, part)), data[part])):
                manifest.extra[f"{part}+"] = more
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, unknown keys in their places."""
        data = asdict(self)
        extra = data.pop("extra")
        if self.tree is None:
            del data["tree"]
        for part in _PARTS:
            if part in data:
                data[part].update(extra.pop(f"{part}+", {}))
        return {"schema": data.pop("schema"), **data, **extra}

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write `engine.json` in one step: a reader finds the old file or the new one, never half of one."""
        path = Path(directory) / NAME
        temporary = path.with_name(f"{NAME}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def _check(manifest: Manifest) -> None:
    """What several fields must agree on. Raises FieldError."""
    for graph in (contract.TARGET, contract.DRAFT):
        if graph not in manifest.graphs:
            raise FieldError(f"the field graphs.{graph} is missing")
    for name in (*manifest.files, *manifest.graphs.values()):
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise FieldError(f"the file {name!r} lies outside the directory")
    for name, ids in (("eos_token_ids", manifest.model.eos_token_ids), ("bos_token_id", [manifest.model.bos_token_id or 0])):
        if any(token >= manifest.model.vocab_size for token in ids):
            raise FieldError(f"the field model.{name} holds a token outside the vocabulary of {manifest.model.vocab_size}")
    chosen = manifest.draft.feature_layers
    if chosen != sorted(set(chosen)) or any(not 0 <= layer <= manifest.model.num_layers for layer in chosen):
        raise FieldError(
            f"the field draft.feature_layers is {chosen}; ascending numbers from 0 to {manifest.model.num_layers} were expected"
        )
    if manifest.equality not in ("bitwise", "numerical"):
        raise FieldError(f"the field equality is {manifest.equality!r}; bitwise or numerical was expected")
    if manifest.tree is not None:
        manifest.tree.check()
