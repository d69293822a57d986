"""JSON report: speed-up, tau and equality first, then everything they were computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from jakiro_bench.measure import Run, Turn
from jakiro_bench.metrics import interval, rate
from jakiro_bench.runners import EngineRunner, TimedAnswer
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling.statistics import summary

SPECULATIVE, HEAD_ALONE, PLAIN = "speculative", "head alone", "plain"


def report(run: Run, head: EngineRunner) -> dict[str, Any]:
    """Top-level metrics and `detail`; the caller adds `machine` and `settings`.

    Args:
        run: of SPECULATIVE and PLAIN; and of HEAD_ALONE, where the first one uses n-grams too
        head: the runner that decodes with the head alone, its ranks counted

    speedup: tokens_per_second / plain_tokens_per_second, each the median over repeats of a rate pooled over all answers
    tau: emitted tokens per target pass, pooled over all answers; neither the passes over prompts count nor the tokens they give
    tau_interval, in `detail`: the 95 % interval of tau, by resampling the prompts
    identical: every answer of every repeat, with and without speculation, token for token the same
    head_alone: tau, tokens_per_second and speedup without n-grams
    """
    differences = find_differences(run.turns)
    fast, slow = _rates(run.turns, SPECULATIVE), _rates(run.turns, PLAIN)
    stats = _stats(run.turns, SPECULATIVE)
    rounds = {name: _rounds(run.turns, name) for name in (SPECULATIVE, PLAIN)}
    step = rounds[PLAIN]["total_ms"]["median"]
    alone = head_alone(run)
    return {
        "speedup": _ratio(median(fast), median(slow)),
        "tau": round(_tau(stats), 4),
        "tokens_per_second": round(median(fast), 3),
        "plain_tokens_per_second": round(median(slow), 3),
        "identical": not differences,
        "head_alone": {name: alone[name] for name in ("tau", "tokens_per_second", "speedup")},
        "detail": {
            "tokens_per_second": summary(fast),
            "plain_tokens_per_second": summary(slow),
            "speedup_by_repeat": summary([a / b if b else 0.0 for a, b in zip(fast, slow, strict=True)], 4),
            "answers": len(run.turns),
            "new_tokens": sum(len(turn.answers[SPECULATIVE][0].tokens) for turn in run.turns),
            "differences": differences,
            "left_out": [{"id": prompt, "turn": turn} for prompt, turn in run.skipped],
            "tau_interval": _tau_interval(run.turns, SPECULATIVE),
            "acceptance": _acceptance(stats, head),
            "nodes_per_round": _per_round(stats, "verified"),
            "drafts_per_round": _per_round(stats, "drafts"),
            "looked_up_per_round": _per_round(stats, "from_ngrams"),
            "head_alone": alone if HEAD_ALONE in run.turns[0].answers else None,
            "round_ms": rounds[SPECULATIVE],
            "plain_step_ms": rounds[PLAIN],
            "round_in_plain_steps": _ratio(rounds[SPECULATIVE]["total_ms"]["median"], step),
            "host_share": _ratio(rounds[SPECULATIVE]["host_ms"]["median"], rounds[SPECULATIVE]["total_ms"]["median"]),
            "first_token_ms": _first_token(run.turns, SPECULATIVE),
            "plain_first_token_ms": _first_token(run.turns, PLAIN),
            "prompts": _groups(run.turns, lambda turn: turn.prompt.id),
            "benchmarks": _groups(run.turns, lambda turn: turn.prompt.benchmark or "(none)"),
        },
    }


def head_alone(run: Run) -> dict[str, Any]:
    """What the head brings without n-grams; the speculative metrics themselves where n-grams are off."""
    name = HEAD_ALONE if HEAD_ALONE in run.turns[0].answers else SPECULATIVE
    rates, stats = _rates(run.turns, name), _stats(run.turns, name)
    plain = median(_rates(run.turns, PLAIN))
    return {
        "tau": round(_tau(stats), 4),
        "tau_interval": _tau_interval(run.turns, name),
        "tokens_per_second": round(median(rates), 3),
        "plain_tokens_per_second": round(plain, 3),
        "speedup": _ratio(median(rates), plain),
        "spread": summary(rates),
        "round_ms": _rounds(run.turns, name),
        "nodes_per_round": _per_round(stats, "verified"),
        "drafts_per_round": _per_round(stats, "drafts"),
    }


def tree_choice(plan: TreePlan, alone: dict[str, Any]) -> dict[str, Any]:
    """What `--tree auto` expected of the head alone, what the head alone measured now (`reached`), and the plan itself."""
    names = ("tau", "tokens_per_second", "plain_tokens_per_second", "speedup", "nodes_per_round")
    measured = {**{name: alone[name] for name in names}, "round_ms": alone["round_ms"]["total_ms"]["median"]}
    return {**asdict(plan), "reached": measured}


def baseline_metrics(run: Run, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each baseline: its rate and time to first token, and how many times as fast ours is, with and without speculation.

    agreement: the share of its tokens before its answers first differ from ours; other roundings of the same weights do differ
    """
    metrics = {}
    fast, slow = (median(_rates(run.turns, name)) for name in (SPECULATIVE, PLAIN))
    for name in names:
        rates = _rates(run.turns, name)
        metrics[name] = {
            "tokens_per_second": summary(rates),
            "first_token_ms": _first_token(run.turns, name),
            "new_tokens": sum(len(turn.answers[name][0].tokens) for turn in run.turns),
            "agreement": _agreement(run.turns, name),
            "speculative_ratio": _ratio(fast, median(rates)),
            "plain_ratio": _ratio(slow, median(rates)),
        }
    return metrics


