"""The report as one self-contained HTML page: no script, nothing fetched, every text of a file escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from jakiro_bench import svg
from jakiro_bench.table import sentences

_COLOURS = ("#2f6fb5", "#d9822b", "#4f9d69", "#a34f8f", "#8a7f3d", "#6b7280")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 800px; margin: 2rem auto; padding: 0 1rem }
body { color: #1c2430; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem } .note { color: #5b6675 }
.figures { display: flex; flex-wrap: wrap; gap: 2rem; margin: 1rem 0 } .figures b { display: block; font-size: 1.6rem }
.bad { color: #b3261e } table { border-collapse: collapse; font-size: 13px } .wide { overflow-x: auto }
td, th { padding: .15rem .6rem; border-bottom: 1px solid #d8dde5; text-align: right }
td:first-child, th:first-child { text-align: left }
svg { width: 100%; font-size: 11px } svg text { fill: #5b6675 }
.grid { stroke: #e3e7ed } .mark { stroke: #1c2430; stroke-dasharray: 5 4 }
polyline { fill: none; stroke-width: 2 } .legend span { margin-right: 1rem } .legend { margin: 0; font-size: 13px }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em }
@media (prefers-color-scheme: dark) { body { color: #dfe5ee; background: #14181f } td, th { border-color: #333c49 }
  .grid { stroke: #2a323d } .mark { stroke: #dfe5ee } svg text, .note { fill: #9aa6b6; color: #9aa6b6 } .bad { color: #ff8a80 } }
""" + "".join(f".c{n} {{ fill: {c}; background: {c} }} .l{n} {{ stroke: {c} }}\n" for n, c in enumerate(_COLOURS))


def page(data: dict[str, Any]) -> str:
    """The HTML of a report."""
    settings, machine, detail = data["settings"], data["machine"], data["detail"]
    title = f"jakiro-bench: {settings['model']}"
    where = (
        f"{machine['cpu']}, {machine['threads']} threads; {settings['precision']}; greedy, {settings['max_new_tokens']} tokens"
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(where)}</p>',
        _headline(data),
        "".join(f"<p>{escape(line)}</p>" for line in sentences(data)),
        _section("Speed-up by prompt", _by_prompt(detail["prompts"])),
        _section("Acceptance by depth", _by_depth(detail["acceptance"])),
        _section("Acceptance by rank", _by_rank(detail["acceptance"]["by_rank"])),
        _section("Cost of a target pass by rows", _by_rows(detail.get("cost_by_rows"))),
        _section("Time per round", _per_round(detail)),
        _section("Other runtimes", _baselines(detail)),
        _section("Every prompt", _table(detail["prompts"])),
        _section("Machine and settings", _settings({**machine, **settings})),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _headline(data: dict[str, Any]) -> str:
    metrics = [
        ("speed-up", f"{data['speedup']:.2f}×"),
        ("tau", f"{data['tau']:.2f}"),
        ("tokens/s", f"{data['tokens_per_second']:.1f}"),
        ("tokens/s, plain", f"{data['plain_tokens_per_second']:.1f}"),
    ]
    if alone := data["detail"]["head_alone"]:
        metrics += [("speed-up, head alone", f"{alone['speedup']:.2f}×"), ("tau, head alone", f"{alone['tau']:.2f}")]
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in metrics)
    same = "<div><b>yes</b>identical</div>" if data["identical"] else '<div class="bad"><b>NO</b>identical</div>'
    return f'<div class="figures">{cells}{same}</div>'


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _by_prompt(prompts: Sequence[dict[str, Any]]) -> str:
    ordered = sorted(prompts, key=lambda each: -each["speedup"])
    return svg.bars([each["id"] for each in ordered], {"speed-up": [each["speedup"] for each in ordered]}, "times", line=1.0)


def _by_depth(acceptance: dict[str, Any]) -> str:
    depths = acceptance["by_depth"]
    series = {"of all rounds": depths, "of rounds that reached the depth before": acceptance["given_the_one_before"]}
    return svg.bars([str(number) for number in range(1, len(depths) + 1)], series, "share") if depths else ""


def _by_rank(ranks: dict[str, Any] | None) -> str:
    if not ranks:
        return ""
    siblings, tree = ranks["by_sibling_rank"], ranks["by_tree_rank"]
    among = svg.bars([str(n) for n in range(1, len(siblings) + 1)], {"share": siblings}, "share")
    whole = svg.bars([str(n) for n in range(1, len(tree) + 1)], {"share": tree}, "share")
    return (
        '<p class="note">Of the head alone. Among siblings: how often the child of that rank was the target\'s choice, where '
        "there was one.</p>"
        f'{among}<p class="note">In the whole tree, by score: how often the node was accepted.</p>{whole}'
    )


def _by_rows(costs: Sequence[dict[str, Any]] | None) -> str:
    if not costs:
        return ""
    rows = list(costs[0]["ms"])
    series = {
        f"past {cost['past']} ({cost['bytes_read'] / 1e6:.0f} MB of cache)": [cost["ms"][count]["median"] for count in rows]
        for cost in costs
    }
    return svg.lines([float(count) for count in rows], series, "ms", "rows")


def _per_round(detail: dict[str, Any]) -> str:
    each = {"speculative round": detail["round_ms"]}
    if alone := detail["head_alone"]:
        each["round, head alone"] = alone["round_ms"]
    each["plain step"] = detail["plain_step_ms"]
    series = {part: [times[f"{part}_ms"]["median"] for times in each.values()] for part in ("target", "draft", "host")}
    return svg.stack(list(each), series, "ms")


def _baselines(detail: dict[str, Any]) -> str:
    peers: dict[str, dict[str, Any]] = detail.get("peers") or {}
    if not peers:
        return ""
    rates = {"speculative": detail["tokens_per_second"], "plain": detail["plain_tokens_per_second"]}
    rates.update({name: metrics["tokens_per_second"] for name, metrics in peers.items()})
    return svg.bars(list(rates), {"tokens/s": [each["median"] for each in rates.values()]}, "tokens/s")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(key.replace('_', ' '))}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _settings(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(key.replace('_', ' '))}</td><td>{escape(str(value))}</td></tr>" for key, value in values.items()
    )
    return f'<div class="wide"><table>{rows}</table></div>'
