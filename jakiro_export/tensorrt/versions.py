"""TensorRT's versions: which one is installed, and whether this project can build with it.

JetPack 6 has 10.3, JetPack 7 has 10.13, desktops have anything up to 11. The calls that `worker` makes exist in all of them
(tests/tensorrt/test_api_surface.py); what differs is decided here.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType

from jakiro_export.errors import ExportError

OLDEST = (10, 3)
NEWEST_MAJOR = 11
NEWEST_RTX_MAJOR = 1
# The parser of 10.3 stops before opset 23, that of 10.9 too; where exactly a later one begins is for it to say.
OPSET_23 = (10, 10)
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
HOW_TO_INSTALL = {
    "tensorrt": "it comes with JetPack, or with: pip install tensorrt",
    "tensorrt-rtx": "install it with: pip install 'jakiro-export[rtx]'",
}


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
    for name in MODULES[kind]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ExportError(f"The Python package {name} is incomplete: {error}; {HOW_TO_INSTALL[kind]}.") from error
            continue
        except (ImportError, OSError) as error:
            raise ExportError(f"The Python package {name} does not load here: {error}.") from error
        if not hasattr(module, "__version__"):
            continue  # a folder of that name on the path, such as an engine directory's own
        api = Api(kind, parse(module.__version__), module)
        check(api.kind, api.version)
        return api
    product = "TensorRT-RTX" if kind == "tensorrt-rtx" else "TensorRT"
    raise ExportError(f"{product} is not installed for this Python; {HOW_TO_INSTALL[kind]}.")


def parse(text: str) -> tuple[int, ...]:
    """The numbers of a version: "10.13.3.9.post1" is (10, 13, 3, 9)."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()


def check(kind: str, version: tuple[int, ...]) -> None:
    """Raises ExportError for a version that this project does not know how to use."""
    text = ".".join(map(str, version)) or "of unknown version"
    if kind == "tensorrt-rtx":
        if version[:1] != (NEWEST_RTX_MAJOR,):
            raise ExportError(f"TensorRT-RTX {text} is installed, but 1.x is expected; {HOW_TO_INSTALL[kind]}.")
    elif version[:2] < OLDEST or version[0] > NEWEST_MAJOR:
        raise ExportError(f"TensorRT {text} is installed, but 10.3 to {NEWEST_MAJOR}.x is expected; {HOW_TO_INSTALL[kind]}.")
