"""Plots as SVG text. Colours are CSS classes of the page; every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 760, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 72
_LETTER = 6.5  # width of a letter, about
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str, line: float | None = None) -> str:
    """Bars side by side, a group for each label.

    Args:
        series: values by name, one for each label; a shorter series leaves its last groups empty
        unit: along the vertical axis
        line: a horizontal line to compare with
    """
    frame = _Frame(max([*(value for values in series.values() for value in values), line or 0.0, 1e-9]))
    group = _INNER_WIDTH / max(1, len(labels))
    width = min(48.0, group * 0.8 / max(1, len(series)))
    turned = any(len(label) * _LETTER > group for label in labels)
    parts = [frame.axes(unit)]
    for at, label in enumerate(labels):
        middle = _LEFT + group * (at + 0.5)
        for number, (name, values) in enumerate(series.items()):
            if at < len(values):
                x = middle + (number - len(series) / 2) * width
                parts.append(_rect(number, x, frame.y(values[at]), width - 1, f"{label}, {name}: {values[at]:.3g} {unit}"))
        parts.append(_label(middle, label, group, turned))
    if line is not None:
        y = frame.y(line)
        parts.append(f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return _svg(parts, list(series) if len(series) > 1 else [])


def stack(labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """Bars on top of each other; series as `bars` takes them, all of one length."""
    totals = [sum(values[at] for values in series.values()) for at in range(len(labels))]
    frame = _Frame(max([*totals, 1e-9]))
    group = _INNER_WIDTH / max(1, len(labels))
    width = min(90.0, group * 0.6)
    parts = [frame.axes(unit)]
    for at, label in enumerate(labels):
        middle, below = _LEFT + group * (at + 0.5), 0.0
        for number, (name, values) in enumerate(series.items()):
            top, bottom = frame.y(below + values[at]), frame.y(below)
            text = f"{label}, {name}: {values[at]:.3g} {unit}"
            parts.append(_rect(number, middle - width / 2, top, width, text, bottom - top))
            below += values[at]
        parts.append(_label(middle, f"{label} ({totals[at]:.3g})", group))
    return _svg(parts, list(series))


def lines(xs: Sequence[float], series: Mapping[str, Sequence[float]], unit: str, along: str) -> str:
    """Lines over a logarithmic horizontal axis that is marked at `xs`, ascending and positive."""
    frame = _Frame(max([*(value for values in series.values() for value in values), 1e-9]))
    low, span = math.log(xs[0]), math.log(xs[-1] / xs[0]) or 1.0
    places = [_LEFT + 12 + (_INNER_WIDTH - 24) * (math.log(x) - low) / span for x in xs]
    parts = [frame.axes(unit)]
    for number, (name, values) in enumerate(series.items()):
        points = " ".join(f"{x:.1f},{frame.y(value):.1f}" for x, value in zip(places, values, strict=True))
        parts.append(f'<polyline class="l{number % 6}" points="{points}"/>')
        for x, value, mark in zip(places, values, xs, strict=True):
            title = escape(f"{name}, {mark:g} {along}: {value:.3g} {unit}")
            parts.append(
                f'<circle class="c{number % 6}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="3"><title>{title}</title></circle>'
            )
    parts += [_label(x, f"{mark:g}", 60) for x, mark in zip(places, xs, strict=True)]
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(along)}</text>')
    return _svg(parts, list(series))


class _Frame:
    """The vertical axis from 0 to a round number above `most`."""

    def __init__(self, most: float) -> None:
        step = 10.0 ** math.floor(math.log10(most))
        self.step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if most / (step * part) <= 6)
        self.top = self.step * math.ceil(most / self.step + 1e-9)

    def y(self, value: float) -> float:
        return _TOP + _INNER_HEIGHT * (1 - value / self.top)

    def axes(self, unit: str) -> str:
        parts = []
        for number in range(round(self.top / self.step) + 1):
            y = self.y(number * self.step)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number * self.step:.3g}</text>')
        middle = _TOP + _INNER_HEIGHT / 2
        parts.append(f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>')
        return "".join(parts)


def _rect(number: int, x: float, y: float, width: float, title: str, height: float | None = None) -> str:
    height = _TOP + _INNER_HEIGHT - y if height is None else height
    return (
        f'<rect class="c{number % 6}" x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="{max(0.0, height):.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _label(x: float, text: str, room: float, turned: bool = False) -> str:
    """A label under the axis, cut to its room: at its end, or at its beginning where it is turned, since names count up."""
    y = _TOP + _INNER_HEIGHT + 16
    if not turned:
        shown = text if len(text) * _LETTER <= room else text[: max(1, int(room / _LETTER) - 1)] + "…"
        return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(shown)}</text>'
    if room < 9:  # they would cover each other; the bar's title has the name
        return ""
    shown = text if len(text) <= 10 else "…" + text[-9:]
    return f'<text transform="translate({x + 4:.1f},{y - 6}) rotate(-90)" text-anchor="end">{escape(shown)}</text>'


def _svg(parts: Sequence[str], legend: Sequence[str]) -> str:
    keys = "".join(f'<span><i class="c{number % 6}"></i>{escape(name)}</span>' for number, name in enumerate(legend))
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'{drawing}<p class="legend">{keys}</p>' if keys else drawing
