"""The CUDA sources of ExpertDispatch, compiled for the CPU, against double precision and against the operator's ONNX body."""

from __future__ import annotations

import numpy as np
import pytest

import plugin_library
from jakiro_export.ops.expert_dispatch import OPERATORS
from jakiro_export.ops.operator import Example
from operator_model import run
from plugin_library import TYPES, Library, Problem

all_types = pytest.mark.parametrize("type", list(TYPES))


@pytest.mark.parametrize("experts", [2, 5])
def test_every_row_count_from_1_to_128(library: Library, experts: int) -> None:
    for rows in range(1, 129):
        library.check_dispatch(Problem.random("half", rows, 64, 32, experts, 2), seed=rows)


@all_types
@pytest.mark.parametrize("experts", range(2, 9))
def test_every_expert_count_and_top_k(library: Library, type: str, experts: int) -> None:
    for top_k in range(1, experts + 1):
        for rows in (1, 11):
            library.check_dispatch(Problem.random(type, rows, 32, 48, experts, top_k), seed=top_k)


@all_types
@pytest.mark.parametrize(("hidden", "inner"), [(1, 1), (3, 5), (17, 33), (40, 24), (8, 130), (100, 36), (264, 520)])
def test_sizes_that_divide_nothing(library: Library, type: str, hidden: int, inner: int) -> None:
    for rows, experts in ((1, 2), (19, 2), (19, 3)):
        library.check_dispatch(Problem.random(type, rows, hidden, inner, experts, 2), seed=1)


@all_types
@pytest.mark.parametrize("experts", [2, 4])
def test_prompts_longer_than_one_launch_takes(library: Library, type: str, experts: int) -> None:
    for rows in (129, 300):
        library.check_dispatch(Problem.random(type, rows, 64, 32, experts, 2), seed=3)


@all_types
@pytest.mark.parametrize("experts", [2, 3])
def test_the_order_of_threads_and_blocks_changes_no_bit(library: Library, type: str, experts: int) -> None:
    problem = Problem.random(type, 21, 72, 56, experts, 2)
    first = library.dispatch(problem, seed=0)
    for seed in range(1, 8):
        again = library.dispatch(problem, seed=seed)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))


@all_types
def test_a_row_does_not_depend_on_the_rows_beside_it(library: Library, type: str) -> None:
    """Bit for bit: speculation calls with many rows what plain decoding calls with one."""
    problem = Problem.random(type, 100, 64, 96, 2, 2)
    together = library.dispatch(problem)
    for rows in (1, 9, 30, 60):
        alone = Problem(
            type, problem.x[:rows].copy(), problem.router_logits[:rows].copy(), problem.gate_up, problem.down, 2, True
        )
        for few, many in zip(library.dispatch(alone), together, strict=True):
            assert few.tobytes() == many[:rows].tobytes()


@all_types
@pytest.mark.parametrize("experts", [2, 3, 6])
def test_ties_go_to_the_lower_expert_and_to_the_negative_contrast(library: Library, type: str, experts: int) -> None:
    problem = Problem.random(type, 12, 32, 32, experts, 1)
    problem.router_logits[:4] = 0  # all experts alike, and no contrast logit above the other
    problem.router_logits[4:8, 1:] = problem.router_logits[4:8, 1:2]
    library.check_dispatch(problem)
    library.check_dispatch(Problem.random(type, 12, 32, 32, experts, experts))


@pytest.mark.parametrize("contrast", [True, False])
def test_experts_that_no_row_chose(library: Library, contrast: bool) -> None:
    problem = Problem.random("half", 30, 32, 32, 8, 2, contrast)
    problem.router_logits[:, 3] += 50
    problem.router_logits[:, 6] += 50
    library.check_dispatch(problem)
    counted = library.counters()["buffers"]["gate_up"]
    busy = {0, 1, 3, 6} if contrast else {3, 6}
    assert counted["read"] == counted["bytes"] * len(busy) // 8, "an idle expert's weights were read"


@all_types
@pytest.mark.parametrize("experts", [2, 4])
def test_without_contrast_its_output_is_zero(library: Library, type: str, experts: int) -> None:
    problem = Problem.random(type, 9, 32, 32, experts, 2, contrast=False)
    library.check_dispatch(problem)
    assert not library.dispatch(problem)[1].any()


@pytest.mark.parametrize("type", ["float", "half", "bfloat16"])
def test_large_logits_do_not_overflow_the_softmax(library: Library, type: str) -> None:
    problem = Problem.random(type, 8, 32, 32, 3, 2)
    problem.router_logits *= np.asarray(1e4, problem.router_logits.dtype)
    library.check_dispatch(problem)


@pytest.mark.slow  # a build of its own
def test_turing_products_without_a_tensor_core() -> None:
    """Below sm_80 bfloat16 and float have no mma: the same fragments are multiplied by shuffles."""
    turing = Library(plugin_library.build(defines=("-DJAKIRO_ARCH=750",)))
    for type in ("float", "bfloat16"):
        for rows, hidden, experts in ((1, 64, 2), (20, 35, 2), (20, 64, 3)):
            turing.check_dispatch(Problem.random(type, rows, hidden, 48, experts, 2), seed=rows)


def test_no_rows_is_no_work(library: Library) -> None:
    library.check_dispatch(Problem.random("half", 0, 32, 32, 2, 2))
    assert library.counters()["launches"] == 0


@pytest.mark.parametrize(("experts", "top_k"), [(2, 0), (2, 3), (1, 1)])
def test_senseless_sizes_are_refused(library: Library, experts: int, top_k: int) -> None:
    problem = Problem.random("half", 4, 32, 32, experts, top_k)
    with pytest.raises(ValueError, match="CUDA error 1"):
        library.dispatch(problem)


def onnx_body(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """ONNX Runtime on the operator's function body, in float."""
    names = ("x", "router_logits", "gate_up", "down")
    attributes = {"top_k": problem.top_k, "contrast": int(problem.contrast)}
    inputs = {name: getattr(problem, name).astype(np.float32) for name in names}
    primary, contrast = run(OPERATORS[0], Example(inputs, attributes), opset=18)
    return primary, contrast


@pytest.mark.parametrize("type", ["float", "half", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "experts", "top_k", "contrast"), [(1, 2, 2, True), (10, 2, 2, True), (37, 2, 1, False), (128, 8, 2, True)]
)
def test_equals_the_operators_onnx_body(library: Library, type: str, rows: int, experts: int, top_k: int, contrast: bool) -> None:
    problem = Problem.random(type, rows, 64, 48, experts, top_k, contrast)
    problem.router_logits[0] = 0
    _, tolerances = problem.expected()
    results = library.dispatch(problem, seed=5)
    bodies = onnx_body(problem)
    if not contrast:  # the body always forms the contrast, for a runtime to drop; the kernels write zeros
        results, bodies = results[:1], bodies[:1]
    for result, body, tolerance in zip(results, bodies, tolerances, strict=False):
        assert (np.abs(result.astype(np.float64) - body) <= tolerance + 2e-6).all()
