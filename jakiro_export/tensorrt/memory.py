"""What a build needs, estimated before it starts: a builder that runs out of memory is killed without a word.

The figures for a build ahead of time are measured (tests/tensorrt holds every build against its estimate); those for a build on a
device are the same plus what it runs there, and are not run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jakiro_export.errors import ExportError
from jakiro_export.tensorrt.graphs import Graph
from jakiro_export.tensorrt.profiles import Profile

# Measured with TensorRT-RTX 1.7.1, peak of the worker: 320 MiB for a tiny draft graph, 540 - 580 for SmolLM2's in
# fp16, and 1450 - 1580 for its target with 257 MiB of weights. What larger models need is extended from these two.
LIBRARIES = 600 * 2**20
COPIES = 5.0  # of the weights
MEASURED = 300 * 2**20  # of weights: the largest that was built


def host_bytes(weights: int) -> tuple[int, int]:
    """(what a build takes of main memory, without what it certainly fails) for a graph with these bytes of weights."""
    return LIBRARIES + int(COPIES * weights), LIBRARIES + 2 * weights


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes.

    host: main memory; device: the GPU's own, nothing of it ahead of time
    floor: main memory without which it certainly fails: the weights, and the engine that is made of them
    measured: whether builds of this size were measured; else the figures are extended from smaller ones
    """

    host: int
    device: int
    floor: int
    measured: bool

    @property
    def source(self) -> str:
        return "measured" if self.measured else "estimated from smaller models"


def estimate(graph: Graph, profiles: list[Profile], workspace: int, on_device: bool) -> MemoryEstimate:
    """What building one graph's engine needs. workspace: bytes the builder may use for temporary values."""
    host, floor = host_bytes(graph.weight_bytes)
    measured = not on_device and graph.weight_bytes <= MEASURED
    if not on_device:
        return MemoryEstimate(host, 0, floor, measured)
    tensors = [*graph.inputs, *graph.outputs]
    largest = max(sum(tensor.bytes(profile.longest()) for tensor in tensors) for profile in profiles)
    return MemoryEstimate(host, graph.weight_bytes + largest + workspace, floor, measured)


def available() -> int | None:
    """Bytes of main memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines)}
    return values.get("MemAvailable")


def check(need: MemoryEstimate, free: int | None, device_free: int | None, shared: bool, what: str) -> str | None:
    """Compare a need with what there is; a warning where only an estimate says that it is too little.

    shared: host and GPU use the same memory, as on a Jetson

    Raises:
        ExportError: it does not fit
    """
    pairs = [(need.host, need.floor, need.device if shared else 0, free, "memory")]
    if not shared:
        pairs.append((need.device, need.device, 0, device_free, "GPU memory"))
    for wanted, floor, other, there, kind in pairs:
        if there is None or wanted + other <= there:
            continue
        sentence = (
            f"Building {what} needs about {(wanted + other) / 2**30:.1f} GiB of {kind} ({need.source}) and "
            f"{there / 2**30:.1f} GiB are free; close other programs, lower --workspace, --chunk or --max-context"
        )
        if need.measured or floor + other > there:
            raise ExportError(f"{sentence}, or pass --ignore-memory to try anyway.")
        return f"{sentence}, or add swap; it is tried."
    return None
