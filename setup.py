"""The wheel's tag: for one platform where it carries compiled kernels (`make wheels`), for any where it does not."""

from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

PREBUILT = list(Path(__file__).parent.glob("runtime/jakiro_runtime/kernels/prebuilt/*.so"))


class WithLibraries(Distribution):
    def has_ext_modules(self) -> bool:
        return bool(PREBUILT)


class AnyPython(bdist_wheel):
    """The libraries know nothing of Python, so that one wheel is for every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=WithLibraries, cmdclass={"bdist_wheel": AnyPython})
