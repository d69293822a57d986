"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from jakiro_export.quiet import quiet_libraries

quiet_libraries()

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402

import jakiro_export.graphs  # noqa: E402
import jakiro_export.targets.trace  # noqa: E402
import tiny  # noqa: E402
from jakiro_runtime import Engine  # noqa: E402
from traces import Traces  # noqa: E402

hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
)
hypothesis.settings.load_profile("here")


Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="also what is marked exhaustive: every precision of SmolLM2, every RTX target"
    )


# Each is an export of its own: what needs one is slow
EXPORTS = {"tiny_int8", "tiny_numerical", "half_engine", "tiny_jetpack_6"}


@pytest.hookimpl(tryfirst=True)  # before pytest itself chooses by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files go to the workers as wholes (pytest -n 2), the longest first; without --all nothing exhaustive runs."""
    for item in items:
        if EXPORTS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    longest = (
        *("smollm2", "test_draft", "test_tensorrt", "test_ahead_of_time", "training", "test_export"),
        *("test_device_code", "test_kernels", "test_cli"),
    )
    items.sort(key=lambda item: next((n for n, name in enumerate(longest) if name in str(item.path)), len(longest)))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)` is a path at which `make` has made something, once a test run, however many workers there are."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session", autouse=True)
def traces() -> Iterator[Traces]:
    """Every graph of this process is traced once."""
    kept = Traces()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jakiro_export.graphs, "trace", kept.around(jakiro_export.graphs.trace))
        patch.setattr(jakiro_export.targets.trace, "trace_module", kept.around(jakiro_export.targets.trace.trace_module))
        yield kept


@pytest.fixture(scope="session")
def tiny_target(once: Once) -> Path:
    """A random Llama in transformers' format."""
    return once("tiny-target", tiny.make_target)


@pytest.fixture(scope="session")
def tiny_head(once: Once) -> Path:
    """A random head in the published format that fits `tiny_target`."""
    return once("tiny-head", tiny.make_head)


@pytest.fixture(scope="session")
def tiny_engine(once: Once, tiny_target: Path, tiny_head: Path) -> Path:
    """An engine directory of the two, exported and verified as a user would, bitwise, 12 nodes."""
    return once("tiny-engine", lambda out: tiny.make_engine(out, tiny_target, tiny_head))


@pytest.fixture(scope="session")
def tiny_int8(once: Once, tiny_target: Path, tiny_head: Path) -> Path:
    """The same in int8."""
    return once("tiny-int8", lambda out: tiny.make_engine(out, tiny_target, tiny_head, precision="int8"))


@pytest.fixture(scope="session")
def tiny_numerical(once: Once, tiny_target: Path, tiny_head: Path) -> Path:
    """The same without exact sums."""
    return once("tiny-numerical", lambda out: tiny.make_engine(out, tiny_target, tiny_head, equality="numerical", verify=False))


@pytest.fixture(scope="session")
def half_engine(once: Once, tiny_target: Path, tiny_head: Path) -> Path:
    """The same for GPUs: halves, numerical."""
    return once("half-engine", lambda out: tiny.make_engine(out, tiny_target, tiny_head, precision="fp16", equality="numerical"))


@pytest.fixture(scope="session")
def tiny_jetpack_6(once: Once, tiny_target: Path, tiny_head: Path) -> Path:
    """The same as TensorRT 10.3 parses it: opset 20. The head proposes a fifth of the tokens."""
    settings = {"precision": "fp16", "equality": "numerical", "opset": 20, "draft_vocab": 64}
    return once("tiny-jetpack-6", lambda out: tiny.make_engine(out, tiny_target, tiny_head, **settings))


@pytest.fixture(scope="session")
def engine(tiny_engine: Path) -> Engine:
    """The tiny engine, opened."""
    return Engine.open(tiny_engine)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of many lengths, some longer than a chunk and some longer than the first capacity bucket."""
    random = np.random.default_rng(3)
    return [random.integers(3, tiny.VOCAB, length).tolist() for length in (1, 2, 3, 17, 40, 129, 250, 300)]
