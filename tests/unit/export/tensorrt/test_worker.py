"""One build: its flags, its timing cache and how its plan reaches the disk, on stand-ins for TensorRT's objects."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jakiro_export.tensorrt import worker
from jakiro_export.tensorrt.worker import BuildRequest

BuilderFlag = Enum("BuilderFlag", ["TF32", "STRIP_PLAN", "REQUIRE_USER_ALLOCATION"])
POOL = Enum("MemoryPoolType", ["WORKSPACE"])
TRT = SimpleNamespace(BuilderFlag=BuilderFlag, MemoryPoolType=POOL, ComputeCapability=SimpleNamespace(SM86=86))


class Config:
    """An IBuilderConfig whose timing cache must begin with its own version."""

    def __init__(self) -> None:
        self.flags: set[Any] = {BuilderFlag.TF32}
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard
        self.cache: bytes | None = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...

    def set_compute_capability(self, capability: int, number: int) -> None: ...

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache and not cache.startswith(b"10.13"):
            return False
        self.cache = cache
        return True


def request(kind: str, folder: Path, **others: Any) -> BuildRequest:
    return BuildRequest(kind, "model", "source", str(folder / "engine"), [], timing_cache=str(folder / "timing.cache"), **others)


def test_rtx_takes_its_temporary_memory_from_the_runtime(tmp_path: Path) -> None:
    """Otherwise a context allocates as it runs, and no stream can record that."""
    for kind, capabilities in (("tensorrt", []), ("tensorrt-rtx", [86])):
        config = Config()
        worker._configure(TRT, config, request(kind, tmp_path, compute_capabilities=capabilities))
        assert (BuilderFlag.REQUIRE_USER_ALLOCATION in config.flags) == (kind == "tensorrt-rtx")
        assert BuilderFlag.TF32 not in config.flags


@pytest.mark.parametrize(("held", "used"), [(b"10.13 measured", b"10.13 measured"), (b"10.3 measured", b""), (None, b"")])
def test_a_timing_cache_of_another_version_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture, held: bytes | None, used: bytes
) -> None:
    if held is not None:
        (tmp_path / "timing.cache").write_bytes(held)
    config = Config()
    assert worker._open_cache(config, request("tensorrt", tmp_path)) == used
    assert config.cache == used
    assert ("made anew" in capsys.readouterr().err) == (held == b"10.3 measured")


class Writer:
    pass


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("works", [False, True])
def test_a_plan_reaches_the_disk_whole_or_not_at_all(tmp_path: Path, streams: bool, works: bool) -> None:
    class Builder:
        def build_serialized_network(self, network: object, config: object) -> bytes | None:
            assert not streams, "it holds a plan as large as the weights"
            return b"plan" if works else None

        def build_serialized_network_to_stream(self, network: object, config: object, writer: Any) -> bool:
            assert writer.write(b"pl") == 2
            if works:
                writer.write(b"an")
            return works

    trt = SimpleNamespace(IStreamWriter=Writer) if streams else SimpleNamespace()
    size = worker._build_plan(trt, Builder(), None, None, tmp_path / "target.engine")
    assert size == (4 if works else None)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([b"plan"] if works else [])
