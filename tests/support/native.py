"""The C++ runtime through its C interface, for comparison with the Python one: built once a test run, called with ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from jakiro_runtime import kernels
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.sampling import Sampling, TokenLogprob
from paths import ROOT

SOURCES = ROOT / "runtime" / "cpp"
ONNXRUNTIME = Path(onnxruntime.__file__).parent
REASONS = {1: "eos", 2: "length", 3: "context", 4: "cancelled", 5: "constraint"}
_DEPTHS = 16

c_size, c_int, c_long, c_double, c_text, c_void = (
    ctypes.c_size_t,
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_double,
    ctypes.c_char_p,
    ctypes.c_void_p,
)


def missing() -> str | None:
    """What this machine lacks to build the library; None where nothing is missing."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        return "cmake and a C++ compiler are needed"
    if not Path("/usr/include/nlohmann/json.hpp").exists():
        return "nlohmann-json is needed (Debian: apt install nlohmann-json3-dev)"
    return None


def build(folder: Path, *options: str) -> Path:
    """The library, compiled from the sources into a folder. Kernels are those that Python compiled on this machine."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    quick = ["-DJAKIRO_KERNELS=OFF", "-DJAKIRO_TESTS=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O0"]
    command = ["cmake", "-S", str(SOURCES), "-B", str(folder), *generator, *quick, *options]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(folder), "-j", "2"], check=True, capture_output=True)
    if (ours := kernels.library()) is not None:
        (folder / "jakiro").mkdir(exist_ok=True)
        for form in ("avx2", "avx512"):
            shutil.copy(ours, folder / "jakiro" / f"kernels-{form}.so")
    return folder / "libjakiro.so"


def mutated(built: Path, folder: Path, source: str, before: str, after: str) -> Path:
    """The library with one file of its sources changed; everything else is taken as `build` made it."""
    text = (SOURCES / "src" / source).read_text()
    assert text.count(before) == 1, f"{source} does not hold {before!r} once"
    changed, compiled, out = folder / Path(source).name, folder / "changed.o", folder / "libjakiro.so"
    changed.write_text(text.replace(before, after))
    includes = [f"-I{SOURCES / each}" for each in ("src", "include", "../jakiro_runtime/kernels")]
    options = ["-std=c++17", "-fPIC", "-ffp-contract=off", *includes]
    subprocess.run(["c++", *options, "-c", str(changed), "-o", str(compiled)], check=True)
    objects = map(str, (built / "CMakeFiles/jakiro_objects.dir").rglob("*.o"))
    others = [each for each in objects if not each.endswith(f"{source}.o")]
    subprocess.run(["c++", "-shared", *others, str(compiled), "-o", str(out), "-ldl"], check=True)
    return out


class Sized(ctypes.Structure):
    """A structure whose first field is its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(size=ctypes.sizeof(self), **values)


class EngineOptions(Sized):
    _fields_ = [("size", c_size), ("onnxruntime", c_text), ("threads", c_int)]


class EngineInfo(Sized):
    _fields_ = [
        ("size", c_size),
        ("name", c_text),
        ("variant", c_text),
        ("vocab_size", c_int),
        ("max_context", c_int),
        ("nodes", c_int),
        ("bitwise", c_int),
    ]


class SessionOptions(Sized):
    _fields_ = [("size", c_size), ("no_speculation", c_int), ("no_lookup", c_int), ("chunk", c_int), ("nodes", c_int)]


class Bias(ctypes.Structure):
    _fields_ = [("token", c_int), ("bias", c_double)]


HOOK = ctypes.CFUNCTYPE(None, ctypes.POINTER(c_int), c_size, ctypes.POINTER(c_double), c_size, c_void)


class GenerateOptions(Sized):
    _fields_ = [
        ("size", c_size),
        ("max_new_tokens", c_int),
        ("min_new_tokens", c_int),
        ("temperature", c_double),
        ("top_k", c_int),
        ("logprobs", c_int),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("seed", ctypes.c_uint64),
        ("logit_bias", ctypes.POINTER(Bias)),
        ("logit_bias_count", c_size),
        ("logits_hook", c_void),
        ("logits_hook_user", c_void),
        ("top_logprobs", c_int),
    ]


class Candidate(ctypes.Structure):
    _fields_ = [("token", c_int), ("logprob", c_double)]


class LogprobStruct(ctypes.Structure):
    _fields_ = [("token", c_int), ("logprob", c_double), ("top", ctypes.POINTER(Candidate)), ("top_count", c_size)]

    def value(self) -> TokenLogprob:
        return TokenLogprob(self.token, self.logprob, [(each.token, each.logprob) for each in self.top[: self.top_count]])


class ChunkStruct(Sized):
    _fields_ = [
        ("size", c_size),
        ("tokens", ctypes.POINTER(c_int)),
        ("token_count", c_size),
        ("finish_reason", c_int),
        ("logprobs", ctypes.POINTER(LogprobStruct)),
    ]


_COUNTS = ("prompt_tokens", "reused_tokens", "new_tokens", "rounds", "drafts", "verified", "from_ngrams")


class StatsStruct(Sized):
    _fields_ = [
        ("size", c_size),
        *(
            (name, c_long)
            for name in ("prompt_tokens", "reused_tokens", "new_tokens", "rounds", "drafts", "verified", "from_ngrams")
        ),
        ("accepted", c_long * _DEPTHS),
        *((name, c_double) for name in ("prefill", "draft", "target", "host")),
    ]


CHUNK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ChunkStruct), c_void)


