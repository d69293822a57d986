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
from jakiro_runtime.format.integrity import record

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
        (("-p", "x", "--json-schema", "/dev/zero"), 2, "no regular file"),
        (("-p", "x", "--repetition-penalty", "1e-320"), 2, "repetition_penalty is 1e-320"),
        (("-p", "x", "--temperature", "nan"), 2, "temperature is nan"),
        (("-p", "a\udcff"), 2, "not valid Unicode"),
        (("-p", "x", "--regex", "\udcff"), 2, "not valid Unicode"),
        (("-p", "x", "--threads", "1000000"), 2, "--threads"),
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


def test_special_tokens_of_a_prompt_are_a_choice(tiny_engine: Path, engine: Engine) -> None:
    def prompt_tokens(*options: str) -> int:
        done = jakiro_run("-e", str(tiny_engine), "-p", "a<|end|>b", "-n", "2", "--stats", "json", *options)
        return int(json.loads(done.stderr)["prompt_tokens"])

    messages = [{"role": "user", "content": "a<|end|>b"}]
    assert prompt_tokens() == len(engine.chat_prompt(messages)) == prompt_tokens("--parse-special") + 6
    assert engine.chat_prompt(messages).count(2) == 1
    assert engine.chat_prompt(messages, parse_special=True).count(2) == 2
    assert prompt_tokens("--raw") == 3 == prompt_tokens("--raw", "--no-parse-special") - 6


def test_a_generation_config_is_named_or_taken(tiny_engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(tiny_engine, copy)
    asked = {
        "eos_token_id": 2,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
    }
    (copy / "generation_config.json").write_text(json.dumps(asked))
    manifest = json.loads((copy / "engine.json").read_text())
    found = record(copy / "generation_config.json")
    manifest["files"]["generation_config.json"] = {"bytes": found.bytes, "sha256": found.sha256}
    (copy / "engine.json").write_text(json.dumps(manifest))
    base = ("-e", str(copy), "-p", "Hello", "-n", "12", "--stats", "none")
    greedy, taken = jakiro_run(*base), jakiro_run(*base, "--use-generation-config")
    for part in ("temperature 0.7", "top_k 5", "repetition_penalty 1.2", "no_repeat_ngram_size", "--use-generation-config"):
        assert part in greedy.stderr
    options = ("--temperature", "0.7", "--top-k", "5", "--repetition-penalty", "1.2")
    same = jakiro_run(*base, *options)
    assert (same.stdout, same.stderr) == (taken.stdout, "")
    assert greedy.stdout != taken.stdout
    assert "no_repeat_ngram_size" in taken.stderr
    warmer = jakiro_run(*base, "--use-generation-config", "--temperature", "1.5")  # an option goes before the file
    assert warmer.stdout == jakiro_run(*base, *options, "--temperature", "1.5").stdout


def test_rules_that_exclude_each_other_end_the_answer(tiny_engine: Path) -> None:
    done = jakiro_run("-e", str(tiny_engine), "-p", "yes or no?", "-n", "20", "--regex", "yes|no", "--min-new-tokens", "10")
    assert (done.returncode, done.stdout in ("yes\n", "no\n")) == (0, True)
    assert "allow no token next" in done.stderr


@pytest.mark.parametrize(
    ("redirection", "code", "sentence"),
    [
        (">&-", 2, "Standard output is closed"),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- 2>&-", 0, ""),
        ("> /dev/full", 1, "The disk is full"),
        ("| head -c 1", 0, ""),
    ],
)
def test_standard_streams_in_any_state(tiny_engine: Path, redirection: str, code: int, sentence: str) -> None:
    command = " ".join([*RUN, "-e", str(tiny_engine), "-p", "x", "-n", "40", "--stats", "none", redirection])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, errors="replace", timeout=60)
    assert (done.returncode, sentence in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONOPTIMIZE": "2"}], ids=str
)
def test_terminals_and_interpreters_of_other_kinds(tiny_engine: Path, variables: dict[str, str]) -> None:
    command = [*RUN, "-e", str(tiny_engine), "-p", "é漢", "-n", "60"]
    usual, other = (
        subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, **more})
        for more in ({"PYTHONIOENCODING": "utf-8"}, variables)
    )
    assert (other.returncode, b"Traceback" in other.stderr) == (0, False), other.stderr
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    assert other.stdout == usual.stdout.decode().encode(encoding, "replace")


def test_a_piped_prompt_that_is_no_text(tiny_engine: Path) -> None:
    command = [*RUN, "-e", str(tiny_engine), "-n", "4"]
    done = subprocess.run(
        command, input=b"a\xff", capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "utf-8"}
    )
    assert (done.returncode, b"not utf-8 text" in done.stderr) == (2, True)


def test_output_holds_the_answer_alone(tiny_engine: Path) -> None:
    """Whatever a library writes to the process's standard output goes to standard error."""
    program = (
        "import os, sys, jakiro_runtime.session as s; whole = s.Session.generate\n"
        "def loud(*args, **kw):\n    os.write(1, b'NOISE'); print('MORE'); yield from whole(*args, **kw)\n"
        "s.Session.generate = loud\nfrom jakiro_runtime.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "-e", str(tiny_engine), "-p", "Hello", "-n", "5", "--stats", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == jakiro_run("-e", str(tiny_engine), "-p", "Hello", "-n", "5").stdout
    assert "NOISE" in done.stderr
    assert "MORE" in done.stderr


@pytest.mark.parametrize(
    "failure", ["MemoryError()", "RuntimeError('bad\\nthing')", "OSError(5, 'Input/output error', 'x')", "ValueError('odd')"]
)
def test_a_failing_graph_gets_a_sentence(tiny_engine: Path, failure: str) -> None:
    program = (
        "import jakiro_runtime.backends.onnxruntime as o\n"
        f"def run(self):\n    raise {failure}\n"
        "o.OnnxRuntimeBinding.run = run\nfrom jakiro_runtime.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "-e", str(tiny_engine), "-p", "Hello", "-n", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cleans_up(number: int, code: int, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\nfrom jakiro_runtime.errors import cli_errors\n"
        "with cli_errors(False, 'Interrupted.'):\n"
        "    try:\n        print('ready', flush=True); time.sleep(50)\n"
        "    finally:\n        print('clean', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "clean\n", "Interrupted.\n")


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
