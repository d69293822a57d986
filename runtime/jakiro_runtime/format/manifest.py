"""`engine.json`: what an engine directory holds. Read, written, and held against the files beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jakiro_runtime import contract
from jakiro_runtime.errors import EngineError, UsageError

NAME = "engine.json"
SCHEMA = 1
EXPORT_AGAIN = "export it again, or copy the whole directory again"
_BLOCK = 1 << 22
_BUSY = 0.08  # of the processors for other programs: times measured meanwhile are not this machine's
_PARTS = ("model", "draft", "tree")  # objects whose unknown keys are kept, too

Progress = Callable[[str, int], None]
"""Called with a file's name and a count of bytes just read."""


@dataclass
class Model:
    """The target's sizes; `max_context` counts prompt and answer together, in tokens."""

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    bos_token_id: int | None = None
    eos_token_ids: list[int] = field(default_factory=list)


@dataclass
class Draft:
    """The draft graph: its own one-layer cache, and the shape of the tree it grows.

    The tree has `depth + 1` levels and `nodes` nodes, the root not counted.
    """

    variant: str
    num_kv_heads: int
    head_dim: int
    depth: int
    top_k: int
    nodes: int
    draft_vocab: int | None = None
    pairing: str = "parent"
    parallel_step: bool = True
    num_experts: int = 2

    @property
    def levels(self) -> int:
        """The most tokens one round can accept from the tree."""
        return self.depth + 1


@dataclass
class TreePlan:
    """What `jakiro-export --tree auto` measured and expects; times in milliseconds, of one sequence on one machine.

    rows: numbers of rows of a target pass, ascending
    target_ms: a pass of each of them, by the capacity of the cache (slots, as text)
    draft_ms: the draft phase
    host_ms: a round outside both
    log_probs, acceptance: how often the target took a drafted node of this cumulative log-probability; both ascending
    expected: tau, tokens_per_second, plain_tokens_per_second, speedup, round_ms and nodes_per_round, on the calibration answers
    result: tau, tokens_per_second, plain_tokens_per_second and speedup of decoding the same answers with the finished engine
    shape: what was chosen: depth, top_k and nodes
    considered: the shapes that were compared, best first
    measured: on what: processor, threads, how many answers and tokens; `others`: the share of the processors that other programs
        took meanwhile
    """

    rows: list[int]
    target_ms: dict[str, list[float]]
    draft_ms: float
    log_probs: list[float]
    acceptance: list[float]
    expected: dict[str, float]
    host_ms: float = 0.0
    result: dict[str, float] = field(default_factory=dict)
    shape: dict[str, int] = field(default_factory=dict)
    considered: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def capacities(self) -> list[int]:
        """The cache capacities that were measured, ascending."""
        return sorted(map(int, self.target_ms))

    def summary(self) -> str:
        """The choice, the expectation and the result in words."""
        shape, figures, result, others = self.shape, self.expected, self.result, self.measured.get("others")
        words = (
            f"depth {shape['depth']}, top-k {shape['top_k']}, {shape['nodes']} nodes, {figures['nodes_per_round']:.1f} of them a "
            f"round; expected are tau {figures['tau']:.2f} and {figures['tokens_per_second']:.1f} tokens/s, "
            f"{figures['speedup']:.2f} times plain"
        )
        if result:
            words += f"; reached {result['tau']:.2f}, {result['tokens_per_second']:.1f} and {result['speedup']:.2f}"
        if others is not None and others > _BUSY:
            words += (
                f". Other programs took {100 * others:.0f} % of the processors meanwhile: for a choice to rely on, export again "
                "on a quiet machine"
            )
        return words

    def milliseconds(self, rows: int, capacity: int) -> float:
        """A target pass, between what was measured and beyond: linear in rows and in capacity."""
        capacities = self.capacities
        at = [_line(rows, self.rows, self.target_ms[str(slots)]) for slots in capacities]
        return _line(capacity, capacities, at)