class NativeError(Exception):
    """What a status says. code: as jakiro.h numbers them."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def generate_options(most: int, sampling: Sampling) -> GenerateOptions:
    """What the C interface takes for these settings; at most one processor, which becomes the hook."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "seed")
    options = GenerateOptions(max_new_tokens=most, **{name: getattr(sampling, name) for name in names})
    biases = (Bias * len(sampling.logit_bias))(*(Bias(*each) for each in sampling.logit_bias.items()))
    options.logit_bias, options.logit_bias_count = biases, len(biases)
    if sampling.logprobs is not None:
        options.logprobs, options.top_logprobs = 1, sampling.logprobs
    for processor in sampling.processors:

        def hook(tokens: Any, count: int, scores: Any, vocab: int, _: Any, rule: Any = processor) -> None:
            view = np.ctypeslib.as_array(scores, (vocab,))
            view[:] = rule(tokens[:count], view.copy())

        options.kept = HOOK(hook)  # ctypes keeps no reference of its own
        options.logits_hook = ctypes.cast(options.kept, c_void)
    return options


@dataclass
class Answer:
    """A whole answer, as `GenerationResult` has it; chunks: the tokens of each round."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    chunks: list[list[int]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    stats: StatsStruct = field(default_factory=StatsStruct)


def counts(stats: Stats | StatsStruct) -> dict[str, Any]:
    """The figures of an answer that no clock takes part in."""
    accepted = list(stats.accepted)
    while accepted and not accepted[-1]:
        accepted.pop()
    return {**{name: getattr(stats, name) for name in _COUNTS}, "accepted": accepted}


_GIVE_STATUS = (
    "engine_open",
    "engine_get_info",
    "session_create",
    "session_generate",
    "session_reset",
    "session_get_stats",
)


def same(python: Any, cpp: Answer) -> bool:
    """Whether two answers agree in tokens, end and counts."""
    found = (cpp.tokens, cpp.finish_reason, counts(cpp.stats))
    return found == (python.tokens, python.finish_reason, counts(python.stats))


class Library:
    """The shared library, its functions declared."""

    def __init__(self, path: Path) -> None:
        self.functions = functions = ctypes.CDLL(str(path))
        functions.jakiro_version.restype = c_text
        functions.jakiro_status_message.restype = c_text
        for name in (
            "engine_open",
            "engine_get_info",
            "session_create",
            "session_generate",
            "session_reset",
            "session_get_stats",
        ):
            getattr(functions, f"jakiro_{name}").restype = c_void

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that gives a status. Raises NativeError with what it says."""
        status = getattr(self.functions, f"jakiro_{name}")(*arguments)
        if status:
            pointer = c_void(status)
            error = NativeError(
                self.functions.jakiro_status_code(pointer), self.functions.jakiro_status_message(pointer).decode()
            )
            self.functions.jakiro_status_free(pointer)
            raise error

    def open(self, directory: Path, threads: int = 0, onnxruntime: Path | None = ONNXRUNTIME) -> NativeEngine:
        """An engine directory, opened."""
        given = EngineOptions(threads=threads, onnxruntime=os.fsencode(onnxruntime) if onnxruntime else None)
        engine = c_void()
        self.call("engine_open", os.fsencode(directory), ctypes.byref(given), ctypes.byref(engine))
        return NativeEngine(self, engine)


class NativeEngine:
    def __init__(self, library: Library, pointer: c_void) -> None:
        self.library, self.pointer = library, pointer

    def info(self) -> EngineInfo:
        found = EngineInfo()
        self.library.call("engine_get_info", self.pointer, ctypes.byref(found))
        return found

    def session(self, speculate: bool = True, lookup: bool = True, chunk: int = 0, nodes: int | None = None) -> NativeSession:
        """Options as `Engine.session` takes them."""
        options = SessionOptions(no_speculation=not speculate, no_lookup=not lookup, chunk=chunk, nodes=nodes or 0)
        session = c_void()
        self.library.call("session_create", self.pointer, ctypes.byref(options), ctypes.byref(session))
        return NativeSession(self, session)

    def __del__(self) -> None:
        self.library.functions.jakiro_engine_free(self.pointer)


class NativeSession:
    def __init__(self, engine: NativeEngine, pointer: c_void) -> None:
        self.library, self.pointer = engine.library, pointer
        self._engine: NativeEngine | None = engine

    def generate(
        self,
        prompt: Sequence[int],
        most: int = 40,
        on_chunk: Callable[[list[int]], bool] = lambda tokens: True,
        sampling: Sampling | None = None,
    ) -> Answer:
        """A whole answer. on_chunk: gets the tokens of each round; False stops."""
        answer = Answer()

        def receive(chunk: Any, _: Any) -> int:
            tokens = chunk.contents.tokens[: chunk.contents.token_count]
            answer.chunks.append(tokens)
            answer.tokens += tokens
            if chunk.contents.logprobs:
                answer.logprobs += [each.value() for each in chunk.contents.logprobs[: len(tokens)]]
            return 0 if on_chunk(tokens) else 1

        options, reason = generate_options(most, sampling or Sampling()), ctypes.c_int()
        self.library.call(
            "session_generate",
            self.pointer,
            (c_int * len(prompt))(*prompt),
            c_size(len(prompt)),
            ctypes.byref(options),
            CHUNK(receive),
            None,
            ctypes.byref(reason),
        )
        answer.finish_reason = REASONS[reason.value]
        answer.stats = self.stats()
        return answer

    def stats(self) -> StatsStruct:
        found = StatsStruct()
        self.library.call("session_get_stats", self.pointer, ctypes.byref(found))
        return found

    def cancel(self) -> None:
        self.library.functions.jakiro_session_cancel(self.pointer)

    def reset(self) -> None:
        self.library.call("session_reset", self.pointer)

    def forget_engine(self) -> None:
        """Close the engine that it came from, where nothing else holds it."""
        self._engine = None

    def __del__(self) -> None:
        self.library.functions.jakiro_session_free(self.pointer)
