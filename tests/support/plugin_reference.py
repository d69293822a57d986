"""ExpertDispatch in numpy, in double precision, with the error a kernel of a given type may make."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
# Half a unit in the last place, relative: what one rounding costs.
ROUNDING = {"float": 2.0**-24, "half": 2.0**-11, "bfloat16": 2.0**-8}


def chosen_experts(logits: Array, top_k: int) -> NDArray[np.bool_]:
    """[rows, experts] true for the top_k largest logits of a row; of equal ones the lower index is first."""
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :top_k]
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def factors(router_logits: Array, experts: int, top_k: int, contrast: bool) -> tuple[Array, Array]:
    """[rows, experts] each: what an expert counts in primary, and in contrast."""
    logits = router_logits.astype(np.float64)
    routing = np.where(chosen_experts(logits[:, :experts], top_k), logits[:, :experts], -np.inf)
    primary = softmax(routing)
    against = np.zeros_like(primary)
    if contrast:
        share = softmax(logits[:, experts:])
        sign = np.where(logits[:, experts] > logits[:, experts + 1], 1.0, -1.0)
        against[:, 0], against[:, 1] = sign * share[:, 0], -sign * share[:, 1]
    return primary, against


def dispatch(
    x: Array, router_logits: Array, gate_up: Array, down: Array, top_k: int, contrast: bool, rounding: float
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """((primary, contrast), (tolerance of primary, tolerance of contrast)), each [rows, hidden] in double.

    The tolerance is a forward error bound: `rounding` for each value that is kept in the activation type (h, and the
    result), and the float accumulation's own error, both scaled by the sums of magnitudes they act on.
    """
    experts, inner = gate_up.shape[0], down.shape[2]
    x64, up64, down64 = (t.astype(np.float64) for t in (x, gate_up, down))
    both = x64 @ up64.transpose(0, 2, 1)
    size = np.abs(x64) @ np.abs(up64).transpose(0, 2, 1)
    gate, up = both[..., :inner], both[..., inner:]
    silu = gate / (1 + np.exp(-gate))
    h = silu * up
    accumulation = 2.0**-20
    h_error = rounding * np.abs(h) + accumulation * (1.1 * size[..., :inner] * np.abs(up) + np.abs(silu) * size[..., inner:])
    outputs = h @ down64.transpose(0, 2, 1)
    magnitudes = np.abs(h) @ np.abs(down64).transpose(0, 2, 1)
    errors = h_error @ np.abs(down64).transpose(0, 2, 1) + accumulation * magnitudes
    results, tolerances = [], []
    for factor in factors(router_logits, experts, top_k, contrast):
        result = np.einsum("re,erh->rh", factor, outputs)
        error = np.einsum("re,erh->rh", np.abs(factor), errors + accumulation * np.abs(outputs))
        results.append(result)
        tolerances.append(1.05 * error + rounding * np.abs(result) + 1e-7 * (rounding > 1e-4))
    return (results[0], results[1]), (tolerances[0], tolerances[1])
