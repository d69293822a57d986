"""jakiro-build on the fake GPU: everything but the build itself, which writes what the fake TensorRT takes for an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jakiro_export.cli.build import main as build
from jakiro_export.tensorrt import building


def plan_instead_of_building(step: building.Step, folder: Path) -> dict[str, Any]:
    """What the fake TensorRT takes for an engine."""
    request = building.request(step, step.graph.path, folder)
    Path(request.output).write_text(json.dumps({"onnx": request.source, "profiles": request.profiles}))
    return {"engine_bytes": Path(request.output).stat().st_size, "peak_bytes": 0, "seconds": 0.0, "layers": 1}


def built_for(engine: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Path:
    """Run jakiro-build on an engine directory, with plans in the place of engines."""
    monkeypatch.setattr(building, "run", plan_instead_of_building)
    result = CliRunner().invoke(build, [str(engine), "--no-compare", "--chunk", "32", *arguments])
    assert result.exit_code == 0, result.output
    return engine
