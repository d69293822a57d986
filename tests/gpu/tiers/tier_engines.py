"""Tiers 2 to 5: whole engines. 2: ONNX Runtime's CUDA; 3: TensorRT; 4: TensorRT-RTX; 5: an engine directory of your own.

Tiers 2 to 4 take a tiny engine with the CPU's answers to some prompts (`kit/tiny`, or what `make test-gpu` exports); they need
the runtime's packages (numpy, tokenizers, jinja2), the library that runs the engine and, to build, onnx; never torch.

    python3 tests/gpu/tiers/tier_engines.py --tier 3 [--json FILE]
    JAKIRO_ENGINE=out/llama2 python3 tests/gpu/tiers/tier_engines.py --tier 5
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import tier_harness as harness
from tier0_probe import fixture, reasons
from tier_harness import ROOT, Checklist, Skip

for folder in (ROOT, ROOT / "runtime", ROOT / "tests" / "support", ROOT / "tests" / "gpu"):
    sys.path.append(str(folder))
BACKENDS = {"2": "cuda", "3": "tensorrt", "4": "tensorrt-rtx", "5": "auto"}
TITLES = {"2": "ONNX Runtime on CUDA", "3": "TensorRT", "4": "TensorRT-RTX", "5": "an engine of your own"}


def build(directory: Path, *arguments: object) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "jakiro_export.cli.build", str(directory), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")


def check_tiny(checks: Checklist, tier: str, source: Path, sm: int) -> None:
    import checks as contract

    backend, directory = BACKENDS[tier], ROOT / "out" / "gpu" / f"tier{tier}"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)
    answers = contract.Answers.read(source / "answers.json")
    if backend != "cuda":
        with checks.check("the engines are built, and agree with ONNX Runtime where it is installed") as figures:
            compare = [] if tier == "4" or harness.has("onnxruntime") else ["--no-compare"]
            build(directory, "--chunk", 32, *(["--ahead-of-time", f"sm{sm}"] if tier == "4" else compare))
            entry = json.loads((directory / "engine.json").read_text())["tensorrt"][f"sm{sm}"]
            figures["builds"] = entry["builds"]
            figures["compared"] = len(entry["checks"])
    with checks.check("the same tokens as on the CPU, with speculation and without") as figures:
        figures["tokens"] = contract.tokens(directory, answers, backend)
    with checks.check("a seed draws the same tokens again") as figures:
        figures["seeds"] = contract.seeds(directory, backend, answers.prompts[1])
    if backend != "cuda":
        with checks.check("rounds are CUDA graphs") as figures:
            figures["recorded"] = contract.recorded(directory, backend, answers.prompts[1])
    with checks.check("speed") as figures:
        figures["speed"] = contract.speed(directory, backend, answers.prompts[1])


def check_own(checks: Checklist, directory: Path) -> None:
    import checks as contract
    from jakiro_runtime import Engine

    engine = Engine.open(directory)
    prompt = engine.encode("Explain to a child why bread rises.")
    checks.facts.update(backend=engine.bundle.backend, engine=str(directory))
    with checks.check("speed") as figures:
        figures["speed"] = contract.speed(directory, engine.bundle.backend, prompt)


def main() -> int:
    parser = harness.arguments()
    parser.add_argument("--tier", choices=BACKENDS, required=True)
    options = parser.parse_args()
    checks = Checklist(options.tier, TITLES[options.tier], options.json)
    why = reasons(True)[options.tier]
    if why:
        checks.skip(TITLES[options.tier], why)
        return checks.done()
    from jakiro_runtime.backends import gpu
    from jakiro_runtime.errors import EngineError

    try:
        device = gpu.find()
    except EngineError as error:
        checks.skip(TITLES[options.tier], str(error))
        return checks.done()
    checks.facts.update(gpu=device.name, sm=device.sm)
    if options.tier == "5":
        check_own(checks, Path(os.environ["JAKIRO_ENGINE"]))
    else:
        source = fixture()
        if source is None:
            raise Skip("there is no tiny engine")
        check_tiny(checks, options.tier, source, device.sm)
    return checks.done()


if __name__ == "__main__":
    sys.exit(main())
