"""The builds of an engine directory, one after the other, each in a process of its own, and their records in engine.json.

The engines of one GPU are written to a temporary folder that becomes `tensorrt/<sm>/` when all are complete.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jakiro_export.errors import ExportError, UsageError
from jakiro_export.tensorrt import graphs, memory, versions
from jakiro_export.tensorrt.profiles import Limits, Profile, profiles
from jakiro_export.tensorrt.worker import BuildRequest
from jakiro_runtime.format.integrity import record
from jakiro_runtime.format.manifest import FileRecord, Manifest

AHEAD_OF_TIME = (75, 80, 86, 89, 120, 121)  # tensorrt_rtx.ComputeCapability of 1.7.1
_ON_DEVICE = {87: "Jetson Orin", 90: "H100", 100: "B200", 103: "B300", 110: "Jetson Thor"}
_SAID = 3  # lines of the builder's own output that an error repeats

Log = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to build; see `jakiro-build --help`. workspace: bytes; plugin: the library with ExpertDispatch, or None.

    own_int4: the library's GroupMatMul in place of TensorRT's products of int4 weights
    """

    limits: Limits = field(default_factory=Limits)
    workspace: int = 1 << 30
    level: int = 3
    strip_weights: bool = False
    plugin: Path | None = None
    own_int4: bool = False


@dataclass(frozen=True)
class Step:
    """One engine to build.

    name: "target" or "draft"; kind: "tensorrt" or "tensorrt-rtx"
    compute_capabilities: of its GPUs, such as (86, 120)
    """

    name: str
    kind: str
    compute_capabilities: tuple[int, ...]
    graph: graphs.Graph
    profiles: list[Profile]
    needs: memory.MemoryEstimate
    settings: Settings

    def file(self, sm: int) -> str:
        """Its place in the engine directory, for one of its GPUs."""
        return f"tensorrt/sm{sm}/{self.name}.engine"

    @property
    def refit(self) -> str:
        """The name of the model that an engine without weights is refitted from."""
        return f"{self.name}.refit.onnx"

    @property
    def title(self) -> str:
        return ", ".join(map(self.file, self.compute_capabilities))

    @property
    def uses_plugin(self) -> bool:
        return self.settings.plugin is not None and (self.graph.dispatches > 0 or self.own_int4)

    @property
    def own_int4(self) -> bool:
        """Whether int4 weights are multiplied with by the plugin."""
        return self.settings.own_int4 and self.graph.int4_products > 0

    def describe(self) -> str:
        """What it is and what it needs, in one line of figures."""
        need = f"about {self.needs.host / 2**30:.1f} GiB of memory"
        if self.needs.device:
            need += f" and {self.needs.device / 2**30:.1f} GiB of the GPU's"
        dispatch = ""
        if self.graph.dispatches:
            dispatch = ", expert dispatch by plugin" if self.uses_plugin else ", expert dispatch by standard operators"
        if self.own_int4:
            dispatch += f", {self.graph.int4_products} int4 products by plugin"
        weights = "no weights" if self.settings.strip_weights else f"{self.graph.weight_bytes / 1e6:.0f} MB of weights"
        graph = f"{self.graph.path.name}, opset {self.graph.opset}"
        return f"{self.title}: {graph}, {weights}{dispatch}; needs {need} ({self.needs.source})"


def parse_compute_capabilities(text: str) -> list[int]:
    """The GPUs of "sm86,sm120", for a build ahead of time.

    Raises:
        UsageError: one of them is none that TensorRT-RTX builds for
    """
    known = ", ".join(f"sm{sm}" for sm in AHEAD_OF_TIME)
    compute_capabilities = []
    for item in filter(None, (part.strip().lower() for part in text.split(","))):
        number = item.removeprefix("sm").removeprefix("_")
        sm = int(number) if number.isdecimal() else 0
        if sm in _ON_DEVICE:
            raise UsageError(
                f"TensorRT-RTX builds nothing for {item} ({_ON_DEVICE[sm]}) ahead of time; run jakiro-build DIR on that device."
            )
        if sm not in AHEAD_OF_TIME:
            raise UsageError(f"{item!r} is no GPU that can be built for ahead of time; known are {known}.")
        compute_capabilities.append(sm)
    if not compute_capabilities:
        raise UsageError(f"--ahead-of-time names no GPU; known are {known}.")
    return list(dict.fromkeys(compute_capabilities))


def plan(directory: Path, manifest: Manifest, kind: str, compute_capabilities: Sequence[int], settings: Settings) -> list[Step]:
    """Every build that is asked for, checked as far as that goes without TensorRT.

    Raises:
        ExportError, UsageError: a graph, a GPU or a limit does not fit; see the messages
    """
    steps = []
    for name, file in manifest.graphs.items():
        graph = graphs.read(directory / file)
        shapes = profiles(name, graph, manifest, settings.limits)
        needed = memory.estimate(graph, shapes, settings.workspace, on_device=kind == "tensorrt")
        for sm in compute_capabilities:
            graphs.check_types(graph, sm)
        steps.append(Step(name, kind, tuple(compute_capabilities), graph, shapes, needed, settings))
    return steps


