"""Budgets and estimates for devices that are not here: held against graphs, against the published figures, against sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from jakiro_export.cli.inspect import main
from jakiro_export.errors import UsageError
from jakiro_export.estimates import budget, devices, estimate, table
from jakiro_export.estimates.cost_model import SIZES, Sizes, of_graph
from jakiro_export.tensorrt import graphs
from paths import ROOT

VICUNA = SIZES["vicuna-7b"]
A40 = devices.find("a40")


def test_sizes_give_what_the_graphs_hold(tiny_engine: Path) -> None:
    """The arithmetic on a model's sizes against the weights counted in exported graphs (fp32; depth 3)."""
    tiny = Sizes(48, 96, 3, 6, 2, 320, 48, 2, tied=True, element=4)
    counted = of_graph(graphs.read(tiny_engine / "target.onnx"))
    assert counted.read == tiny.target().read
    assert counted.row_operations == tiny.target().row_operations
    assert counted.products == tiny.target().products
    assert counted.stored == pytest.approx(tiny.target().stored, rel=0.02), "norms and tables are not in the arithmetic"
    counted, worked_out = of_graph(graphs.read(tiny_engine / "draft.onnx")), tiny.draft(3)
    assert counted.read == pytest.approx(worked_out.read, rel=0.05), "the last level needs no keys and values"
    assert counted.products == pytest.approx(worked_out.products, abs=2)


def test_parameters_of_known_models() -> None:
    for name, billions in (("llama2-7b", 6.74), ("llama2-13b", 13.02), ("llama3-8b", 8.03), ("smollm2-135m", 0.1345)):
        assert SIZES[name].target().stored / 2e9 == pytest.approx(billions, rel=0.01)


def test_the_published_plain_step_of_vicuna_7b() -> None:
    """30.7 ms on an A40 in fp16 (REFERENCE: the published logs). Nothing in the formula was fitted to it."""
    step = estimate.seconds(VICUNA.target(), A40, rows=1, context=512)
    assert step == pytest.approx(30.7e-3, rel=0.25)


def test_more_work_is_never_faster() -> None:
    target, draft = VICUNA.target(), VICUNA.draft(5)
    rows = [estimate.seconds(target, A40, n, 512) for n in (1, 8, 64, 512, 4096)]
    assert rows == sorted(rows)
    assert rows[-1] > 3 * rows[0], "a long prompt is bound by arithmetic"
    assert estimate.seconds(target, A40, 1, 4096) > estimate.seconds(target, A40, 1, 512)
    fast = replace(A40, bandwidth=2 * A40.bandwidth)
    assert estimate.seconds(target, fast, 1, 512) < 0.6 * rows[0]
    found = estimate.estimate(target, draft, A40, 60, 10, 512)
    assert found.speed(found.break_even) == pytest.approx(1 / found.plain)


def test_the_best_tree_is_where_another_node_costs_more_than_it_brings() -> None:
    target, draft = VICUNA.target(), VICUNA.draft(5)
    slow = replace(A40, flops=A40.flops / 30)  # arithmetic-bound early: nodes are dear
    shares = [0.7, 0.5, 0.3] + [0.02] * 57
    few, tau, _ = estimate.best_nodes(target, draft, slow, shares, 10, 512)
    many, _, _ = estimate.best_nodes(target, draft, A40, shares, 10, 512)
    assert few < many == 60
    assert tau == pytest.approx(1 + sum(shares[:few]))


def test_a_budget_adds_up_and_knows_shared_memory() -> None:
    sizes = SIZES["llama3-8b"]
    orin, desktop = devices.find("orin-nx-16gb"), devices.find("rtx-4090")
    on_orin = budget.budget(sizes.target(), sizes.draft(5), orin, sizes.hidden, sizes.vocab, 4096)
    on_desktop = budget.budget(sizes.target(), sizes.draft(5), desktop, sizes.hidden, sizes.vocab, 4096)
    assert on_orin.running - on_desktop.running == on_orin.system == budget.SYSTEM
    assert on_orin.running > orin.memory, "8 billion halves do not fit in 16 GiB"
    assert on_desktop.running < desktop.memory
    small = SIZES["smollm2-135m"]
    assert budget.budget(small.target(), small.draft(5), orin, small.hidden, small.vocab, 2048).build < orin.memory
    two = budget.budget(sizes.target(), sizes.draft(5), orin, sizes.hidden, sizes.vocab, 4096, batch=2)
    assert two.cache == 2 * on_orin.cache


def test_a_device_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="orin-nx-16gb"):
        devices.find("abacus")


def test_inspect_says_what_is_in_an_engine(tiny_engine: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_engine)])
    assert result.exit_code == 0, result.output
    for word in ("3 layers", "12 nodes", "bitwise", "target.onnx.data", "none; jakiro-build makes them"):
        assert word in result.output


