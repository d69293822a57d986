"""A comparison with torch: a figure and the most that it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jakiro_export.precisions import Precision

# Largest difference of a logit, as a share of the reference's spread (its standard deviation). fp32 differs by the order of
# sums; fp16 also by its rounding of every activation, here on a CPU that emulates it; int8 and int4 of a typical row
# (`typical_difference`). int4, w4a16 and nvfp4 round the weights of a target that was not in four bits before.
TOLERANCE = {"fp32": 2e-3, "fp16": 0.15, "int8": 1.0, "int4": 2.0, "w4a16": 6.0, "w8a8": 2.0, "fp8": 2.0, "nvfp4": 8.0}


@dataclass(frozen=True)
class Check:
    """One comparison: a figure, what it may be at most, and what that means."""

    name: str
    value: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.value <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


Difference = Callable[[np.ndarray, np.ndarray], float]


def difference_in(precision: Precision) -> Difference:
    """How arrays are compared in this precision."""
    return typical_difference if precision.quantized else largest_difference


def largest_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, in units of the reference's standard deviation."""
    spread = float(reference.std()) or 1.0
    return float(np.abs(ours.astype(np.float64) - reference.astype(np.float64)).max() / spread)


def typical_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The median over rows of a row's largest difference, in units of the reference's standard deviation.

    For int8 and int4: among random tokens there are rows that any rounding throws far off, by making or unmaking a sink of
    attention.
    """
    spread = float(reference.std()) or 1.0
    rows = np.abs(ours.astype(np.float64) - reference.astype(np.float64)).reshape(-1, ours.shape[-1])
    return float(np.median(rows.max(-1)) / spread)
