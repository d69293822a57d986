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


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. host: main memory; device: the GPU's own, nothing of it ahead of time."""

    host: int
    device: int


def estimate(graph: Graph, profiles: list[Profile], workspace: int, on_device: bool) -> MemoryEstimate:
    """What building one graph's engine needs. workspace: bytes the builder may use for temporary values."""
    host = LIBRARIES + int(COPIES * graph.weight_bytes)
    if not on_device:
        return MemoryEstimate(host, 0)
    tensors = [*graph.inputs, *graph.outputs]
    largest = max(sum(tensor.bytes(profile.longest()) for tensor in tensors) for profile in profiles)
    return MemoryEstimate(host, graph.weight_bytes + largest + workspace)


def available() -> int | None:
    """Bytes of main memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines)}
    return values.get("MemAvailable")


def check(need: MemoryEstimate, free: int | None, device_free: int | None, shared: bool, what: str) -> None:
    """Holds a need against what there is. shared: host and GPU use the same memory, as on a Jetson.

    Raises:
        ExportError: it does not fit
    """
    host = need.host + (need.device if shared else 0)
    if free is not None and host > free:
        raise ExportError(
            f"Building {what} needs about {host / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; close other "
            "programs, lower --workspace, --chunk or --max-context, or pass --ignore-memory to try anyway."
        )
    if not shared and device_free is not None and need.device > device_free:
        raise ExportError(
            f"Building {what} needs about {need.device / 2**30:.1f} GiB of GPU memory and {device_free / 2**30:.1f} GiB are "
            "free; close other programs, lower --workspace, --chunk or --max-context, or pass --ignore-memory to try anyway."
        )
