"""What is decided before TensorRT is asked: versions, shapes, memory, and the form in which a graph is handed over."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from jakiro_export.errors import ExportError, UsageError
from jakiro_export.tensorrt import accuracy, graphs, memory, versions
from jakiro_export.tensorrt.profiles import Limits, last_capacity, profiles
from jakiro_runtime.format.manifest import Manifest


@pytest.fixture(scope="module")
def draft(half_engine: Path) -> graphs.Graph:
    return graphs.read(half_engine / "draft.onnx")


@pytest.fixture(scope="module")
def manifest(half_engine: Path) -> Manifest:
    return Manifest.read(half_engine)


@pytest.mark.parametrize(
    ("text", "numbers"), [("10.3.0", (10, 3, 0)), ("10.13.3.9.post1", (10, 13, 3, 9)), ("11.4.0.106", (11, 4, 0, 106)), ("?", ())]
)
def test_versions_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert versions.parse(text) == numbers


@pytest.mark.parametrize("version", [(10, 3, 0), (10, 7, 0), (10, 15, 1, 29), (11, 4, 0)])
def test_versions_that_serve(version: tuple[int, ...]) -> None:
    versions.check("tensorrt", version)


@pytest.mark.parametrize(
    ("kind", "version"),
    [("tensorrt", (8, 6, 1)), ("tensorrt", (10, 2, 0)), ("tensorrt", (12, 0)), ("tensorrt", ()), ("tensorrt-rtx", (2, 0))],
)
def test_versions_that_do_not(kind: str, version: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match="expected"):
        versions.check(kind, version)


def run(model: bytes, source: Path, inputs: dict[str, np.ndarray], folder: Path) -> list[Any]:
    """ONNX Runtime on a rewritten graph, its weights beside the original."""
    path = folder / "rewritten.onnx"
    path.write_bytes(model)
    for file in source.parent.glob("*.data"):
        shutil.copyfile(file, folder / file.name)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)


def test_bodies_in_place_compute_the_same(draft: graphs.Graph, manifest: Manifest, tmp_path: Path) -> None:
    model = graphs.parsed_model(draft, plugin=False, opset_23=True)
    rewritten = model.SerializeToString()
    assert draft.dispatches > 0
    assert not model.functions
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [entry.domain for entry in model.opset_import] in ([""], ["ai.onnx"])
    inputs = accuracy.feed(draft, profiles("draft", draft, manifest, Limits())[0], manifest.model.vocab_size)
    expected = list(accuracy.onnxruntime_runner(draft.path, manifest.draft_contract)(inputs).values())
    for wanted, found in zip(expected, run(rewritten, draft.path, inputs, tmp_path), strict=True):
        np.testing.assert_array_equal(wanted, found)


def test_for_the_plugin_only_its_node_is_left(draft: graphs.Graph) -> None:
    model = graphs.parsed_model(draft, plugin=True, opset_23=True)
    assert not model.functions
    nodes = [node for node in model.graph.node if node.domain == "jakiro"]
    assert len(nodes) == draft.dispatches
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert attributes["plugin_namespace"] == b"jakiro", "where TensorRT 10.15 and later look for the plugin"
    assert draft.model.functions, "the graph that was read is left as it was"


def test_profiles_hold_every_shape_of_a_session(half_engine: Path, draft: graphs.Graph, manifest: Manifest) -> None:
    target = graphs.read(half_engine / "target.onnx")
    for kind, graph in (("target", target), ("draft", draft)):
        for profile in profiles(kind, graph, manifest, Limits(batch=4, chunk=32)):
            assert set(profile.axes) == set(graph.axes)
            for reach in profile.axes.values():
                assert 1 <= reach.min <= reach.opt <= reach.max
            assert profile.axes["batch"].max == 4
            assert profile.axes["capacity"].max == last_capacity(manifest.model.max_context, 32)
    tree, prompt = profiles("target", target, manifest, Limits(chunk=32))
    assert tree.axes["selected"].max == tree.axes["rows"].max == manifest.draft.nodes + 1
    assert prompt.axes["rows"].max == 32
    assert profiles("draft", draft, manifest, Limits())[0].axes["rows"].max == manifest.draft.levels + 1


def test_the_last_capacity_is_exact() -> None:
    """4,096 positions and a call's rows, not 8,192."""
    assert last_capacity(4096, 61) == last_capacity(4096, 128) == 4224
    assert last_capacity(300, 13) == 384


def test_a_build_is_for_4096_positions_unless_asked(manifest: Manifest) -> None:
    long = replace(manifest, model=replace(manifest.model, max_context=131072))
    assert Limits().positions(long) == 4096
    assert Limits(context=32768).positions(long) == 32768
    assert Limits().positions(manifest) == manifest.model.max_context


def test_an_axis_that_nobody_knows(half_engine: Path, manifest: Manifest) -> None:
    graph = graphs.read(half_engine / "target.onnx")
    odd = graphs.Tensor("odd", onnx.TensorProto.FLOAT, ("somewhere",))
    strange = graphs.Graph(graph.path, graph.model, (*graph.inputs, odd), graph.outputs, graph.types, 0, 23)
    with pytest.raises(UsageError, match="somewhere"):
        profiles("target", strange, manifest, Limits())