def _agreement(turns: Sequence[Turn], name: str) -> float:
    generated = sum(len(turn.answers[name][0].tokens) for turn in turns)
    return _ratio(sum(_common(turn.answers[PLAIN][0].tokens, turn.answers[name][0].tokens) for turn in turns), generated)


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def find_differences(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Where answers of ours differ from the first plain one: prompt, turn, who, repeat, and the first differing position."""
    found = []
    for turn in turns:
        expected = turn.answers[PLAIN][0].tokens
        for name in (SPECULATIVE, HEAD_ALONE, PLAIN):
            for repeat, answer in enumerate(turn.answers.get(name, [])):
                if answer.tokens != expected:
                    place = {"id": turn.prompt.id, "turn": turn.number, "position": _common(answer.tokens, expected)}
                    found.append({**place, "contender": name, "repeat": repeat + 1})
    return found


def _rates(turns: Sequence[Turn], name: str) -> list[float]:
    """Tokens per second, a repeat each."""
    repeats = len(turns[0].answers[name])
    return [rate(turn.answers[name][repeat] for turn in turns) for repeat in range(repeats)]


def _ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 4) if theirs else 0.0


def _stats(turns: Sequence[Turn], name: str) -> list[Stats]:
    return [answer.stats for turn in turns for answer in turn.answers[name] if answer.stats]


def _per_round(stats: Sequence[Stats], count: str) -> float:
    return _ratio(sum(getattr(each, count) for each in stats), sum(each.rounds for each in stats))


def _tau(stats: Sequence[Stats]) -> float:
    tokens, rounds = _tokens_and_rounds(stats)
    return tokens / rounds if rounds else 0.0


def _tokens_and_rounds(stats: Sequence[Stats]) -> tuple[int, int]:
    """Emitted tokens after each answer's first one, which its prompt gave, and rounds."""
    return sum(max(0, each.new_tokens - 1) for each in stats), sum(each.rounds for each in stats)


def _tau_interval(turns: Sequence[Turn], name: str) -> list[float] | None:
    """Prompts are resampled: the turns of one conversation stay together."""
    groups = _grouped(turns, lambda turn: turn.prompt.id).values()
    return interval([_tokens_and_rounds(_stats(members, name)) for members in groups])


def _grouped(turns: Sequence[Turn], key: Callable[[Turn], str]) -> dict[str, list[Turn]]:
    groups: dict[str, list[Turn]] = {}
    for turn in turns:
        groups.setdefault(key(turn), []).append(turn)
    return groups


def _acceptance(stats: Sequence[Stats], head: EngineRunner) -> dict[str, Any]:
    """Shares of rounds: `by_depth` of all that accepted at least n tokens, `given_the_one_before` of those that accepted n - 1.

    `by_rank` is of the head alone.
    """
    rounds = sum(each.rounds for each in stats)
    levels = max((len(each.accepted) for each in stats), default=0)
    counts = [sum(each.accepted[level] for each in stats if level < len(each.accepted)) for level in range(levels)]
    before = [rounds, *counts]
    return {
        "rounds": rounds,
        "by_depth": [_ratio(count, rounds) for count in counts],
        "given_the_one_before": [_ratio(count, base) for count, base in zip(counts, before, strict=False)],
        "by_rank": head.ranks.as_dict() if head.ranks.rounds else None,
    }


def _rounds(turns: Sequence[Turn], name: str) -> dict[str, Any]:
    """Milliseconds of a round in the draft, in the target, outside both, and together; pooled over answers, by repeat."""
    parts: dict[str, list[float]] = {"draft_ms": [], "target_ms": [], "host_ms": [], "total_ms": []}
    for repeat in range(len(turns[0].answers[name])):
        stats = [found for turn in turns if (found := turn.answers[name][repeat].stats)]
        rounds = max(1, sum(each.rounds for each in stats))
        for part, values in parts.items():
            field = "decode" if part == "total_ms" else part.removesuffix("_ms")
            values.append(1e3 * sum(getattr(each, field) for each in stats) / rounds)
    return {part: summary(values) for part, values in parts.items()}


def _first_token(turns: Sequence[Turn], name: str) -> dict[str, Any]:
    """First turns and later ones apart: a later turn's prompt is processed already up to its new question."""

    def over(chosen: Sequence[Turn]) -> dict[str, Any] | None:
        answers: list[TimedAnswer] = [answer for turn in chosen for answer in turn.answers[name]]
        return summary([1e3 * answer.first_token for answer in answers]) if answers else None

    first = [turn for turn in turns if turn.number == 1]
    later = [turn for turn in turns if turn.number > 1]
    tokens = {"first_turns": first, "later_turns": later}
    return {key: over(chosen) for key, chosen in tokens.items()}


def _groups(turns: Sequence[Turn], key: Callable[[Turn], str]) -> list[dict[str, Any]]:
    """Speed-up and tau of each prompt, or of each benchmark."""
    metrics = []
    for name, members in _grouped(turns, key).items():
        fast, slow = _rates(members, SPECULATIVE), _rates(members, PLAIN)
        metrics.append(
            {
                "id": name,
                "category": members[0].prompt.category,
                "turns": len(members),
                "prompt_tokens": sum(len(turn.ids) for turn in members),
                "new_tokens": sum(len(turn.answers[SPECULATIVE][0].tokens) for turn in members),
                "tau": round(_tau(_stats(members, SPECULATIVE)), 4),
                "tokens_per_second": round(median(fast), 3),
                "plain_tokens_per_second": round(median(slow), 3),
                "speedup": _ratio(median(fast), median(slow)),
                "identical": not find_differences(members),
            }
        )
    return metrics
