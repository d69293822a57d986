"""The tiny engine and the calibration texts of its target."""

from __future__ import annotations

from pathlib import Path

import pytest

from jakiro_export.tree_search.texts import Text, calibration_texts
from jakiro_runtime import Engine


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Engine:
    return Engine.open(tiny_engine)


@pytest.fixture(scope="module")
def calibration(engine: Engine) -> list[Text]:
    return calibration_texts(engine, 8, 48)
