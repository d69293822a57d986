"""The TensorRT engines of an engine directory, as `engine.json` records them: which of them is for this machine's GPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from jakiro_runtime.backends import gpu
from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.manifest import Manifest

PACKAGES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
PRODUCTS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
INSTALL = {
    "tensorrt": "it comes with JetPack, or with: pip install tensorrt",
    "tensorrt-rtx": "install it with: pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
}


@dataclass(frozen=True)
class BuiltEngines:
    """A pair of engines. version: the library's that built them; graphs: files by graph; plugin, stripped: what they need.

    refits: for stripped engines, the models they were parsed from, by graph; their weights are the ONNX files' own
    """

    sm: int
    runtime: str
    version: str
    graphs: dict[str, str]
    context: int | None
    plugin: bool
    stripped: bool
    refits: dict[str, str]

    def files(self, manifest: Manifest) -> list[str]:
        """What is needed to load them."""
        onnx = tuple(manifest.graphs.values()) if self.stripped else ()
        return [
            *self.graphs.values(),
            *self.refits.values(),
            *(file for file in manifest.files if onnx and file.startswith(onnx)),
        ]


def read(manifest: Manifest) -> dict[int, BuiltEngines]:
    """What was built, by GPU (a compute capability as a number, such as 87). Raises EngineError for a damaged record."""
    found = {}
    try:
        for name, entry in manifest.extra.get("tensorrt", {}).items():
            sm = int(name.removeprefix("sm"))
            found[sm] = BuiltEngines(
                sm, entry["runtime"], entry["version"], dict(entry["graphs"]), entry.get("limits", {}).get("context"),
                entry["dispatch"] == "plugin", entry["weights"] == "stripped", dict(entry.get("refits", {})),
            )  # fmt: skip
            for file in (found[sm].graphs[graph] for graph in ("target", "draft")):
                manifest.files[file]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EngineError(f"engine.json does not say what jakiro-build wrote ({error}); run jakiro-build again.") from error
    return found


def for_this_gpu(manifest: Manifest) -> BuiltEngines | None:
    """The engines that were built for this machine's GPU; None where there are none, or no GPU."""
    if not manifest.extra.get("tensorrt"):
        return None
    try:
        return read(manifest).get(gpu.find().sm)
    except EngineError:
        return None


def is_available(runtime: str) -> bool:
    """Whether a library is installed for this Python, by its backend's name."""
    return any(map(find_spec, PACKAGES.get(runtime, ())))


def find_engine(manifest: Manifest, runtime: str) -> BuiltEngines:
    """The engines that `runtime` runs on this machine's GPU.

    Raises:
        EngineError: there are none, or there is no GPU
    """
    found, product = read(manifest), PRODUCTS[runtime]
    how = "jakiro-build DIR" + (" --ahead-of-time sm86 (or your GPU's)" if runtime == "tensorrt-rtx" else " on this machine")
    if runtime not in {entry.runtime for entry in found.values()}:
        raise EngineError(f"This engine directory has no engines for {product}; make them with {how}.")
    device = gpu.find()
    mine = found.get(device.sm)
    if mine is None or mine.runtime != runtime:
        others = ", ".join(f"sm{sm}" for sm, entry in sorted(found.items()) if entry.runtime == runtime)
        raise EngineError(
            f"This machine's GPU is {device.name}, sm{device.sm}, and the engines for {product} are for {others}; make others "
            f"with {how}."
        )
    return mine


def import_library(runtime: str) -> Any:
    """Import TensorRT or TensorRT-RTX. Raises EngineError where it is not installed or does not load."""
    from importlib import import_module

    for name in PACKAGES[runtime]:
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise EngineError(f"The Python package {name} is incomplete: {error}; {INSTALL[runtime]}.") from error
            continue
        except (ImportError, OSError) as error:
            raise EngineError(f"The Python package {name} does not load here: {error}.") from error
        if hasattr(module, "__version__"):  # else a folder of that name on the path, such as an engine directory's own
            return module
    raise EngineError(f"{PRODUCTS[runtime]} is not installed for this Python; {INSTALL[runtime]}.")
