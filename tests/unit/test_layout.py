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


def test_the_runtime_needs_numpy_tokenizers_and_one_backend() -> None:
    allowed = {*sys.stdlib_module_names, "jakiro_runtime", "numpy", "tokenizers", "jinja2"}
    optional = {"cli.py": {"click"}, "grammar.py": {"llguidance"}}
    for file in sorted(RUNTIME.glob("*.py")):
        assert imports(file) <= allowed | optional.get(file.name, set()), file
    for file in sorted((RUNTIME / "backend").glob("*.py")):
        backend = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}
        assert imports(file) <= allowed | backend, file
    peers = {"onnxruntime", "onnxruntime_genai", "openvino", "openvino_genai", "llama_cpp"}
    for file in sorted((RUNTIME / "bench").glob("*.py")):
        assert imports(file) <= allowed | peers | {"click", "rich"}, file


def test_nothing_else_in_the_runtime_knows_a_backend() -> None:
    for file in RUNTIME.glob("*.py"):
        assert not imports(file) & {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}, file


def test_importing_the_runtime_is_quick_and_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, jakiro_runtime; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'click', 'rich', 'jinja2', 'jakiro_export'}; "
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
