"""Variants that `compare` trains: a baseline, and heads that differ from it in one thing each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import click

from jakiro_export.training.settings import Settings


@dataclass(frozen=True)
class Plan:
    """One head and its training.

    width: inner size of an expert, in hidden sizes
    data: the share of the training text that is used, from the first conversation on
    family: of the head
    """

    settings: Settings
    width: float = 1.0
    data: float = 1.0
    family: str = "jakiro"


@dataclass(frozen=True)
class Axis:
    """A field of a plan, its name in tables, and the values that are worth a run if the user names none."""

    field: str
    label: str
    values: tuple[float, ...]


AXES = {
    "eagle2": Axis("family", "EAGLE-2-style, steps in baselines", (1.0, 1.15)),
    "chain": Axis("chain", "steps through own predictions", (1, 2, 4, 6)),
    "data": Axis("data", "share of the text", (0.125, 0.25, 0.5)),
    "width": Axis("width", "inner size / hidden size", (0.5, 1.5, 3, 6)),
    "feature": Axis("feature_loss", "weight of the feature loss", (0.0, 0.2, 1.0)),
    "columns": Axis("columns", "draft tokens a step looks at", (1024, 8192)),
    "noise": Axis("noise", "noise on features", (0.0, 0.2)),
    "contrast": Axis("contrast_loss", "weight of the parallel step", (0.0, 1.0)),
    "vocab": Axis("draft_vocab", "draft vocabulary", (2048, 8192, 16384)),
    "rate": Axis("learning_rate", "learning rate", (0.0006, 0.0024)),
    "batch": Axis("batch_tokens", "tokens of a step", (256, 1024)),
    "seed": Axis("seed", "seed", (1,)),
}


def value_of(plan: Plan, axis: Axis) -> float:
    """Where a plan lies on an axis."""
    return float(getattr(plan if hasattr(plan, axis.field) else plan.settings, axis.field))


def changed(plan: Plan, name: str, value: float) -> Plan:
    """The plan at another place of the axis `name`."""
    if name == "eagle2":
        steps = max(1, round((plan.settings.steps or 1) * value))
        return replace(plan, family="eagle", settings=replace(plan.settings, steps=steps))
    field = AXES[name].field
    if field == "width":
        return replace(plan, width=value)
    if field == "data":
        return replace(plan, data=value)
    kind = type(getattr(plan.settings, field))
    return replace(plan, settings=replace(plan.settings, **{field: kind(value)}))


def plans(baseline: Plan, wanted: Iterable[str]) -> dict[str, Plan]:
    """The baseline, and what was asked for: `AXIS` for its usual values, `AXIS=VALUE` for another.

    Raises:
        click.BadParameter: there is no such axis, or its value is not a number above or equal to zero.
    """
    out = {"baseline": baseline}
    for item in wanted:
        name, _, given = item.strip().partition("=")
        if name == "baseline":
            continue
        if name not in AXES:
            raise click.BadParameter(f"There is no variant {item!r}; there are {', '.join(AXES)}, and each with =VALUE.")
        try:
            values = (float(given),) if given else AXES[name].values
        except ValueError as error:
            raise click.BadParameter(f"{given!r} in {item!r} is not a number.") from error
        for value in values:
            plan = changed(baseline, name, value)
            if plan != baseline:
                out[f"{name}={value:g}"] = plan
    return out
