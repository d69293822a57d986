"""One process at a time, and failures as sentences."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from jakiro_export.training.console import in_work


def test_a_full_disk_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, in_work(tmp_path / "work"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert left.value.code == 1
    assert "The disk is full; once there is room, the same command goes on" in capsys.readouterr().err
