"""`make test-gpu-kit`: one archive that runs the GPU contract on a device without network: python3 run.py

In it: the tiers, the runtime and the exporter's sources, a tiny engine in half precision with the CPU's answers, the plugins'
sources and, where nvcc is here, libjakiro_plugins.so for every GPU it knows. `--tiny` makes the tiny engine alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "tests" / "support", ROOT / "tests" / "gpu", ROOT / "tests" / "gpu" / "tiers"):
    sys.path.append(str(folder))
KEPT = ("tests/gpu", "tests/support", "runtime", "jakiro_export", "plugins", "LICENSE")
LEFT_OUT = {"__pycache__", ".pytest_cache", "shim"}


def make_tiny(out: Path) -> None:
    """A tiny engine and the CPU's answers; needs torch and onnxruntime. Raises ImportError without them."""
    import tiny
    from checks import Answers
    from jakiro_runtime import Engine

    with tempfile.TemporaryDirectory() as work:
        target, head = tiny.make_target(Path(work) / "target"), tiny.make_head(Path(work) / "head")
        tiny.make_engine(out, target, head, precision="fp16")
    reference = Engine.open(out, "onnxruntime", threads=1)
    texts = ["Hello", "Explain to a child why bread rises.", "Count to ten. " * 12, "The quick brown fox jumps. " * 8]
    prompts = [reference.encode(text)[:240] or [5] for text in texts]
    Answers.of(reference, [*prompts[:3], (prompts[3] * 40)[:240]]).write(out / "answers.json")


def make_libraries(out: Path) -> list[str]:
    """The plugin library for every GPU that this machine's nvcc builds for, one file; its GPUs. Nothing without nvcc."""
    from tier_harness import nvcc

    compiler = nvcc()
    if compiler is None:
        return []
    known = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    wanted = [sm for sm in ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120") if sm in known]
    codes = [f"-gencode=arch={sm.replace('sm', 'compute')},code={sm}" for sm in wanted]
    sources = sorted(map(str, (ROOT / "plugins" / "kernels").glob("*.cu")))
    flags = ["-O3", "-std=c++17", "-shared", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "0"]
    out.mkdir(parents=True, exist_ok=True)
    command = [compiler, *flags, *codes, f"-I{ROOT / 'plugins' / 'include'}", *sources, "-o", str(out / "libjakiro_plugins.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return wanted


def make_kit(archive: Path, libraries: bool) -> None:
    """The archive; its only folder is jakiro-gpu-kit."""
    with tempfile.TemporaryDirectory() as work:
        top = Path(work) / "jakiro-gpu-kit"
        for name in KEPT:
            source, to = ROOT / name, top / name
            if source.is_dir():
                shutil.copytree(source, to, ignore=lambda _, names: [each for each in names if each in LEFT_OUT])
            else:
                shutil.copyfile(source, to)
        shutil.copyfile(ROOT / "tests" / "gpu" / "run.py", top / "run.py")
        made = make_libraries(top / "kit") if libraries else []
        try:
            make_tiny(top / "kit" / "tiny")
        except ImportError as error:
            print(f"Without a tiny engine, so tiers 2 to 4 are skipped: {error.name} is not installed here.", file=sys.stderr)
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as file:
            file.add(top, top.name)
    print(f"Wrote {archive}, {archive.stat().st_size / 1e6:.1f} MB; kernels for {', '.join(made) or 'no GPU (no nvcc here)'}.")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "jakiro-gpu-kit.tar.gz")
    parser.add_argument("--no-libraries", action="store_true", help="leave the compiled kernels out")
    options = parser.parse_args()
    if options.tiny is not None:
        make_tiny(options.tiny)
    else:
        make_kit(options.out, not options.no_libraries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
