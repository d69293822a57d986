"""Tables and plot of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jakiro_export.training.heldout import Measure
from jakiro_export.training.variants import AXES, Plan, value_of


@dataclass
class Result:
    """A finished head. tokens: what it was trained on; cpu: processor seconds of its training."""

    plan: Plan
    parameters: int
    tokens: int
    cpu: float
    measure: Measure

    @property
    def steps(self) -> int:
        return self.measure.step


def write(folder: Path, results: Mapping[str, Result], about: dict[str, Any]) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.png`; `about` is what all of them share."""
    rows = {name: {**asdict(result), "chain_tau": round(result.measure.chain_tau, 4)} for name, result in results.items()}
    (folder / "comparison.json").write_text(json.dumps({**about, "variants": rows}, indent=1) + "\n")
    (folder / "comparison.md").write_text(markdown(results))
    if len(results) > 1:
        picture(folder / "comparison.png", results)


def markdown(results: Mapping[str, Result]) -> str:
    """One row a head. The parallel step's figure of a head that has none is left out."""
    depths = len(next(iter(results.values())).measure.accuracy)
    heads = ["variant", "parameters", "tokens", "steps", "CPU s/step", "CPU s", *(f"depth {n + 1}" for n in range(depths))]
    lines = [[*heads, "parallel step", "chain tau"], ["---"] * (len(heads) + 2)]
    for name, result in results.items():
        measure, learned = result.measure, result.plan.settings.contrast_loss > 0
        lines.append([
            name, f"{result.parameters / 1e6:.2f} M", f"{result.tokens / 1000:.0f} k", str(result.steps),
            f"{result.cpu / result.steps:.3f}", f"{result.cpu:.0f}", *(f"{share:.3f}" for share in measure.accuracy),
            f"{measure.contrast:.3f}" if learned and measure.contrast is not None else "", f"{measure.chain_tau:.3f}",
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def picture(file: Path, results: Mapping[str, Result]) -> None:
    """A panel for every axis with two points or more: accuracy per depth, and what the depths multiply to."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {name: points for name in AXES if name != "eagle2" and len(points := _points(results, name)) > 1}
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, points) in zip(grid.flat, panels.items(), strict=False):
        places = [f"{place:g}" for place, _ in points]
        for depth in range(len(points[0][1].accuracy)):
            axes.plot(places, [measure.accuracy[depth] for _, measure in points], marker=".", label=f"depth {depth + 1}")
        axes.plot(places, [measure.chain_tau - 1 for _, measure in points], "k--", marker=".", label="tau of the chain, less 1")
        axes.set(xlabel=AXES[name].label, ylim=(0, None))
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("held-out accuracy")
    grid[0][0].legend(fontsize=7)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _points(results: Mapping[str, Result], name: str) -> list[tuple[float, Measure]]:
    """The heads that lie on an axis, the baseline among them, in its order."""
    on = [result for key, result in results.items() if key == "baseline" or key.startswith(f"{name}=")]
    return sorted(((value_of(result.plan, AXES[name]), result.measure) for result in on), key=lambda point: point[0])