def build(directory: Path, steps: list[Step], log: Log) -> None:
    """Builds the steps' engines, all for the same GPUs, and records them in engine.json.

    An engine for several GPUs is one file with a name in the folder of each.

    Raises:
        ExportError: a build failed; what was there before stays, of the new nothing is left
    """
    root = directory / "tensorrt"
    root.mkdir(exist_ok=True)
    partials = {sm: root / f".sm{sm}.partial-{os.getpid()}" for sm in steps[0].compute_capabilities}
    try:
        for partial in partials.values():
            partial.mkdir()
        first, *others = partials.values()
        with suppress(FileNotFoundError):
            shutil.copyfile(root / f"sm{steps[0].compute_capabilities[0]}" / "timing.cache", first / "timing.cache")
        built = {}
        for step in steps:
            log(f"Building {step.title}")
            figures = built[step.name] = run(step, first)
            log(f"  {figures['engine_bytes'] / 1e6:.1f} MB, {figures['layers']} layers, {figures['seconds']:.0f} s")
        records = {file.name: record(file) for file in sorted(first.iterdir())}
        for other in others:
            for file in first.iterdir():
                _link(file, other / file.name)
        for sm, partial in partials.items():
            final = root / f"sm{sm}"
            _unregister(directory, final.name)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _register(directory, steps, sm, built, records)
    except BaseException:
        for partial in partials.values():
            shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            root.rmdir()  # only if nothing else is in it
        raise


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # the file system has no hard links
        shutil.copyfile(file, to)


def request(step: Step, model: Path, folder: Path) -> BuildRequest:
    """What the worker is asked for a step: `model` is the rewritten graph, `folder` takes the engine."""
    return BuildRequest(
        kind=step.kind,
        model=str(model),
        source=str(step.graph.path.absolute()),
        output=str((folder / f"{step.name}.engine").absolute()),
        profiles=[
            {tensor.name: [list(shape) for shape in profile.shapes(tensor)] for tensor in step.graph.inputs}
            for profile in step.profiles
        ],
        compute_capabilities=list(step.compute_capabilities) if step.kind == "tensorrt-rtx" else [],
        plugin=str(step.settings.plugin) if step.uses_plugin else None,
        timing_cache=None if step.kind == "tensorrt-rtx" else str((folder / "timing.cache").absolute()),
        workspace=step.settings.workspace,
        level=step.settings.level,
        strip_weights=step.settings.strip_weights,
    )


def run(step: Step, folder: Path) -> dict[str, Any]:
    """Builds one engine into `folder`, in a process of its own; returns the worker's figures.

    Raises:
        ExportError: TensorRT refused, or its process died
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / step.graph.path.name
        opset_23 = versions.parses_opset_23(step.kind, versions.load(step.kind).version)
        parsed = graphs.parsed_model(step.graph, step.uses_plugin and step.graph.dispatches > 0, opset_23, step.own_int4)
        model.write_bytes(parsed.SerializeToString())
        if step.settings.strip_weights:  # what was parsed is what the weights are given back to, by its names
            shutil.copyfile(model, folder / step.refit)
        return run_request(request(step, model, folder))


def run_request(request: BuildRequest) -> dict[str, Any]:
    """One worker process: its figures. Raises ExportError as `run`."""
    what = Path(request.source).name
    process = subprocess.Popen(
        [sys.executable, "-m", "jakiro_export.tensorrt.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(request.to_json())
    except BaseException:
        process.kill()
        process.wait()
        raise
    answer: dict[str, Any] = {}
    with suppress(ValueError, IndexError):
        answer = json.loads(output.splitlines()[-1])
    if process.returncode == 0 and answer:
        return answer
    if "error" in answer:
        raise ExportError(answer["error"])
    last = " | ".join(line for line in errors.splitlines()[-_SAID:] if line.strip()) or "it said nothing"
    if process.returncode == -signal.SIGKILL:
        raise ExportError(f"The builder was killed while it built {what}: most likely the machine ran out of memory.")
    if process.returncode < 0:
        raise ExportError(f"The builder died of {signal.Signals(-process.returncode).name} while it built {what}; last: {last}.")
    raise ExportError(f"The builder ended with status {process.returncode} while it built {what}; last: {last}.")


def _unregister(directory: Path, sm: str) -> None:
    """Take a GPU's engines out of engine.json before the files change, so that it never lists what is not there."""
    manifest = Manifest.read(directory)
    names = [name for name in manifest.files if name.startswith(f"tensorrt/{sm}/")]
    if not names and sm not in manifest.extra.get("tensorrt", {}):
        return
    for name in names:
        del manifest.files[name]
    manifest.extra.get("tensorrt", {}).pop(sm, None)
    manifest.write(directory)


def _register(
    directory: Path, steps: list[Step], number: int, built: dict[str, dict[str, Any]], records: dict[str, FileRecord]
) -> None:
    first, sm = steps[0], f"sm{number}"
    manifest = Manifest.read(directory)
    manifest.files.update({f"tensorrt/{sm}/{name}": found for name, found in records.items()})
    api = versions.load(first.kind)
    manifest.extra.setdefault("tensorrt", {})[sm] = {
        "runtime": first.kind,
        "version": api.text,
        "ahead_of_time": first.kind == "tensorrt-rtx",
        "graphs": {step.name: step.file(number) for step in steps},
        "profiles": {
            step.name: [
                {"name": profile.name, "axes": {k: [r.min, r.opt, r.max] for k, r in profile.axes.items()}}
                for profile in step.profiles
            ]
            for step in steps
        },
        "limits": {
            "batch": first.settings.limits.batch,
            "chunk": first.settings.limits.chunk,
            "context": first.settings.limits.positions(manifest),
        },
        "dispatch": "plugin" if any(step.uses_plugin for step in steps) else "standard operators",
        "weights": "stripped" if first.settings.strip_weights else "included",
        "refits": {step.name: f"tensorrt/{sm}/{step.refit}" for step in steps} if first.settings.strip_weights else {},
        "builds": built,
        "checks": [],
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    manifest.write(directory)


def add_checks(directory: Path, sm: int, checks: list[dict[str, Any]]) -> None:
    """Put what a check on the GPU found beside the engines' record."""
    manifest = Manifest.read(directory)
    manifest.extra["tensorrt"][f"sm{sm}"]["checks"] = checks
    manifest.write(directory)
