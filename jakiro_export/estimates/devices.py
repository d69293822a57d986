"""GPUs, by their data sheets: memory bandwidth, dense half-precision tensor throughput, memory."""

from __future__ import annotations

from dataclasses import dataclass

from jakiro_export.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A device.

    bandwidth: bytes a second; flops: dense half-precision operations a second with float sums; memory: bytes
    shared: the host uses the same memory, as on a Jetson
    """

    label: str
    sm: int
    bandwidth: float
    flops: float
    memory: int
    shared: bool = False


def _gpu(label: str, sm: int, gigabytes: float, teraflops: float, gib: int, shared: bool = False) -> Gpu:
    return Gpu(label, sm, gigabytes * 1e9, teraflops * 1e12, gib << 30, shared)


GPUS: dict[str, Gpu] = {
    "orin-nano-8gb": _gpu("Jetson Orin Nano Super 8 GB", 87, 102, 17, 8, True),
    "orin-nx-8gb": _gpu("Jetson Orin NX 8 GB", 87, 102, 18, 8, True),
    "orin-nx-16gb": _gpu("Jetson Orin NX 16 GB", 87, 102, 25, 16, True),
    "agx-orin-32gb": _gpu("Jetson AGX Orin 32 GB", 87, 204.8, 27, 32, True),
    "agx-orin-64gb": _gpu("Jetson AGX Orin 64 GB", 87, 204.8, 42, 64, True),
    "thor-128gb": _gpu("Jetson AGX Thor 128 GB", 110, 273, 250, 128, True),
    "rtx-2080-ti": _gpu("GeForce RTX 2080 Ti", 75, 616, 54, 11),
    "rtx-3060": _gpu("GeForce RTX 3060 12 GB", 86, 360, 25, 12),
    "rtx-3090": _gpu("GeForce RTX 3090", 86, 936, 71, 24),
    "rtx-4090": _gpu("GeForce RTX 4090", 89, 1008, 165, 24),
    "rtx-5090": _gpu("GeForce RTX 5090", 120, 1792, 210, 32),
    "a10": _gpu("A10", 86, 600, 125, 24),
    "a40": _gpu("A40", 86, 696, 150, 48),
    "a100-40gb": _gpu("A100 40 GB", 80, 1555, 312, 40),
    "a100-80gb": _gpu("A100 80 GB", 80, 2039, 312, 80),
    "l4": _gpu("L4", 89, 300, 121, 24),
    "h100": _gpu("H100 SXM 80 GB", 90, 3350, 989, 80),
}


def find(name: str) -> Gpu:
    """The device of that name. Raises UsageError for one that is not in the table."""
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise UsageError(f"There is no device {name!r} in the table; known are {', '.join(GPUS)}.")
    return gpu
