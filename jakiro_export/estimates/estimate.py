"""Times from a roofline. Estimates: nothing here has run on a GPU.

    call(rows)  = max(bytes / (bandwidth * 0.8), operations * rows / (throughput * 0.5)) + launches * 4 us
    bytes       = the weights a call reads + for each sequence the cache of the context + for each row the scores over it
    operations  = those of the weights, and attention's over the context
    round       = draft + target(nodes + 1) + 0.3 ms on the host
    tokens / s  = batch * tau / round;  plain: batch / target(1)

0.8 and 0.5 are what well-made kernels usually reach of memory bandwidth and of tensor throughput, 4 us what a small kernel
takes from launch to end. None is fitted. Published plain steps: Vicuna-7B on an A40, 30.7 ms in eager torch, here about 26 ms;
TensorRT Edge-LLM's int4 rows for Thor and AGX Orin within a quarter (tests/unit/export/estimates).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jakiro_export.estimates.cost_model import CostModel
from jakiro_export.estimates.devices import Gpu

BANDWIDTH_SHARE, THROUGHPUT_SHARE = 0.8, 0.5
KERNEL_SECONDS = 4e-6
HOST_SECONDS = 0.3e-3


def seconds(work: CostModel, gpu: Gpu, rows: int, context: int, batch: int = 1) -> float:
    """One call of `batch` sequences with `rows` rows each behind `context` positions."""
    moved = work.read + batch * context * (work.kv_bytes_per_token + rows * work.score_bytes)
    memory = moved / (gpu.bandwidth * BANDWIDTH_SHARE)
    operations = batch * rows * (work.row_operations + context * work.score_operations)
    return max(memory, operations / (gpu.flops * THROUGHPUT_SHARE)) + work.launches * KERNEL_SECONDS


@dataclass(frozen=True)
class Estimate:
    """Seconds of a plain step, of the draft phase, of the target over the tree, and of a whole round."""

    plain: float
    draft: float
    verify: float

    @property
    def round(self) -> float:
        return self.draft + self.verify + HOST_SECONDS

    @property
    def break_even(self) -> float:
        """The tau at which speculation is as fast as plain decoding."""
        return self.round / self.plain

    def speed(self, tau: float) -> float:
        """Tokens a second of a sequence at `tau` tokens for each target pass."""
        return tau / self.round


def estimate(target: CostModel, draft: CostModel, gpu: Gpu, nodes: int, top_k: int, context: int, batch: int = 1) -> Estimate:
    """One decoding round of a tree with `nodes` nodes; the draft phase's rows are taken to be `top_k` on every level."""
    return Estimate(
        seconds(target, gpu, 1, context, batch),
        seconds(draft, gpu, top_k, context, batch),
        seconds(target, gpu, nodes + 1, context, batch),
    )


# How often the node of each rank is accepted, where no benchmark says: tau 3.2 with 60 nodes. An assumption.
ASSUMED_SHARES = tuple(0.42 / rank**0.95 for rank in range(1, 61))


def best_nodes(
    target: CostModel, draft: CostModel, gpu: Gpu, shares: Sequence[float], top_k: int, context: int, batch: int = 1
) -> tuple[int, float, Estimate]:
    """(nodes, tau, its estimate) with the most tokens a second among the trees that keep the best 1, 2, ... nodes.

    shares[i]: how often the node of rank i was accepted, over all rounds; jakiro-bench measures it (`by_tree_rank`). The tree
    of the best n nodes then has tau = 1 + their sum.
    """
    options = []
    for nodes in range(1, len(shares) + 1):
        tau = 1 + sum(shares[:nodes])
        options.append((nodes, tau, estimate(target, draft, gpu, nodes, top_k, context, batch)))
    return max(options, key=lambda option: option[2].speed(option[1]))
