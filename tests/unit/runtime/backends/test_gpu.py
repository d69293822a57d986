"""How this machine's GPU is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_driver import driver
from jakiro_runtime.backends import gpu as device
from jakiro_runtime.errors import EngineError


def test_a_gpu_is_described_as_often_as_it_is_asked_for(tmp_path: Path) -> None:
    library = driver(tmp_path)
    for _ in range(2):  # a context that was not given back would show the second time
        assert device.find(library) == device.Device("Orin", 87, 5 << 20, 9 << 20, True)


def test_without_one_the_sentence_ends_with_what_to_do() -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver.*; name one"):
        device.find("libcuda-of-no-machine.so.1", "name one")


@pytest.mark.gpu
def test_the_gpu_of_this_machine() -> None:
    try:
        found = device.find()
    except EngineError as error:
        pytest.skip(str(error))
    assert found.sm >= 75
    assert 0 < found.free <= found.total