@pytest.mark.parametrize(
    ("type", "sm", "fine"),
    [
        (onnx.TensorProto.DOUBLE, 120, False),
        (onnx.TensorProto.BFLOAT16, 75, False),
        (onnx.TensorProto.BFLOAT16, 80, True),
        (onnx.TensorProto.INT4, 75, False),
        (onnx.TensorProto.FLOAT8E4M3FN, 86, False),
        (onnx.TensorProto.FLOAT8E4M3FN, 89, True),
        (onnx.TensorProto.FLOAT16, 75, True),
    ],
)
def test_element_types_and_gpus(draft: graphs.Graph, type: int, sm: int, fine: bool) -> None:
    graph = graphs.Graph(draft.path, draft.model, draft.inputs, draft.outputs, frozenset({type}), 0, 23)
    if fine:
        graphs.check_types(graph, sm)
    else:
        with pytest.raises(ExportError, match="--precision fp16"):
            graphs.check_types(graph, sm)


def test_memory_is_the_hosts_and_the_gpus_together_on_a_jetson(draft: graphs.Graph, manifest: Manifest) -> None:
    shapes = profiles("draft", draft, manifest, Limits())
    assert memory.estimate(draft, shapes, 1 << 30, on_device=False).device == 0
    need = memory.estimate(draft, shapes, 1 << 30, on_device=True)
    assert need.device > 1 << 30
    memory.check(need, need.host, need.device, False, "x")
    memory.check(need, need.host + need.device, None, True, "x")
    with pytest.raises(ExportError, match="GPU memory"):
        memory.check(need, need.host, need.device - 1, False, "x")
    with pytest.raises(ExportError, match="of memory"):
        memory.check(need, need.floor, need.device, True, "x")


def test_an_estimate_that_was_never_measured_warns_where_a_measured_one_refuses(draft: graphs.Graph, manifest: Manifest) -> None:
    """Five times the weights is extended from SmolLM2's; an Orin 64 may well build what that forbids."""
    shapes = profiles("draft", draft, manifest, Limits())
    large = memory.estimate(replace(draft, weight_bytes=13 << 30), shapes, 1 << 30, on_device=False)
    assert not large.measured
    said = memory.check(large, large.host - 1, None, False, "x")
    assert said is not None
    assert "estimated from smaller models" in said
    with pytest.raises(ExportError, match="--ignore-memory"):
        memory.check(large, large.floor - 1, None, False, "x")
    small = memory.estimate(draft, shapes, 1 << 30, on_device=False)
    assert small.measured
    with pytest.raises(ExportError, match=r"\(measured\)"):
        memory.check(small, small.host - 1, None, False, "x")


def test_an_engine_is_held_against_onnx_runtime(half_engine: Path, manifest: Manifest) -> None:
    """The comparison that follows a build on a device, here with ONNX Runtime on both sides: equal, and disturbed."""
    contracts = {"target": manifest.target_contract, "draft": manifest.draft_contract}
    for kind in ("target", "draft"):
        graph = graphs.read(half_engine / f"{kind}.onnx")
        reference = accuracy.onnxruntime_runner(graph.path, contracts[kind])
        for profile in profiles(kind, graph, manifest, Limits(chunk=16)):
            inputs = accuracy.feed(graph, profile, manifest.model.vocab_size)
            checks = accuracy.compare(reference, reference, inputs, "fp16")
            assert all(check["passed"] and check["difference"] == 0 for check in checks)
            broken = accuracy.compare(reference, lambda values, r=reference: disturbed(r(values)), inputs, "fp16")
            assert not any(check["passed"] for check in broken)


def disturbed(outputs: Any) -> dict[str, np.ndarray]:
    return {
        name: value + 1 if np.issubdtype(value.dtype, np.integer) else value + value.dtype.type(0.5) * np.abs(value).max()
        for name, value in outputs.items()
    }


def test_values_that_are_no_numbers_do_not_pass(half_engine: Path, manifest: Manifest) -> None:
    graph = graphs.read(half_engine / "target.onnx")
    reference = accuracy.onnxruntime_runner(graph.path, manifest.target_contract)
    inputs = accuracy.feed(graph, profiles("target", graph, manifest, Limits(chunk=16))[0], manifest.model.vocab_size)

    def broken(values: accuracy.Feed) -> dict[str, np.ndarray]:
        nothing = {name: np.full_like(value, np.nan) for name, value in reference(values).items() if value.dtype.kind == "f"}
        return {**reference(values), **nothing}

    checks = accuracy.compare(reference, broken, inputs, "fp16")
    assert not any(check["passed"] for check in checks if check["name"] != "next_tokens")


def test_building_needs_no_torch() -> None:
    """A Jetson has none: what jakiro-build imports there is onnx and numpy."""
    program = (
        "import sys, jakiro_export.cli.build\n"
        "from jakiro_export.tensorrt import accuracy, building, worker\n"
        "print([name for name in ('torch', 'transformers', 'onnxruntime') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_bytes_row_by_row_are_for_cpus(draft: graphs.Graph) -> None:
    """What --precision int8 writes; in a function's body too."""
    for function in (False, True):
        model = onnx.ModelProto()
        model.CopyFrom(draft.model)
        nodes = model.functions[0].node if function else model.graph.node
        next(node for node in nodes if node.op_type == "MatMul").op_type = "MatMulInteger"
        with pytest.raises(ExportError, match="int8.*--precision fp16"):
            graphs.check_types(replace(draft, model=model), 86)
