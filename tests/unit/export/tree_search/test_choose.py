"""--tree auto: a whole export, and what it says of its measurement."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tiny
from jakiro_export.cli.export import main
from jakiro_export.errors import UsageError
from jakiro_export.plan import ExportOptions
from jakiro_export.tree_search.choose import Effort
from jakiro_runtime import Engine
from jakiro_runtime.format.manifest import Manifest
from row_plans import row_plan


@pytest.mark.slow
def test_an_export_chooses_and_says_so(tmp_path: Path, tiny_target: Path, tiny_head: Path) -> None:
    """One whole export, its depth and top_k given to keep it short."""
    out = tiny.make_engine(tmp_path / "engine", tiny_target, tiny_head, depth=1, top_k=3, nodes=None, verify=False, tree="auto")
    manifest = Manifest.read(out)
    plan, draft = manifest.tree, manifest.draft
    assert plan is not None
    assert (draft.depth, draft.top_k) == (1, 3)
    assert plan.shape == {"depth": 1, "top_k": 3, "nodes": draft.nodes}
    assert plan.considered[0]["tokens_per_second"] > 0
    assert plan.expected["speedup"] == pytest.approx(
        plan.expected["tokens_per_second"] / plan.expected["plain_tokens_per_second"], rel=1e-3
    )
    assert plan.measured["tokens"] > 300
    assert plan.result["speedup"] == pytest.approx(
        plan.result["tokens_per_second"] / plan.result["plain_tokens_per_second"], rel=1e-3
    )
    # the trees were known beforehand, so the finished engine accepts as many tokens as was expected
    assert plan.result["tau"] == pytest.approx(plan.expected["tau"], rel=0.25)
    session = Engine.open(out).session(lookup=False)
    tokens = [token for chunk in session.generate([5, 6, 7], 20) for token in chunk.tokens]
    assert len(tokens) == 20
    assert session.stats.verified < draft.nodes * session.stats.rounds or draft.nodes == 1
    shutil.rmtree(out)


@pytest.mark.slow
def test_a_tree_that_nobody_gave_is_measured_where_it_can_be(
    tmp_path: Path, tiny_target: Path, tiny_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it cannot: there is too little memory. Whoever asks for it is refused then."""
    monkeypatch.setattr("jakiro_export.export._TIMES_WEIGHTS", 1e9)
    arguments = ["-t", str(tiny_target), "-d", str(tiny_head), "--no-verify"]
    done = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "unasked")])
    assert done.exit_code == 0, done.output
    assert "not measured (opening" in " ".join(done.output.split())
    assert Manifest.read(tmp_path / "unasked").tree is None


def test_for_a_cpu_the_tree_is_measured_unless_it_is_given(tmp_path: Path) -> None:
    def searches(**options: Any) -> bool:
        return ExportOptions("d", "t", tmp_path, **options).searches

    assert searches()
    assert searches(precision="int4")
    assert searches(tree="auto", depth=3)
    assert not searches(tree="fixed")
    assert not searches(nodes=12)
    assert not searches(precision="fp16")
    with pytest.raises(UsageError, match="there are auto, fixed and static"):
        searches(tree="best")


def test_a_slow_target_is_measured_less() -> None:
    assert Effort.of(15.0) == Effort.of(29.0) == Effort(16, 56, 9)
    assert Effort.of(60.0) == Effort(8, 28, 4)
    assert Effort.of(222.0) == Effort(3, 24, 3)


def test_a_busy_machine_is_noticed_and_said() -> None:
    plan = replace(row_plan(1.0), shape={"depth": 1, "top_k": 2, "nodes": 3})
    plan.expected.update(tau=2.0, speedup=1.5, nodes_per_round=3.0)
    assert "quiet" not in replace(plan, measured={"others": 0.02}).summary()
    assert "30 %" in replace(plan, measured={"others": 0.3}).summary()
    assert "less sure" not in replace(plan, measured={"others": 0.02, "stable": True}).summary()
    assert "less sure" in replace(plan, measured={"others": 0.02, "stable": False}).summary()


def test_measuring_for_a_gpu_on_a_cpu_is_refused(tmp_path: Path) -> None:
    arguments = ["-t", "x", "-d", "y", "-o", str(tmp_path / "out"), "--tree", "auto", "--precision", "fp16"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--tree auto measures on this machine's CPU" in result.stderr
