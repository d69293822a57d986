"""The report at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLUMNS = 8  # of depths or ranks


def show(data: dict[str, Any], console: Console) -> None:
    """Print the tables of a report and what they mean."""
    console.print(_speed(data))
    console.print(_acceptance(data["detail"]["acceptance"]))
    if data["detail"].get("cost_by_rows"):
        console.print(_cost(data["detail"]["cost_by_rows"]))
    if data["detail"].get("host_profile"):
        console.print(_profile(data["detail"]["host_profile"]))
    if data["detail"].get("batches"):
        console.print(_batches(data["detail"]["batches"]))
    if data["detail"].get("peers"):
        console.print(_baselines(data["detail"]["peers"]))
    for line in sentences(data):
        console.print(escape(line), highlight=False, soft_wrap=True)


def sentences(data: dict[str, Any]) -> list[str]:
    """What the report says besides its tables; also for the page."""
    detail, machine, lines = data["detail"], data["machine"], []
    if far := detail.get("long_context"):
        lines.append(
            f"Verifying {far['rows']} rows at past {far['past'][1]} costs {far['ratio']:.2f} times past {far['past'][0]}: "
            f"{far['extra_ms']:.1f} ms more for {far['extra_bytes'] / 1e6:.0f} MB more of cache read (capacities "
            f"{far['capacity'][0]} and {far['capacity'][1]}), which alone take {far['extra_ms_for_the_bytes']:.1f} ms "
            f"at the {far['machine_gigabytes_per_second']:.1f} GB/s that this machine reads; the rest is arithmetic on it."
        )
    for left in detail.get("peers_left_out", []):
        lines.append(f"{left['name']}: {left['reason']}")
    if choice := detail.get("tree_choice"):
        expected, reached = choice["expected"], choice["reached"]
        shape = "depth {depth}, top-k {top_k}, {nodes} nodes".format(**choice["shape"])
        lines.append(
            f"The tree ({shape}) was chosen by measurement: tau {expected['tau']:.2f} and "
            f"{expected['tokens_per_second']:.1f} tokens/s, {expected['speedup']:.2f} times plain, were expected of the head "
            f"alone; reached are {reached['tau']:.2f}, {reached['tokens_per_second']:.1f} and {reached['speedup']:.2f}."
        )
    if detail["left_out"]:
        lines.append(f"{len(detail['left_out'])} conversations were cut where they no longer fit the context.")
    load = [value for value in machine.get("load_average", []) if value is not None]
    if load and load[0] > 0.5:
        lines.append(f"The machine was busy when this began (load average {load[0]:.1f}): trust ratios more than rates.")
    steps = detail["round_in_plain_steps"]
    lines.append(f"A round costs {steps:.2f} plain steps, {100 * detail['host_share']:.1f} % of it on the host.")
    if alone := detail["head_alone"]:
        lines.append(
            f"{detail['looked_up_per_round']:.2f} tokens a round came from n-grams and not from the head; the head alone: "
            f"speed-up {alone['speedup']:.2f}x, tau {alone['tau']:.2f}."
        )
    if between := detail["tau_interval"]:
        lines.append("95 % interval of tau, by resampling the prompts: {:.2f} to {:.2f}.".format(*between))
    answers = f"{detail['answers']} answers, {data['settings']['repeats']} repeats"
    lines.append(f"speed-up {data['speedup']:.2f}x, tau {data['tau']:.2f}, {answers}")
    if data["identical"]:
        lines.append("output identical: yes")
    else:
        first = detail["differences"][0]
        lines.append(
            f"output identical: NO, {len(detail['differences'])} answers differ, the first one in {first['id']}, "
            f"turn {first['turn']}, token {first['position']}"
        )
    return lines


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _spread(values: dict[str, Any] | None, digits: int = 1) -> str:
    return f"{values['median']:.{digits}f} ± {values['mad']:.{digits}f}" if values else "-"


def _speed(data: dict[str, Any]) -> Table:
    detail = data["detail"]
    columns = {"speculative": _mode(data, detail["tokens_per_second"], detail, detail["first_token_ms"])}
    if alone := detail["head_alone"]:
        columns["head alone"] = _mode(alone, alone["spread"], alone, None)
    plain = {"round_ms": detail["plain_step_ms"]}
    columns["plain"] = _mode({"tau": 1.0}, detail["plain_tokens_per_second"], plain, detail["plain_first_token_ms"])
    table = _table(f"{escape(data['settings']['model'])}, median ± median deviation", "", *columns)
    for name in columns["speculative"]:
        table.add_row(name, *(column[name] for column in columns.values()))
    if detail.get("peak_memory_mb"):
        table.add_row("peak resident memory, MB, all", f"{detail['peak_memory_mb']:.0f}")
    return table


def _mode(totals: dict[str, Any], rate: dict[str, Any], detail: dict[str, Any], first: dict[str, Any] | None) -> dict[str, str]:
    """The column of one way of decoding, by row."""
    parts = {f"{part}, ms a round": (f"{part}_ms", 2 if part == "host" else 1) for part in ("draft", "target", "host", "total")}
    return {
        "tokens/s": _spread(rate),
        "first token, ms": _spread(first["first_turns"]) if first else "",
        "... in later turns": _spread(first["later_turns"]) if first else "",
        **{name: _spread(detail["round_ms"][part], digits) for name, (part, digits) in parts.items()},
        "tau, tokens per target pass": f"{totals['tau']:.2f}",
        "nodes verified, a round": f"{detail['nodes_per_round']:.1f}" if "nodes_per_round" in detail else "",
        "drafts, a round": f"{detail['drafts_per_round']:.2f}" if "drafts_per_round" in detail else "",
    }


def _acceptance(acceptance: dict[str, Any]) -> Table:
    ranks = acceptance["by_rank"] or {"by_sibling_rank": []}
    depths = acceptance["by_depth"]
    most = min(_COLUMNS, max(len(depths), len(ranks["by_sibling_rank"])))  # guesses go far deeper than a tree
    table = _table("Acceptance", "", *(str(number) for number in range(1, most + 1)))

    def cells(shares: list[float]) -> list[str]:
        return [f"{share:.2f}" for share in shares[:most]] + [""] * (most - len(shares))

    table.add_row("depth n reached, of rounds", *cells(depths))
    table.add_row("... of those that reached n-1", *cells(acceptance["given_the_one_before"]))
    if acceptance["by_rank"]:
        table.add_row("head alone: child of rank n, where there was one", *cells(ranks["by_sibling_rank"]))
    return table


def _cost(costs: list[dict[str, Any]]) -> Table:
    rows = list(costs[0]["ms"])
    table = _table("A target pass, ms by rows", "past", *rows, "cache read, MB")
    for cost in costs:
        cells = [f"{cost['ms'][count]['median']:.1f}" for count in rows]
        table.add_row(str(cost["past"]), *cells, f"{cost['bytes_read'] / 1e6:.0f}")
    return table


def _batches(batches: list[dict[str, Any]]) -> Table:
    columns = ("batch", "tokens/s", "plain", "speed-up", "nodes a round", "identical")
    table = _table("Requests decoded together, prompts included", *columns)
    for each in batches:
        rates = [f"{each[key]:.1f}" for key in ("tokens_per_second", "plain_tokens_per_second")]
        same = "yes" if each["identical"] else "NO"
        table.add_row(str(each["batch"]), *rates, f"{each['ratio']:.2f}x", f"{each['nodes']:.1f}", same)
    return table


def _profile(profile: dict[str, Any]) -> Table:
    table = _table(f"Outside the graphs, over {profile['rounds']} rounds, under a profiler", "", "calls a round", "µs a round")
    for entry in profile["functions"]:
        table.add_row(escape(entry["function"]), f"{entry['calls']:.1f}", f"{entry['us']:.1f}")
    table.add_row("together", "", f"{profile['us']:.1f}")
    table.add_row("together, no profiler, graphs that answer at once", "", f"{profile['alone_us']:.1f}")
    return table


def _baselines(peers: dict[str, dict[str, Any]]) -> Table:
    table = _table("Other runtimes", "", "tokens/s", "first token, ms", "ours, speculative", "ours, plain", "tokens", "like ours")
    for name, measured in peers.items():
        ratios = [f"{measured[key]:.2f}x" for key in ("speculative_ratio", "plain_ratio")]
        times = (_spread(measured["tokens_per_second"]), _spread(measured["first_token_ms"]["first_turns"]))
        table.add_row(escape(name), *times, *ratios, str(measured["new_tokens"]), f"{100 * measured['agreement']:.0f} %")
    return table
