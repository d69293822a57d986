"""One build in a process of its own, because a builder may crash or abort: python -m jakiro_export.tensorrt.worker < request

The last line of its output is a JSON object: "engine_bytes", "peak_bytes" (of this process), "seconds" and "layers"; or
"error", one sentence, with exit status 1. The engine appears under its name when it is complete. `BuildRequest` says what to do.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jakiro_export.errors import ExportError
from jakiro_export.tensorrt import versions


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    kind: "tensorrt" or "tensorrt-rtx"
    model: the ONNX file to parse; source: the file that its weights' places are relative to
    profiles: for each, the three shapes of every input by name
    compute_capabilities: of the GPUs to build for ahead of time, such as 86; none builds for the GPU of this machine
    plugin: a plugin library to load first, or None
    workspace: bytes for temporary values; level: the builder's effort, 0 to 5
    """

    kind: str
    model: str
    source: str
    output: str
    profiles: list[dict[str, list[list[int]]]]
    compute_capabilities: list[int] = field(default_factory=list)
    plugin: str | None = None
    timing_cache: str | None = None
    workspace: int = 1 << 30
    level: int = 3
    strip_weights: bool = False
    full_float32: bool = True

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def build(request: BuildRequest) -> dict[str, Any]:
    """Builds and writes one engine.

    Raises:
        ExportError: TensorRT refuses the graph, the shapes or the GPU; the message has its own words
    """
    start = time.monotonic()
    api = versions.load(request.kind)
    trt = api.module
    logger = _logger(trt)
    if request.plugin is not None:
        _load_plugin(trt, request.plugin)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        reason = _line(logger.last or "is there a CUDA driver?")
        raise ExportError(f"TensorRT {api.text} makes no builder here: {reason}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request.model).read_bytes(), request.source):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)] or [logger.last]
        raise ExportError(f"TensorRT's parser refuses {Path(request.source).name}: {_line(reasons[0])}")
    config = builder.create_builder_config()
    _configure(trt, config, request)
    _add_profiles(builder, network, config, request.profiles)
    cache = _open_cache(config, request)
    size = _build_plan(trt, builder, network, config, Path(request.output))
    if size is None:
        raise ExportError(f"TensorRT's builder refuses {Path(request.source).name}: {_line(logger.last)}")
    if cache is not None and request.timing_cache is not None:
        _write(Path(request.timing_cache), memoryview(cache.serialize()))
    seconds = round(time.monotonic() - start, 2)
    return {"engine_bytes": size, "peak_bytes": _peak(), "seconds": seconds, "layers": network.num_layers}


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Warnings and errors to standard error; the last error kept for the sentence that the user reads."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                print(f"error: {message}", file=sys.stderr)
                if "cudaError 35" not in message:  # what a builder without a driver says after the reason
                    self.last = message
            elif severity == trt.ILogger.Severity.WARNING:
                print(f"warning: {message}", file=sys.stderr)

    return Logger()


def _load_plugin(trt: Any, path: str) -> None:
    registry = trt.get_plugin_registry()
    if registry.load_library(path) is None:
        raise ExportError(f"TensorRT does not load the plugin library {path}; build it on this machine, see plugins/README.md.")


def _configure(trt: Any, config: Any, request: BuildRequest) -> None:
    config.builder_optimization_level = request.level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    if request.full_float32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if request.kind == "tensorrt-rtx":  # without it a context allocates as it runs, which no stream can record
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if request.compute_capabilities:
        config.num_compute_capabilities = len(request.compute_capabilities)
        for number, sm in enumerate(request.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), number)


def _add_profiles(builder: Any, network: Any, config: Any, profiles: list[dict[str, list[list[int]]]]) -> None:
    names = [network.get_input(i).name for i in range(network.num_inputs)]
    for number, shapes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name in names:
            if name not in shapes:
                raise ExportError(f"Profile {number} says no shapes for the input {name}.")
            try:
                profile.set_shape(name, *shapes[name])
            except (ValueError, TypeError) as error:
                raise ExportError(f"The shapes {shapes[name]} of {name} make no profile: {_line(str(error))}") from error
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"TensorRT refuses profile {number}: min, opt and max do not follow each other.")


def _open_cache(config: Any, request: BuildRequest) -> Any:
    if request.timing_cache is None:
        return None
    path = Path(request.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, False):  # of another version, driver or GPU
        print(f"warning: {path.name} is not of this TensorRT and GPU; it is made anew", file=sys.stderr)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _build_plan(trt: Any, builder: Any, network: Any, config: Any, path: Path) -> int | None:
    """Build into a file, as it is made where TensorRT can do that; the file's size, None where the builder refuses."""
    if not hasattr(trt, "IStreamWriter"):
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            return None
        data = memoryview(engine)
        _write(path, data)
        return data.nbytes
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with open(partial, "wb") as file:

        class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: bytes) -> int:
                return file.write(data)

        built = builder.build_serialized_network_to_stream(network, config, Writer())
    if not built:
        partial.unlink()
        return None
    os.replace(partial, path)
    return path.stat().st_size


def _write(path: Path, data: memoryview) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)


def _peak() -> int:
    """The most memory this process has had; not what rusage says, which counts its parent's from before it became this one."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(text: str) -> str:
    """TensorRT's words as the end of a sentence, without the places in its own sources."""
    words = re.split(r" \[?\w+\.(?:cpp|h)::| In \w+ at /", " ".join(text.split()))[0].rstrip(". (")
    return f"{words}{')' if words.count('(') > words.count(')') else ''}." if words else "it gives no reason."


def main() -> None:
    """Reads a request, builds it, says how it went."""
    try:
        print(json.dumps(build(BuildRequest(**json.load(sys.stdin)))), flush=True)
    except ExportError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
