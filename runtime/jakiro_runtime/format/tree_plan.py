"""Tree plan: what `jakiro-export --tree auto` measured, by which the runtime sizes its trees."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from jakiro_runtime.format.fields import FieldError

_BUSY = 0.08  # share of the processors for other programs: times measured meanwhile are not this machine's


@dataclass
class TreePlan:
    """What `jakiro-export --tree auto` measured and expects; times in milliseconds, of one sequence on one machine.

    rows: numbers of rows of a target pass, ascending
    target_ms: a pass of each of them, by the capacity of the cache (slots, as text)
    draft_ms: the draft phase
    host_ms: a round outside both
    log_probs, acceptance: how often the target took a drafted node of this cumulative log-probability; both ascending
    expected: tau, tokens_per_second, plain_tokens_per_second, speedup, round_ms and nodes_per_round, on the calibration answers
    result: tau, tokens_per_second, plain_tokens_per_second and speedup of decoding the same answers with the finished engine
    shape: what was chosen: depth, top_k and nodes; `static`, 1, where its paths are fixed
    considered: the shapes that were compared, best first
    measured: on what: processor, threads, how many answers and tokens; `others`: the share of the processors that other programs
        took meanwhile; `stable`: whether decoding came to what was expected, at the latest when all was measured again
    """

    rows: list[int]
    target_ms: dict[str, list[float]]
    draft_ms: float
    log_probs: list[float]
    acceptance: list[float]
    expected: dict[str, float]
    host_ms: float = 0.0
    result: dict[str, float] = field(default_factory=dict)
    shape: dict[str, int] = field(default_factory=dict)
    considered: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises FieldError where its lists do not fit together."""
        if not self.rows or not self.target_ms:
            raise FieldError("the field tree holds no measured costs")
        if sorted(self.rows) != self.rows or len(set(self.rows)) != len(self.rows):
            raise FieldError("the field tree.rows is not ascending")
        for capacity, times in self.target_ms.items():
            if not capacity.isdecimal() or not 0 < int(capacity) < 1 << 31 or len(times) != len(self.rows):
                raise FieldError(
                    f"the field tree.target_ms.{capacity} has {len(times)} times for {len(self.rows)} numbers of rows"
                )
        if not self.log_probs or len(self.log_probs) != len(self.acceptance) or sorted(self.log_probs) != self.log_probs:
            raise FieldError("the fields tree.log_probs and tree.acceptance do not fit together")
        for part, names in (("expected", ("tokens_per_second",)), ("shape", ("depth", "top_k", "nodes") if self.shape else ())):
            for name in names:
                if name not in getattr(self, part):
                    raise FieldError(f"the field tree.{part}.{name} is missing")

    @property
    def capacities(self) -> list[int]:
        """The cache capacities that were measured, ascending."""
        return sorted(map(int, self.target_ms))

    def summary(self) -> str:
        """The choice, the expectation and the result in words."""
        shape, figures, result, others = self.shape, self.expected, self.result, self.measured.get("others")
        words = (
            f"depth {shape['depth']}, top-k {shape['top_k']}, {shape['nodes']} nodes"
            f"{' along fixed paths' if shape.get('static') else ''}, {figures['nodes_per_round']:.1f} of them a "
            f"round; expected are tau {figures['tau']:.2f} and {figures['tokens_per_second']:.1f} tokens/s, "
            f"{figures['speedup']:.2f} times plain"
        )
        if result:
            words += f"; reached {result['tau']:.2f}, {result['tokens_per_second']:.1f} and {result['speedup']:.2f}"
        if not self.measured.get("stable", True):
            words += (
                ". That is more than 15 % off what was expected: this machine's speed depends on what ran before, and the choice "
                "is less sure for it"
            )
        if others is not None and others > _BUSY:
            words += (
                f". Other programs took {100 * others:.0f} % of the processors meanwhile: for a choice to rely on, export again "
                "on a quiet machine"
            )
        return words

    def milliseconds(self, rows: int, capacity: int) -> float:
        """A target pass, between what was measured and beyond: linear in rows and in capacity."""
        capacities = self.capacities
        at = [_line(rows, self.rows, self.target_ms[str(slots)]) for slots in capacities]
        return _line(capacity, capacities, at)


def _line(x: float, xs: list[int], ys: list[float]) -> float:
    """Linear interpolation, continued beyond the ends; xs ascending."""
    if len(xs) == 1:
        return ys[0]
    right = min(max(1, bisect_left(xs, x)), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])
