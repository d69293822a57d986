"""The GPU of this machine, as the driver describes it."""

from __future__ import annotations

from dataclasses import dataclass

from jakiro_runtime.backends import cuda_driver
from jakiro_runtime.backends.cuda_driver import Driver


@dataclass(frozen=True)
class Device:
    """A GPU. sm: its compute capability as a number, such as 87; free, total: bytes; shared: it uses the host's memory."""

    name: str
    sm: int
    free: int
    total: int
    shared: bool


def find(library: str = cuda_driver.LIBRARY, hint: str = "run this on a machine that has an NVIDIA GPU") -> Device:
    """The first GPU that CUDA shows this process. `hint` ends the sentence where there is none.

    Raises:
        EngineError: there is no driver, or no GPU
    """
    driver = Driver(library, hint)
    try:
        free, total = driver.memory()
    finally:
        driver.release()
    sm = driver.attribute(cuda_driver.MAJOR) * 10 + driver.attribute(cuda_driver.MINOR)
    return Device(driver.name(), sm, free, total, bool(driver.attribute(cuda_driver.INTEGRATED)))
