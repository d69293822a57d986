"""jakiro-bench on a tiny engine, quickly."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from jakiro_bench import cli

ID = """<script>alert("1")</script>&'x'"""
LINES = [
    {"id": ID, "benchmark": "ours", "category": "<i>", "turns": ["Hello there", "And again"]},
    {"prompt": "One question"},
]


def bench(engine: Path, prompts: Path, *more: object) -> Result:
    quick = ["--max-new-tokens", 10, "--repeats", 2, "--threads", 1, "--no-cost"]
    arguments = ["--engine", engine, "--prompts", prompts, *quick, *more]
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
