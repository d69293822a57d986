"""What is held against a GPU, as plain functions: tests/gpu runs them there, tests/backends on a GPU made of host memory.

Each returns figures for the report and raises AssertionError where the contract is broken.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import plugin_calls
import plugin_library
from jakiro_runtime import Engine, Sampling
from jakiro_runtime.backends.cuda_memory import CudaMemory

# Where two backends disagree about the best token, the reference must have held the two this close, in log-probability.
NEAR_TIE = 0.1


def answer(engine: Engine, prompt: Sequence[int], most: int, speculate: bool, sampling: Sampling | None = None) -> Any:
    """(tokens, log-probabilities, statistics) of an answer."""
    session = engine.session(speculate=speculate, chunk=32)
    events = list(session.generate(prompt, most, sampling))
    tokens = [token for event in events for token in event.tokens]
    return tokens, [entry for event in events for entry in event.logprobs or []], session.stats


def agree(reference: Engine, prompt: Sequence[int], found: Sequence[int]) -> int | None:
    """Hold greedy tokens against the reference's; the place of a near tie at which they part, None where they do not.

    Raises:
        AssertionError: they part where the reference was sure
    """
    tokens, logprobs, _ = answer(reference, prompt, len(found), False, Sampling(logprobs=2))
    for place, (wanted, got) in enumerate(zip(tokens, found, strict=False)):
        if wanted != got:
            (first, best), (second, other) = logprobs[place].top
            tied = got in (first, second) and best - other <= NEAR_TIE
            assert tied, f"token {place} is {got} where {wanted} was expected, and that is no near tie: {logprobs[place]}"
            return place
    assert len(tokens) == len(found)
    return None


def tokens(
    directory: Path, reference: Engine, backend: str, prompts: Sequence[Sequence[int]], most: int = 48, plugin: Path | None = None
) -> dict[str, Any]:
    """The same answers as ONNX Runtime on the CPU, with speculation and without, but for near ties."""
    engine = Engine.open(directory, backend, plugin=plugin)
    parted, same = [], 0
    rounds = gained = 0
    for prompt in prompts:
        plain, _, _ = answer(engine, prompt, most, False)
        speculative, _, stats = answer(engine, prompt, most, True)
        parted += [place for found in (plain, speculative) if (place := agree(reference, prompt, found)) is not None]
        same += plain == speculative
        rounds, gained = rounds + stats.rounds, gained + stats.new_tokens - 1
    return {"answers": len(prompts), "plain equals speculative": same, "near ties": len(parted), "tau": gained / max(1, rounds)}


def seeds(directory: Path, backend: str, prompt: Sequence[int], most: int = 32) -> dict[str, Any]:
    """A seed gives the same tokens again, and mostly the same with speculation."""
    engine, how = Engine.open(directory, backend), Sampling(temperature=0.8, top_p=0.95, seed=11)
    first, again, plain = (answer(engine, prompt, most, speculate, how)[0] for speculate in (True, True, False))
    assert first == again, "a seed drew other tokens the second time"
    common = next((n for n, (a, b) in enumerate(zip(first, plain, strict=False)) if a != b), len(first))
    return {"tokens": len(first), "equal to plain decoding up to": common}


def recorded(directory: Path, backend: str, prompt: Sequence[int]) -> dict[str, Any]:
    """Rounds run as CUDA graphs."""
    session = Engine.open(directory, backend).session(chunk=32)
    for _ in session.generate(prompt, 16):
        pass
    decoder = session._decoder
    assert decoder.proposer.draft is not None
    found = {}
    for name, call in (("target", decoder.target), ("draft", decoder.proposer.draft)):
        found[name] = [shaped._binding._recording is not None for shaped in call._bound.values()]  # type: ignore[attr-defined]
        assert any(found[name]), f"no call of the {name} was recorded"
    return {name: f"{sum(flags)} of {len(flags)} shapes" for name, flags in found.items()}


def speed(directory: Path, backend: str, prompt: Sequence[int], most: int = 128, plugin: Path | None = None) -> dict[str, Any]:
    """Tokens a second behind the prompt, the second of two answers; and where the time goes, in ms a round."""
    engine, figures = Engine.open(directory, backend, plugin=plugin), dict[str, Any]()
    for name, speculate in (("plain", False), ("speculative", True)):
        for _ in range(2):
            _, _, stats = answer(engine, prompt, most, speculate)
        spent, rounds = stats.draft + stats.target + stats.host, max(1, stats.rounds)
        figures[f"{name} tokens/s"] = round((stats.new_tokens - 1) / spent, 1)
        figures[f"{name} ms a round"] = {
            part: round(1e3 * getattr(stats, part) / rounds, 3) for part in ("draft", "target", "host")
        }
        figures[f"{name} ms to the first token"] = round(1e3 * stats.first_token, 1)
    return figures


def dispatch(memory: CudaMemory, library: Any, problem: plugin_library.Problem, repeats: int = 0) -> dict[str, Any]:
    """ExpertDispatch by the library's kernels, against the operator in double precision; timed where `repeats` says so."""
    rows, hidden = problem.x.shape
    experts, inner = problem.down.shape[0], problem.down.shape[2]
    kind = plugin_library.TYPES[problem.type]
    library.jakiro_expert_dispatch_workspace.restype = ctypes.c_size_t
    library.jakiro_expert_dispatch_workspace.argtypes = [ctypes.c_int] + [ctypes.c_int64] * 3 + [ctypes.c_int32]
    size = library.jakiro_expert_dispatch_workspace(kind, rows, hidden, inner, experts)
    bits = np.dtype(f"u{problem.x.dtype.itemsize}")  # bfloat16 has no NumPy type; bytes are bytes
    arrays = [memory.upload(getattr(problem, name).view(bits)) for name in ("x", "router_logits", "gate_up", "down")]
    outputs = [memory.zeros((rows, hidden), bits) for _ in range(2)]
    workspace = memory.zeros((size,), np.dtype(np.uint8))
    addresses = [array.address for array in (*arrays, *outputs, workspace)]
    call = plugin_calls.Dispatch(kind, rows, hidden, inner, experts, problem.top_k, int(problem.contrast), *addresses)

    def launch() -> None:
        assert library.jakiro_expert_dispatch(ctypes.byref(call), ctypes.c_void_p(memory.stream)) == 0

    launch()
    expected, tolerances = problem.expected()
    for name, output, wanted, tolerance in zip(("primary", "contrast"), outputs, expected, tolerances, strict=True):
        error = np.abs(output.copy().view(plugin_library.DTYPES[problem.type]).astype(np.float64) - wanted)
        assert (error <= tolerance).all(), f"{name}: off by {error.max():.3g}"
    if not repeats:
        return {}
    memory.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        launch()
    memory.synchronize()
    seconds = (time.perf_counter() - started) / repeats
    weights = problem.gate_up.nbytes + problem.down.nbytes
    return {
        "us": round(1e6 * seconds, 1),
        "weights MB": round(weights / 1e6, 1),
        "weights GB/s": round(weights / 1e9 / seconds, 1),
    }
