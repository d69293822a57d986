"""The C interface: wrong calls, damaged engines and other threads end in a sentence."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import native

USAGE, CONTEXT, ENGINE = 1, 2, 3
Copy = Callable[[Path], Path]


def failure(call: Callable[[], object]) -> native.NativeError:
    with pytest.raises(native.NativeError) as caught:
        call()
    return caught.value


def test_what_an_engine_says_of_itself(native_engine: native.NativeEngine) -> None:
    info = native_engine.info()
    assert (info.variant, info.vocab_size, info.max_context, info.nodes, info.bitwise) == (b"jakiro", 320, 1024, 12, 1)
    assert native_engine.library.functions.jakiro_version() == b"0.1.0"


@pytest.mark.parametrize(
    ("prompt", "code", "words"),
    [
        ([], USAGE, "The prompt is empty"),
        ([5, 320], USAGE, "outside 0..319"),
        ([-1], USAGE, "outside 0..319"),
        ([5] * 1024, CONTEXT, "this engine's context is 1024"),
    ],
)
def test_unusable_prompts(native_engine: native.NativeEngine, prompt: list[int], code: int, words: str) -> None:
    session = native_engine.session()
    error = failure(lambda: session.generate(prompt))
    assert error.code == code
    assert words in str(error)
    assert len(session.generate([5, 6, 7], 5).tokens) == 5


def test_unusable_options(library: native.Library, native_engine: native.NativeEngine, tiny_engine: Path) -> None:
    assert "chunk is 1; 2 or more" in str(failure(lambda: native_engine.session(chunk=1)))
    assert "nodes is -3" in str(failure(lambda: native_engine.session(nodes=-3)))
    assert "threads is -1" in str(failure(lambda: library.open(tiny_engine, threads=-1)))
    assert "max_new_tokens is -1" in str(failure(lambda: native_engine.session().generate([5], -1)))


def test_null_where_nothing_may_be_missing(library: native.Library, tiny_engine: Path) -> None:
    engine = ctypes.c_void_p()
    assert "directory is NULL" in str(failure(lambda: library.call("engine_open", None, None, ctypes.byref(engine))))
    assert "engine is NULL" in str(failure(lambda: library.call("engine_open", bytes(tiny_engine), None, None)))
    assert "session is NULL" in str(failure(lambda: library.call("session_reset", None)))
    for name in ("engine_free", "session_free", "status_free", "session_cancel"):
        getattr(library.functions, f"jakiro_{name}")(None)


def test_structures_of_other_versions(native_engine: native.NativeEngine) -> None:
    library = native_engine.library

    def session(size: int, **values: Any) -> None:
        class Newer(native.SessionOptions):
            _fields_ = (("later", ctypes.c_int64),)

        options, made = Newer(**values), ctypes.c_void_p()
        options.size = size
        library.call("session_create", native_engine.pointer, ctypes.byref(options), ctypes.byref(made))
        library.functions.jakiro_session_free(made)

    known = ctypes.sizeof(native.SessionOptions)
    session(8)  # an older caller, which has no field at all
    session(known + 8)  # a newer one that leaves its field at the default
    assert "does not know" in str(failure(lambda: session(known + 8, later=1)))
    assert "size is 0; sizeof(jakiro_session_options)" in str(failure(lambda: session(0)))


def test_onnxruntime_that_is_not_there(library: native.Library, tiny_engine: Path, tmp_path: Path) -> None:
    error = failure(lambda: library.open(tiny_engine, onnxruntime=tmp_path))
    assert error.code == ENGINE
    assert "no libonnxruntime.so in" in str(error)
    assert "ONNXRUNTIME_ROOT" in str(failure(lambda: library.open(tiny_engine, onnxruntime=tmp_path / "none.so")))


def test_a_call_in_the_middle_of_another_is_refused(native_engine: native.NativeEngine) -> None:
    session, inner = native_engine.session(), []

    def again(tokens: list[int]) -> bool:
        inner.append(failure(lambda: session.generate([5])))
        inner.append(failure(session.reset))
        return False

    session.generate([5, 6], 9, again)
    assert [each.code for each in inner] == [USAGE, USAGE]
    assert "in the middle of another call" in str(inner[0])


def test_another_thread_cancels(native_engine: native.NativeEngine) -> None:
    session, began = native_engine.session(), threading.Event()

    def cancel() -> None:
        began.wait()
        session.cancel()

    def first(tokens: list[int]) -> bool:
        began.set()
        other.join()  # the answer sees the cancellation before its next round
        return True

    other = threading.Thread(target=cancel)
    other.start()
    answer = session.generate([5, 6, 7], 500, first)
    assert answer.finish_reason == "cancelled"
    assert len(answer.chunks) == 1
    assert session.generate([5, 6, 7], 9).finish_reason == "length"


def test_threads_share_an_engine(native_engine: native.NativeEngine) -> None:
    expected = native_engine.session().generate([5, 6, 7], 30).tokens
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(native_engine.session().generate([5, 6, 7], 30).tokens)) for _ in range(3)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [expected] * 3


def test_a_session_outlives_its_engine(library: native.Library, tiny_engine: Path) -> None:
    session = library.open(tiny_engine).session()
    session.forget_engine()
    assert len(session.generate([5, 6, 7], 5).tokens) == 5


def test_directories_that_hold_no_engine(library: native.Library, tmp_path: Path) -> None:
    assert "There is no engine directory at" in str(failure(lambda: library.open(tmp_path / "none")))
    error = failure(lambda: library.open(tmp_path))
    assert error.code == USAGE
    assert "holds no engine.json" in str(error)


def change(manifest: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for each in parents:
        manifest = manifest[each]
    if value is None:
        del manifest[last]
    else:
        manifest[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema", 2, "has schema 2, but this version reads schema 1; update the jakiro runtime"),
        ("schema", "one", "has no schema number"),
        ("model/vocab_size", 0, "the field model.vocab_size is 0; 1 to 16777216 was expected"),
        ("model/vocab_size", 1e3, "the field model.vocab_size is 1000.0; a whole number"),
        ("model/num_layers", 1 << 60, "the field model.num_layers"),
        ("model/num_layers", -(1 << 70), "the field model.num_layers"),
        ("model/head_dim", True, "the field model.head_dim is true; a whole number"),
        ("model/eos_token_ids", [320], "outside the vocabulary of 320"),
        ("model/eos_token_ids", [5, "x"], 'the field model.eos_token_ids[1] is "x"'),
        ("draft", [], "the field draft is []; an object was expected"),
        ("draft/nodes", 1 << 20, "the field draft.nodes is 1048576; 1 to 16384"),
        ("draft/nodes", 13, "The draft graph of"),
        ("model/num_kv_heads", 3, "The target graph of"),
        ("model/hidden_size", None, "the field model.hidden_size is missing"),
        ("equality", "nearly", "bitwise or numerical was expected"),
        ("graphs/target", "../target.onnx", "lies outside the directory"),
        ("graphs/target", "/etc/passwd", "lies outside the directory"),
        ("graphs/target", "a/../../x", "lies outside the directory"),
        ("graphs/target", "", "lies outside the directory"),
        ("graphs/draft", "tokenizer.jsonx", "names the graph tokenizer.jsonx but does not list it"),
        ("graphs/draft", "tokenizer.json", "refuses"),
        ("tree", {}, "the field tree.rows is missing"),
        ("files/target.onnx/bytes", 7, "bytes, but 7 were exported"),
    ],
)
def test_damaged_manifests(
    library: native.Library, tiny_engine: Path, copied_engine: Copy, path: str, value: Any, words: str
) -> None:
    folder = copied_engine(tiny_engine)
    manifest = json.loads((folder / "engine.json").read_text())
    change(manifest, path, value)
    (folder / "engine.json").write_text(json.dumps(manifest))
    error = failure(lambda: library.open(folder))
    assert error.code == ENGINE
    assert words in str(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 100_000, '{"schema": 1}', "\x00", '{"schema": 1, "model": "\ud800"}']
)
def test_files_that_are_no_manifest(library: native.Library, tiny_engine: Path, copied_engine: Copy, text: str) -> None:
    folder = copied_engine(tiny_engine)
    (folder / "engine.json").write_text(text, errors="surrogatepass")
    assert failure(lambda: library.open(folder)).code == ENGINE


def test_graphs_that_are_cut_or_pipes(library: native.Library, tiny_engine: Path, copied_engine: Copy) -> None:
    folder = copied_engine(tiny_engine)
    graph = folder / "draft.onnx"
    graph.unlink()
    assert "has no file draft.onnx" in str(failure(lambda: library.open(folder)))
    os.mkfifo(graph)
    assert "is no regular file" in str(failure(lambda: library.open(folder)))
