"""Memory on a device, by what takes it. An estimate: not run on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from jakiro_export.estimates.cost_model import CostModel
from jakiro_export.estimates.devices import Gpu
from jakiro_export.tensorrt.memory import host_bytes
from jakiro_export.tensorrt.profiles import last_capacity
from jakiro_runtime.decoding.kv_cache import FIRST_BUCKET

# CUDA's context, TensorRT's libraries and the runtime itself; and, where memory is shared, the operating system with a desktop.
CONTEXT = 700 * 2**20
SYSTEM = 1800 * 2**20
_ROW_VALUES = 24  # activations alive at once, in rows of the hidden size and half precision


@dataclass(frozen=True)
class Budget:
    """Bytes.

    build: the peak of making an engine on the device, when nothing else of this runs; extended from measured smaller models
    build_floor: what a build cannot do without
    """

    target: int
    draft: int
    cache: int
    activations: int
    context: int
    system: int
    build: int
    build_floor: int

    @property
    def running(self) -> int:
        """What a session needs in all."""
        return self.target + self.draft + self.cache + self.activations + self.context + self.system

    def rows(self) -> list[tuple[str, int]]:
        """What takes how much, for a table."""
        return [
            ("target's weights", self.target), ("draft phase's weights", self.draft), ("cache", self.cache),
            ("activations", self.activations), ("CUDA and TensorRT", self.context), ("operating system", self.system),
            ("in all, running", self.running), ("peak while building", self.build),
        ]  # fmt: skip


def budget(
    target: CostModel, draft: CostModel, gpu: Gpu, hidden: int, vocab: int, context: int, batch: int = 1, chunk: int = 128
) -> Budget:
    """What a session of `batch` sequences of `context` positions needs.

    Each engine has its own copy of the weights the two graphs share. The cache has the last of its buckets; while it grows the
    old one is still there: half of the new.
    """
    slots = last_capacity(context, chunk)
    cache = (target.kv_bytes_per_token + draft.kv_bytes_per_token) * slots * batch
    cache += cache // 2 if slots > FIRST_BUCKET else 0
    activations = batch * chunk * hidden * 2 * _ROW_VALUES + batch * 64 * vocab * 4
    system = SYSTEM if gpu.shared else 0
    host, floor = host_bytes(target.stored)
    device = target.stored + CONTEXT + (1 << 30)
    build, build_floor = (most + device + system if gpu.shared else device for most in (host, floor))
    return Budget(target.stored, draft.stored, cache, activations, CONTEXT, system, build, build_floor)
