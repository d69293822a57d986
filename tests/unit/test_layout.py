"""Who may import whom, and how light the runtime is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from paths import ROOT

RUNTIME = ROOT / "runtime" / "jakiro_runtime"


def imports(file: Path) -> set[str]:
    """The top-level packages a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


ALLOWED = {*sys.stdlib_module_names, "jakiro_runtime", "numpy", "tokenizers", "jinja2"}
OPTIONAL = {  # by folder or file below jakiro_runtime, the first that fits
    "cli.py": {"click"},
    "sampling/grammar": {"llguidance"},
    "backends": {"onnxruntime", "tensorrt", "tensorrt_rtx"},
}
BACKENDS = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}


def test_the_runtime_needs_numpy_tokenizers_and_one_backend() -> None:
    for file in sorted(RUNTIME.rglob("*.py")):
        name = file.relative_to(RUNTIME).as_posix()
        optional = next((packages for place, packages in OPTIONAL.items() if name.startswith(place)), set())
        assert imports(file) <= ALLOWED | optional, name


def test_nothing_else_in_the_runtime_knows_a_backend() -> None:
    for file in RUNTIME.rglob("*.py"):
        assert file.is_relative_to(RUNTIME / "backends") or not imports(file) & BACKENDS, file


def test_the_benchmark_needs_what_it_compares_with_and_no_exporter() -> None:
    peers = {"onnxruntime", "onnxruntime_genai", "openvino", "openvino_genai", "llama_cpp"}
    for file in sorted((ROOT / "runtime" / "jakiro_bench").rglob("*.py")):
        assert imports(file) <= ALLOWED | peers | {"jakiro_bench", "click", "rich"}, file


def test_the_server_needs_its_extra_and_no_exporter() -> None:
    extra = {"fastapi", "uvicorn", "starlette", "pydantic", "prometheus_client", "click"}
    for file in sorted((ROOT / "runtime" / "jakiro_serve").rglob("*.py")):
        assert imports(file) <= ALLOWED | extra | {"jakiro_serve"}, file


def test_no_import_is_for_type_checking_alone() -> None:
    for folder in ("runtime", "jakiro_export"):
        for file in (ROOT / folder).rglob("*.py"):
            assert "TYPE_CHECKING" not in file.read_text(), file


def test_importing_the_runtime_is_quick_and_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, jakiro_runtime; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'click', 'rich', 'jinja2', 'jakiro_export', "
        "'jakiro_serve', 'fastapi', 'pydantic', 'uvicorn'}; "
        "heavy &= set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_an_engine_pulls_in_no_torch(tiny_engine: Path) -> None:
    code = (
        "import sys; from jakiro_runtime import Engine; "
        f"engine = Engine.open({str(tiny_engine)!r}); "
        "print(sum(len(event.tokens) for event in engine.session().generate([5, 6, 7], 9))); "
        "heavy = {'torch', 'transformers', 'onnx', 'jakiro_export'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "9"