def test_inspect_budgets_and_estimates_an_engine_as_json(tiny_engine: Path, tmp_path: Path) -> None:
    report = {"tau": 2.5, "detail": {"acceptance": {"by_rank": {"by_tree_rank": [0.8, 0.5, 0.1, 0.1]}}}}
    (tmp_path / "bench.json").write_text(json.dumps(report))
    result = CliRunner().invoke(
        main,
        [str(tiny_engine), "--budget", "orin-nx-16gb", "--estimate", "a40", "--bench", str(tmp_path / "bench.json"), "--json"],
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert "it fits" in data["budget"]["verdict"]
    assert "at tau 2.50" in data["estimate"]["with speculation"]
    assert "4 nodes: tau 2.50" in data["estimate"]["best tree"]
    assert "a tree of 4" in data["estimate"]
    assert all("not run on a GPU" in part["note"] for part in data.values())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["llama2-7b", "--tau", "3"], "--estimate"),
        (["llama2-7b", "--budget", "abacus"], "abacus"),
        (["/no/such/engine"], "/no/such/engine"),
        ([], "Name an engine directory"),
        (["llama2-7b", "--budget"], "--budget needs a device"),
        (["llama2-7b", "--budget", "--all"], "jakiro-inspect --budget --all"),
        (["llama2-7b", "--estimate", "a40", "--bench", "/no/such/report.json"], "report.json"),
    ],
)
def test_wrong_calls(arguments: list[str], word: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert word in result.output


def test_the_jetson_pages_table_is_what_inspect_says() -> None:
    result = CliRunner().invoke(main, ["--budget", "--all"])
    assert result.exit_code == 0, result.output
    assert result.output.strip() in (ROOT / "docs" / "jetson.md").read_text()
    assert len(result.output.splitlines()) == 2 + 2 * len(SIZES)


def test_what_fits_where() -> None:
    small, large = SIZES["smollm2-135m"], SIZES["llama3-8b"]
    orin = devices.find("orin-nx-8gb")
    for sizes, expected in ((small, "runs, builds"), (large, "-")):
        found = budget.budget(sizes.target(), sizes.draft(5), orin, sizes.hidden, sizes.vocab, 4096)
        assert table.fits(found, orin) == expected


def test_a_budget_says_when_tensorrt_builds_nothing(tiny_engine: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_engine), "--budget", "agx-orin-64gb"])
    assert result.exit_code == 0, result.output
    assert "it fits; TensorRT builds nothing from it: target.onnx has float64" in result.output


# Published by NVIDIA for TensorRT Edge-LLM 0.9 and 0.10, tokens a second of plain decoding, batch 1
PLAIN = [
    ("qwen3-8b", "w4a16", "thor-128gb", 49.3),
    ("qwen3-8b", "nvfp4", "thor-128gb", 46.8),
    ("llama3.1-8b", "w4a16", "thor-128gb", 50.8),
    ("qwen3-8b", "w4a16", "agx-orin-64gb", 32.5),
    ("qwen3-8b", "w4a16", "orin-nx-16gb", 19.0),
]


@pytest.mark.parametrize(("model", "precision", "device", "published"), PLAIN)
def test_published_plain_rows_are_within_a_quarter(model: str, precision: str, device: str, published: float) -> None:
    """Nothing in the formula was fitted to them."""
    sizes = SIZES[model].at(precision)
    step = estimate.seconds(sizes.target(), devices.find(device), rows=1, context=512)
    assert 1 / step == pytest.approx(published, rel=0.25)


def test_a_gpu_that_is_not_there_would_not_pass() -> None:
    """A control: the same row with twice the bandwidth, or in half precision, is out of the range."""
    thor = devices.find("thor-128gb")
    faster, sizes = replace(thor, bandwidth=2 * thor.bandwidth), SIZES["llama3.1-8b"]
    for target, gpu in ((sizes.at("w4a16").target(), faster), (sizes.target(), thor)):
        assert 1 / estimate.seconds(target, gpu, 1, 512) != pytest.approx(50.8, rel=0.25)


def test_attention_over_a_long_context_counts() -> None:
    """Scores of every row go through memory: with a tree of 60 they cost more than the cache itself."""
    target, thor = SIZES["llama3.1-8b"].at("w4a16").target(), devices.find("thor-128gb")
    one, tree = (estimate.seconds(target, thor, rows, 32768) - estimate.seconds(target, thor, rows, 512) for rows in (1, 61))
    assert tree > 3 * one


def test_a_smaller_draft_reads_less() -> None:
    plain = SIZES["llama3.1-8b"]
    assert plain.draft(5).read > 8e9, "the whole projection, six times"
    small = plain.at("w4a16", 32768).draft(5)
    assert small.read < 1.4e9
    assert plain.at("w4a16", 32768).draft(5, fused=True).launches == small.launches - 36


def test_a_large_batch_wants_a_smaller_tree() -> None:
    sizes, orin = SIZES["llama3.1-8b"].at("w4a16", 32768), devices.find("agx-orin-64gb")
    models = (sizes.target(), sizes.draft(5), orin, estimate.ASSUMED_SHARES, 10, 512)
    counts = [estimate.best_nodes(*models, batch)[0] for batch in (1, 8, 32)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_inspect_by_precision() -> None:
    result = CliRunner().invoke(
        main, ["llama3.1-8b", "--estimate", "thor-128gb", "--precision", "w4a16", "--batch", "8", "--json"]
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)["estimate"]
    assert "GB of weights read" in data["draft phase"]
    assert "assumed" in data["best tree"]
    for arguments, word in ((["--precision", "int3"], "'int3'; there are for fp16"), (["--batch", "0"], "batch")):
        assert word in CliRunner().invoke(main, ["llama3.1-8b", "--estimate", "thor-128gb", *arguments]).output


@pytest.mark.slow
def test_a_quantised_graph_is_counted_with_its_scales(
    tmp_path: Path, half_engine: Path, tiny_target: Path, tiny_head: Path
) -> None:
    engine = tiny.make_engine(tmp_path / "e", tiny_target, tiny_head, precision="w8a8", verify=False)
    half, eight = (of_graph(graphs.read(each / "target.onnx")) for each in (half_engine, engine))
    assert eight.row_operations == half.row_operations
    assert eight.products == half.products
    assert 0.5 * half.read < eight.read < 0.55 * half.read, "a byte a weight and a scale a channel"