def _line(x: float, xs: list[int], ys: list[float]) -> float:
    """Linear interpolation, continued beyond the ends; xs ascending."""
    if len(xs) == 1:
        return ys[0]
    right = min(max(1, sum(each < x for each in xs)), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


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
        return contract.target(model.num_layers, model.num_kv_heads, model.head_dim, model.hidden_size, model.vocab_size)

    @property
    def draft_contract(self) -> contract.GraphContract:
        """What the draft graph takes and gives."""
        draft = self.draft
        return contract.draft(draft.num_kv_heads, draft.head_dim, self.model.hidden_size, draft.nodes)

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
            data = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{folder} holds no {NAME}, so it is not an engine directory; give the folder jakiro-export wrote."
            ) from None
        except (OSError, ValueError) as error:
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
            known = {
                **data,
                "model": _known(Model, data["model"]),
                "draft": _known(Draft, data["draft"]),
                "files": {name: _known(FileRecord, record) for name, record in data["files"].items()},
            }
            if data.get("tree") is not None:
                known["tree"] = _known(TreePlan, data["tree"])
            names = {f.name for f in fields(Manifest)} - {"extra"}
            extra = {key: value for key, value in data.items() if key not in names}
            for part in _PARTS:
                if not isinstance(data.get(part), dict):
                    continue
                surplus = {key: value for key, value in data[part].items() if not hasattr(known[part], key)}
                if surplus:
                    extra[f"{part}+"] = surplus
            return Manifest(**{key: known[key] for key in names if key in known}, extra=extra)
        except (KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{where} lacks or misspells the field {error}; {EXPORT_AGAIN}.") from error

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


def _known(kind: type, data: dict[str, Any]) -> Any:
    names = {f.name for f in fields(kind)}
    return kind(**{key: value for key, value in data.items() if key in names})


def record(path: str | os.PathLike[str], progress: Progress = lambda name, count: None) -> FileRecord:
    """The size and SHA-256 of a file, for `Manifest.files`."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            progress(Path(path).name, len(block))
    return FileRecord(size, digest.hexdigest())


def check_integrity(
    manifest: Manifest,
    directory: str | os.PathLike[str],
    full: bool = False,
    only: Iterable[str] | None = None,
    progress: Progress = lambda name, count: None,
) -> None:
    """Hold every file of the directory against its size and SHA-256.

    A file that was found right before, and whose size, inode and times have not moved since, is not read again, so that only
    the first opening of an engine costs a pass over its weights. `full` reads everything. `only` names the files to check; all
    if None.

    Raises:
        EngineError: a file is missing, or is not the one that was exported
    """
    folder = Path(directory)
    seen = {} if full else _read_stamps()
    fresh: dict[str, list[Any]] = {}
    for graph in manifest.graphs.values():
        if graph not in manifest.files:
            raise EngineError(f"{folder / NAME} names the graph {graph} but does not list it; {EXPORT_AGAIN}.")
    for name in manifest.files if only is None else only:
        expected, path = manifest.files[name], folder / name
        try:
            status = path.stat()
        except FileNotFoundError:
            raise EngineError(f"The engine at {folder} has no file {name}; {EXPORT_AGAIN}.") from None
        if status.st_size != expected.bytes:
            raise EngineError(
                f"{path} has {status.st_size} bytes, but {expected.bytes} were exported: it was changed or cut; {EXPORT_AGAIN}."
            )
        key = str(path.resolve())
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, expected.sha256]
        if seen.get(key) == stamp:
            continue
        found = record(path, progress)
        if found.sha256 != expected.sha256:
            raise EngineError(
                f"{path} is not the file that was exported (sha256 {found.sha256[:12]}..., expected "
                f"{expected.sha256[:12]}...); {EXPORT_AGAIN}."
            )
        fresh[key] = stamp
    if fresh:
        _add_stamps(fresh)


def _stamp_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jakiro" / "verified.json"


def _read_stamps() -> dict[str, Any]:
    try:
        stamps = json.loads(_stamp_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _add_stamps(fresh: dict[str, list[Any]]) -> None:
    """Remember files found right. A cache: where it cannot be written, the next opening reads the files again."""
    try:
        path = _stamp_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        stamps = {key: stamp for key, stamp in _read_stamps().items() if os.path.exists(key)}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**stamps, **fresh}), encoding="utf-8")
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        pass
