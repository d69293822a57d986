"""Times from a roofline. Estimates: nothing here has run on a GPU.

    call(rows)  = max(bytes / (bandwidth * 0.8), operations * rows / (throughput * 0.5)) + 3 * products * 4 us
    bytes       = the weights a call reads + the cache of the context
    round       = draft + target(nodes + 1) + 0.3 ms on the host
    tokens / s  = tau / round;  plain: 1 / target(1)

0.8 and 0.5 are what well-made kernels usually reach of memory bandwidth and of tensor throughput, 4 us what a small kernel
takes from launch to end, 3 the kernels that go with each product. None is fitted. Against the published plain step of
Vicuna-7B on an A40, 30.7 ms in eager torch, the first line gives about 26 ms (tests/device_model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jakiro_export.estimates.cost_model import CostModel
from jakiro_export.estimates.devices import Gpu

BANDWIDTH_SHARE, THROUGHPUT_SHARE = 0.8, 0.5
KERNELS, KERNEL_SECONDS = 3, 4e-6
HOST_SECONDS = 0.3e-3


def seconds(work: CostModel, gpu: Gpu, rows: int, context: int) -> float:
    """One call with `rows` rows behind `context` positions."""
    memory = (work.read + work.kv_bytes_per_token * context) / (gpu.bandwidth * BANDWIDTH_SHARE)
    arithmetic = work.row_operations * rows / (gpu.flops * THROUGHPUT_SHARE)
    return max(memory, arithmetic) + KERNELS * work.products * KERNEL_SECONDS


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
        """Tokens a second at `tau` tokens for each target pass."""
        return tau / self.round


def estimate(target: CostModel, draft: CostModel, gpu: Gpu, nodes: int, top_k: int, context: int) -> Estimate:
    """One decoding round of a tree with `nodes` nodes; the draft phase's rows are taken to be `top_k` on every level."""
    return Estimate(
        seconds(target, gpu, 1, context), seconds(draft, gpu, top_k, context), seconds(target, gpu, nodes + 1, context)
    )


def best_nodes(
    target: CostModel, draft: CostModel, gpu: Gpu, shares: Sequence[float], top_k: int, context: int
) -> tuple[int, float, Estimate]:
    """(nodes, tau, its estimate) with the most tokens a second among the trees that keep the best 1, 2, ... nodes.

    shares[i]: how often the node of rank i was accepted, over all rounds; jakiro-bench measures it (`by_tree_rank`). The tree
    of the best n nodes then has tau = 1 + their sum.
    """
    options = []
    for nodes in range(1, len(shares) + 1):
        tau = 1 + sum(shares[:nodes])
        options.append((nodes, tau, estimate(target, draft, gpu, nodes, top_k, context)))
    return max(options, key=lambda option: option[2].speed(option[1]))
