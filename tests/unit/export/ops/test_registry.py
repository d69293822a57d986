"""The registry of operators: three forms of each agree, kernels and plugins replace what it says, one file adds one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jakiro_export.errors import ExportError
from jakiro_export.ops import DOMAIN, registry
from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import CallSite, Example, Operand, Operator
from jakiro_export.ops.row_matmul import FORMS
from jakiro_runtime import kernels
from operator_definitions import DEFINITIONS
from operator_model import call_site, eager, one_node, run, session
from paths import ROOT

OPERATORS = registry.operators()
OWN = {name: each for name, each in OPERATORS.items() if each.domain == DOMAIN}


def results(found: Any) -> list[np.ndarray]:
    return [np.asarray(each) for each in (found if isinstance(found, tuple | list) else (found,))]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("seed", range(3))
def test_body_torch_and_numpy_agree(name: str, seed: int) -> None:
    operator = OPERATORS[name]
    example = operator.example(np.random.default_rng(seed))
    assert list(example.inputs) == [each.name for each in operator.inputs]
    double = [value.astype(np.float64) if value.dtype == np.float32 else value for value in example.inputs.values()]
    forms = {
        "body": run(operator, example),
        "torch": eager(operator, example),
        "numpy": results(DEFINITIONS[name](*double, **example.attributes)),
    }
    for form, found in forms.items():
        assert len(found) == len(operator.outputs), form
        for ours, theirs, output in zip(found, forms["numpy"], operator.outputs, strict=True):
            assert ours.shape == theirs.shape, (form, output.name)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max(), err_msg=f"{form} {output.name}")


def test_the_comparison_notices_another_result() -> None:
    """A control."""
    example = OPERATORS["SwiGlu"].example(np.random.default_rng(0))
    turned = Example({"both": -example.inputs["both"]}, {})
    assert not np.allclose(run(OPERATORS["SwiGlu"], example)[0], run(OPERATORS["SwiGlu"], turned)[0], atol=1e-2)


@pytest.mark.parametrize("name", OPERATORS)
def test_onnx_accepts_the_body(name: str) -> None:
    operator = OPERATORS[name]
    example = operator.example(np.random.default_rng(0))
    for opset in {20, 23} if operator.opset <= 20 else {23}:
        onnx.checker.check_model(one_node(operator, example, opset), full_check=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_schema_and_body_have_one_signature(name: str) -> None:
    operator = OPERATORS[name]
    assert operator.doc
    assert onnx.defs.has(name, operator.domain)
    if operator.body is None:
        return
    schema = onnx.defs.get_schema(name, domain=DOMAIN)
    body = operator.function(call_site(operator, operator.example(np.random.default_rng(0)), 23))
    assert [each.name for each in schema.inputs] == list(body.input) == [each.name for each in operator.inputs]
    assert [each.name for each in schema.outputs] == list(body.output) == [each.name for each in operator.outputs]
    assert set(schema.attributes) == set(body.attribute) == set(operator.attributes)


@pytest.mark.parametrize("name", OWN)
def test_the_runtime_has_a_kernel_where_the_registry_says_so(name: str) -> None:
    library = kernels.library()
    if library is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    example = OWN[name].example(np.random.default_rng(0))
    alone = one_node(OWN[name], example, body=onnx.FunctionProto())
    if OWN[name].cpu_kernel:
        session(alone, library)
    else:
        with pytest.raises(Exception, match=name):
            session(alone, library)


REGISTRATION = (ROOT / "runtime/jakiro_runtime/kernels/register_ops.cpp").read_text()


def test_every_kernel_is_of_a_registered_operator() -> None:
    named = set(re.findall(r'"([A-Z][A-Za-z0-9]+)"', REGISTRATION))
    assert {name for name, each in OWN.items() if each.cpu_kernel} == named


def test_kernels_name_inputs_as_the_registry_does() -> None:
    """Their messages do: "RowInt8MatMul: scales has ..."."""
    entries = re.findall(r'\{(?:"(\w+)"|name),\s*\{((?:\{[^{}]*\},?\s*)+(?:last)?)\},', REGISTRATION)
    found = {name: re.findall(r'"(\w+)"', inputs) for name, inputs in entries if name}
    matmuls = [re.findall(r'"(\w+)"', inputs) for name, inputs in entries if not name]
    found.update(zip(("RowInt8MatMul", "RowInt4MatMul"), matmuls, strict=True))
    forms = {f"{before}{name}{after}" for name in ("RowInt8MatMul", "RowInt4MatMul") for before, after in FORMS} - set(found)
    kernels_of = {name: each for name, each in OWN.items() if each.cpu_kernel and name not in forms}
    assert found == {name: [operand.name for operand in each.inputs] for name, each in kernels_of.items()}


def test_every_plugin_is_of_a_registered_operator() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "plugins/plugin").glob("*.h"))
    named = set(re.findall(r'kPluginName\[\] = "(\w+)"', sources))
    assert {name for name, each in OWN.items() if each.tensorrt_plugin} == named


def test_kernels_and_plugins_have_the_domain_of_the_exporter() -> None:
    assert f'"{DOMAIN}"' in REGISTRATION
    assert any(f'"{DOMAIN}"' in path.read_text() for path in (ROOT / "plugins/plugin").iterdir())


@pytest.fixture
def toy() -> Iterator[Operator]:
    """An operator of one file: twice its input."""

    def body(b: Body, site: CallSite) -> tuple[str, ...]:
        return (b.add("Add", "x", "x"),)

    operator = Operator(
        name="ToyDouble",
        doc="Twice its input.",
        inputs=(Operand("x", "T", "[...]"),),
        outputs=(Operand("y", "T", "[...]"),),
        eager=lambda x: x + x,
        body=body,
        example=lambda random: Example({"x": random.random((2, 3)).astype(np.float32)}, {}),
    )
    registry.register(operator)
    yield operator
    registry._OPERATORS.pop(operator.name)
    onnx.defs.deregister_schema(operator.name, 1, DOMAIN)


def graph_of(*nodes: ir.Node) -> ir.Model:
    inputs = [value for value in nodes[0].inputs if value is not None]
    return ir.Model(ir.Graph(inputs, nodes[-1].outputs, nodes=nodes, opset_imports={"": 23, DOMAIN: 1}), ir_version=10)


def value(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def test_an_operator_is_added_by_registering_it(toy: Operator) -> None:
    assert [body.name for body in registry.bodies(graph_of(ir.node("ToyDouble", [value("x", 2, 3)], domain=DOMAIN)))] == [
        "ToyDouble"
    ]
    example = toy.example(np.random.default_rng(0))
    np.testing.assert_array_equal(run(toy, example)[0], 2 * example.inputs["x"])
    with pytest.raises(ValueError, match="ToyDouble already"):
        registry.register(replace(OPERATORS["SwiGlu"], name="ToyDouble"))


def test_a_graph_gets_the_bodies_of_its_own_operators_alone() -> None:
    assert registry.bodies(graph_of(ir.node("Neg", [value("x", 2)]))) == []
    (body,) = registry.bodies(graph_of(ir.node("SwiGlu", [value("x", 2, 6)], domain=DOMAIN)))
    assert body.name == "SwiGlu"


def test_bodies_that_cannot_be_written_are_errors() -> None:
    with pytest.raises(ExportError, match="Nonsense that is not among"):
        registry.bodies(graph_of(ir.node("Nonsense", [value("x", 2)], domain=DOMAIN)))
    early = graph_of(ir.node("SplitHeads", [value(name, 1) for name in "abcd"], domain=DOMAIN, num_outputs=3))
    early.graph.opset_imports[""] = 20
    with pytest.raises(ExportError, match="SplitHeads has no body in opset 20; it needs 23"):
        registry.bodies(early)

    matrices = [value(name, *shape) for name, shape in (("gate_up", (4, 12, 8)), ("down", (4, 8, 6)))]
    inputs = [value("x", 3, 8), value("router_logits", 3, 6), *matrices]
    nodes = [
        ir.node("ExpertDispatch", inputs, attributes={"top_k": top_k, "contrast": 0}, domain=DOMAIN, num_outputs=2)
        for top_k in (2, 3)
    ]
    with pytest.raises(ExportError, match="ExpertDispatch nodes that differ"):
        registry.bodies(graph_of(*nodes))
