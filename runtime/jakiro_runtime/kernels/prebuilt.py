"""Prebuilt kernels: the libraries that a wheel for x86-64 carries, one for each set of instructions (`make wheels`)."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
LEAST = frozenset({"avx2", "fma", "f16c"})  # instructions without which there are no kernels
_FOLDER = SOURCES / "prebuilt"


class Form(NamedTuple):
    """Kernels for one set of instructions: what the compiler is told, and the CPU's flags as Linux names them."""

    options: list[str]
    needs: frozenset[str]


_V3 = LEAST | {"bmi2", "movbe", "abm"}
# the best first; simd.h, simd_int.h, int8.h and int4.h say what differs
FORMS = {
    "avx512": Form(
        ["-march=x86-64-v4", "-mavx512vnni"],
        _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"},
    ),
    "avx2": Form(["-march=x86-64-v3"], _V3),
}


def find(cpu: Collection[str]) -> Path | None:
    """The best library that this installation carries for a CPU with these flags; None where there is none."""
    for name, form in FORMS.items():
        library = _FOLDER / f"{name}.so"
        if form.needs <= set(cpu) and library.is_file():
            return library
    return None


def build(compiler: str, names: Collection[str] = tuple(FORMS)) -> None:
    """Compile these into the package's folder. Raises subprocess.CalledProcessError where the compiler fails."""
    _FOLDER.mkdir(exist_ok=True)
    sources = sorted(map(str, SOURCES.glob("*.cpp")))
    for name in names:
        form = FORMS[name]
        subprocess.run([compiler, *FLAGS, *form.options, "-s", *sources, "-o", str(_FOLDER / f"{name}.so")], check=True)
