"""TensorRT's versions: which one is installed, and whether this project can build with it.

JetPack 6 has 10.3, JetPack 7 has 10.13, desktops have anything up to 11. The calls that `worker` makes exist in all of them
(tests/tensorrt/test_api_surface.py); what differs is decided here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType

from jakiro_export.errors import ExportError
from jakiro_runtime.backends import built_engines
from jakiro_runtime.errors import EngineError

OLDEST = (10, 3)
NEWEST_MAJOR = 11
NEWEST_RTX_MAJOR = 1
# From these versions on the parser has opset 23's RMSNormalization and RotaryEmbedding (onnx-tensorrt's changelog); RTX's version
# is the one that this project builds with. Earlier ones are given primitives.
OPSET_23 = {"tensorrt": (10, 15), "tensorrt-rtx": (1, 7)}


@dataclass(frozen=True)
class Api:
    """An installed TensorRT. kind: "tensorrt" or "tensorrt-rtx"; version: its numbers, such as (10, 13, 3, 9)."""

    kind: str
    version: tuple[int, ...]
    module: ModuleType

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))


def load(kind: str) -> Api:
    """Import TensorRT.

    Raises:
        ExportError: it is not installed, does not load, or is of a version this project cannot use
    """
    try:
        module = built_engines.import_library(kind)
    except EngineError as error:
        raise ExportError(str(error)) from error
    api = Api(kind, parse(module.__version__), module)
    check(api.kind, api.version)
    return api


def parse(text: str) -> tuple[int, ...]:
    """The numbers of a version: "10.13.3.9.post1" is (10, 13, 3, 9)."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()


def parses_opset_23(kind: str, version: tuple[int, ...]) -> bool:
    """Whether this version's parser has the norm and the rotary embedding as one operator each."""
    return version[:2] >= OPSET_23[kind]


def of_device(sm: int) -> tuple[int, ...]:
    """The TensorRT that a device comes with, a Jetson's JetPack 6 or 7; the newest where the user chooses."""
    return {87: (10, 3), 110: (10, 13)}.get(sm, (NEWEST_MAJOR, 0))


def check(kind: str, version: tuple[int, ...]) -> None:
    """Raises ExportError for a version that this project does not know how to use."""
    text = ".".join(map(str, version)) or "of unknown version"
    if kind == "tensorrt-rtx":
        if version[:1] != (NEWEST_RTX_MAJOR,):
            raise ExportError(f"TensorRT-RTX {text} is installed, but 1.x is expected; {built_engines.INSTALL[kind]}.")
    elif version[:2] < OLDEST or version[0] > NEWEST_MAJOR:
        raise ExportError(
            f"TensorRT {text} is installed, but 10.3 to {NEWEST_MAJOR}.x is expected; {built_engines.INSTALL[kind]}."
        )
