"""jakiro-run as a user meets it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jakiro_runtime import Engine

RUN = [sys.executable, "-m", "jakiro_runtime.cli"]


def jakiro_run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    stdin = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=60, **stdin)  # type: ignore[call-overload]


def test_an_answer_and_its_figures(tiny_engine: Path, engine: Engine) -> None:
    done = jakiro_run("-e", str(tiny_engine), "-p", "Hello", "-n", "20", "--stats", "json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stderr)
    assert figures["new_tokens"] <= 20
    assert {"tau", "rounds", "accepted_per_depth", "draft_ms", "target_ms", "host_ms", "host_share"} <= set(figures)
    ids = engine.chat_prompt([{"role": "user", "content": "Hello"}])
    assert done.stdout == "".join(event.text for event in engine.session().generate(ids, 20)) + "\n"
    plain = jakiro_run("-e", str(tiny_engine), "-p", "Hello", "-n", "20", "--no-speculation", "--stats", "none")
    assert (plain.stdout, plain.stderr) == (done.stdout, "")


def test_piped_input_and_seeds(tiny_engine: Path) -> None:
    base = ("-e", str(tiny_engine), "-n", "12", "--temperature", "1")
    one, two = (jakiro_run(*base, "--seed", "5", *more, text="What?\n") for more in ([], ["--no-speculation"]))
    other = jakiro_run(*base, "--seed", "6", text="What?\n")
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout != other.stdout
    assert re.search(r"tokens/s, tau", one.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("-p", ""), 2, "The prompt from --prompt is empty"),
        (("-p", "x" * 2000), 2, "this engine's context is 1024"),
        (("-p", "x", "--top-p", "3"), 2, "top_p is 3.0; expected above 0"),
        (("-p", "x", "--regex", "("), 2, "does not compile"),
        (("-p", "x", "--regex", "a", "--grammar", "b"), 2, "exactly one"),
        (("-p", "x", "--json-schema", "/nowhere.json"), 2, "nowhere.json"),
    ],
)
def test_a_wrong_call(tiny_engine: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = jakiro_run("-e", str(tiny_engine), *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_engine(tiny_engine: Path, tmp_path: Path) -> None:
    def broken(name: str, damage) -> subprocess.CompletedProcess[str]:
        copy = tmp_path / name
        shutil.copytree(tiny_engine, copy)
        damage(copy)
        return jakiro_run("-e", str(copy), "-p", "x", "--check-files")

    def newer(copy: Path) -> None:
        manifest = json.loads((copy / "engine.json").read_text())
        (copy / "engine.json").write_text(json.dumps({**manifest, "schema": 99}))

    def changed(copy: Path) -> None:
        with (copy / "target.onnx.data").open("r+b") as file:
            file.seek(100)
            file.write(b"\xff\xfe")

    cases = {
        "newer": (newer, 1, "schema 99"),
        "changed": (changed, 1, "target.onnx.data"),
        "missing": (lambda copy: (copy / "draft.onnx").unlink(), 1, "draft.onnx"),
        "empty": (lambda copy: (copy / "engine.json").unlink(), 2, "holds no engine.json"),
        "cut": (lambda copy: (copy / "engine.json").write_text('{"schema"'), 1, "cannot be read"),
    }
    for name, (damage, code, sentence) in cases.items():
        done = broken(name, damage)
        assert done.returncode == code, (name, done.stderr)
        assert sentence in done.stderr, name
        assert "Traceback" not in done.stderr
    done = jakiro_run("-e", str(tmp_path / "nowhere"), "-p", "x")
    assert (done.returncode, "There is no engine directory" in done.stderr) == (2, True)


def test_ctrl_c_stops_an_answer_and_twice_leaves(tiny_engine: Path) -> None:
    """A chat at a terminal: a question, Ctrl-C in its answer, another question, then Ctrl-C twice."""
    controller, terminal = pty.openpty()
    chat = subprocess.Popen(
        [*RUN, "-e", str(tiny_engine), "-n", "900", "--stats", "line"],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(controller, False)
    seen = ""

    def wait_for(pattern: str, start: int = 0) -> int:
        nonlocal seen
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            try:
                seen += os.read(controller, 1 << 16).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
            found = re.search(pattern, seen[start:])
            if found:
                return start + found.end()
        raise AssertionError(f"no {pattern!r} in {seen[start:]!r}")

    try:
        place = wait_for("> ")
        os.write(controller, b"Tell me\n")
        place = wait_for("Tell me\r\n.", place)
        chat.send_signal(signal.SIGINT)
        place = wait_for(r"\[(\d+) tokens", place)
        assert int(re.findall(r"\[(\d+) tokens", seen)[-1]) < 900
        place = wait_for("> ", place)
        os.write(controller, b"And now\n")
        place = wait_for("And now\r\n.", place)
        chat.send_signal(signal.SIGINT)
        place = wait_for("> ", wait_for(r"\[\d+ tokens", place))
        for _ in range(10):  # readline may print its prompt a moment before it listens
            time.sleep(0.5)
            chat.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                chat.wait(2)
                break
        assert chat.returncode == 130
    finally:
        chat.kill()
        chat.wait()
        os.close(controller)
