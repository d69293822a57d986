"""The TensorRT backend on a GPU made of host memory: the tokens of ONNX Runtime, and what crosses between host and device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

import fake_tensorrt
import tiny
from answers import plain, run
from fake_building import built_for
from fake_cuda import FakeCuda, Traffic
from jakiro_export.tensorrt import accuracy, graphs
from jakiro_export.tensorrt.profiles import Limits, profiles
from jakiro_runtime import Engine, EngineError, Sampling, UsageError
from jakiro_runtime.backends import cuda_memory
from jakiro_runtime.backends.tensorrt import EngineLoader, TensorRTGraph
from jakiro_runtime.format.integrity import record
from jakiro_runtime.format.manifest import Manifest
from oracle import with_oracle

PROMPTS = [np.random.default_rng(n).integers(3, tiny.VOCAB, n).tolist() for n in (1, 2, 31, 33, 250)]


@pytest.fixture
def engine(directory: Path) -> Engine:
    return Engine.open(directory, "tensorrt")


def oracles(engine: Engine, reference: Engine, prompts: list[list[int]]) -> Engine:
    """The engine with a draft that is often right, so that whole paths are accepted."""
    return with_oracle(engine, [[*prompt, *plain(reference, prompt).tokens] for prompt in prompts])


def test_the_same_tokens_as_onnx_runtime(engine: Engine, reference: Engine) -> None:
    for prompt in PROMPTS:
        expected = run(reference.session(chunk=32), prompt)
        found = run(engine.session(chunk=32), prompt)
        assert found.tokens == expected.tokens
        assert found.stats.accepted == expected.stats.accepted, "the same trees too"
        assert run(engine.session(chunk=32, speculate=False), prompt).tokens == expected.tokens


@pytest.mark.parametrize("kernel", [False, True])
def test_accepted_paths_are_committed(
    directory: Path, reference: Engine, kernel: bool, request: pytest.FixtureRequest, cuda: FakeCuda
) -> None:
    """By strided copies, and by the plugin library's kernel."""
    library = request.getfixturevalue("plugin") if kernel else None
    engine = oracles(Engine.open(directory, "tensorrt", plugin=library), reference, PROMPTS)
    for prompt in PROMPTS:
        session = engine.session(chunk=32)
        before = cuda.traffic.on_the_device
        result = run(session, prompt)
        assert result.tokens == plain(reference, prompt).tokens
        assert sum(result.stats.accepted) > 10
        assert (cuda.traffic.on_the_device - before < 20) == kernel


def test_a_conversation_goes_on(engine: Engine, reference: Engine, tmp_path: Path) -> None:
    """Second turns, a saved session, and one that grows past the first capacity."""
    ours, theirs = engine.session(chunk=32), reference.session(chunk=32)
    talk = list(PROMPTS[3])
    for number in range(3):
        found, expected = run(ours, talk), run(theirs, talk)
        assert found.tokens == expected.tokens
        assert found.stats.reused_tokens == expected.stats.reused_tokens
        talk += [*found.tokens, *PROMPTS[2], *PROMPTS[2], number + 5]
    assert len(talk) > 256
    ours.save(tmp_path / "talk.npz")
    restored = engine.restore(tmp_path / "talk.npz", chunk=32)
    assert run(restored, talk).tokens == run(theirs, talk).tokens


def test_a_batch(directory: Path, reference: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.open(built_for(directory, monkeypatch, "--batch", "4"), "tensorrt")
    prompts = [PROMPTS[3], PROMPTS[1], PROMPTS[2]]
    answers = [plain(reference, prompt, 30).tokens for prompt in prompts]
    ended = next(n for n, token in enumerate(answers[1]) if n > 3 and token not in answers[0] + answers[2])
    batch = oracles(engine, reference, prompts)
    batch.bundle = batch.bundle.replace(
        eos_token_ids=frozenset([answers[1][ended]])
    )  # the second leaves the batch before the others
    found = batch.generate(prompts, max_new_tokens=30, chunk=32)
    assert [result.tokens for result in found] == [answers[0], answers[1][: ended + 1], answers[2]]


def test_a_seed_draws_the_same_tokens(engine: Engine, reference: Engine, cuda: FakeCuda) -> None:
    how = Sampling(temperature=1.0, top_p=0.9, seed=7)
    expected = run(reference.session(), PROMPTS[2], sampling=how)
    session = engine.session(chunk=32)
    found = run(session, PROMPTS[2], sampling=how)
    assert found.tokens == expected.tokens != plain(reference, PROMPTS[2]).tokens


# What crosses between host and device, in bytes.


def rounds(engine: Engine, cuda: FakeCuda, **options: object) -> Traffic:
    """The traffic of an answer's rounds when everything is warm; not the first one, which drafts behind the whole prompt."""
    session = engine.session(chunk=32, lookup=False)  # a guess wants the head's scores to compare with: one read more
    run(session, PROMPTS[2], 24, **options)
    session.reset()
    events = session.generate(PROMPTS[2], 24, **options)  # type: ignore[arg-type]
    next(events), next(events)
    cuda.synchronize(0)
    cuda.traffic, mallocs = Traffic(), cuda.mallocs
    for _ in events:
        pass
    assert cuda.mallocs == mallocs, "nothing is allocated in a round"
    cuda.traffic.rounds = session.stats.rounds - 1  # type: ignore[attr-defined]
    return cuda.traffic


@pytest.mark.parametrize("kernel", [False, True])
def test_greedy_rounds_move_whole_numbers_only(
    directory: Path, cuda: FakeCuda, kernel: bool, request: pytest.FixtureRequest
) -> None:
    engine = Engine.open(directory, "tensorrt", plugin=request.getfixturevalue("plugin") if kernel else None)
    nodes, few = engine.manifest.draft.nodes, engine.manifest.draft.levels + 1
    rows, word = nodes + 1, 8
    target_up = [word * rows, word * rows, rows * rows, word, word * rows]  # ids, positions, mask, past length, rows
    draft_up = [word * few, word * few, word, word]  # ids, positions, last row, past length
    target_down, draft_down = [word * rows], [word * nodes, word * nodes]  # choices; the tree's tokens and parents
    traffic = rounds(engine, cuda)
    count = traffic.rounds  # type: ignore[attr-defined]
    assert count > 10
    sizes = [size for size, _ in traffic.down]
    assert sorted(sizes) == sorted((target_down + draft_down) * count)
    moved = sum(size for size, _ in traffic.up) / count
    committed = moved - sum(target_up + draft_up)
    if kernel:  # the row numbers of four appends: at most [rows + 2] each
        assert 0 < committed <= 4 * word * (few + 2)
    else:
        assert committed == 0
    assert traffic.launches == 2 * count, "one CUDA graph for the draft and one for the target"


def test_logits_are_read_for_visited_rows_alone(engine: Engine, cuda: FakeCuda) -> None:
    traffic = rounds(engine, cuda, sampling=Sampling(temperature=1.0, seed=3))
    row = engine.manifest.model.vocab_size * 4
    read = sum(size == row for size, _ in traffic.down)
    assert 0 < read < 24 + 5
    assert not any(size > row for size, _ in traffic.down)


def test_a_pruned_tree_reads_its_scores(directory: Path, reference: Engine, cuda: FakeCuda) -> None:
    engine = Engine.open(directory, "tensorrt")
    expected = run(reference.session(nodes=5, chunk=32), PROMPTS[2])
    assert run(engine.session(nodes=5, chunk=32), PROMPTS[2]).tokens == expected.tokens
    scores = engine.manifest.draft.nodes * 4
    assert scores in [size for size, _ in cuda.traffic.down]


def test_a_context_for_each_shape_and_one_graph_for_each(engine: Engine, cuda: FakeCuda) -> None:
    session = engine.session(chunk=32)
    run(session, PROMPTS[4][:200], 100)  # crosses 256 slots
    tree = engine.manifest.draft.nodes + 1
    shapes = [
        (context.shapes["input_ids"], context.shapes["past_key.0"][2], context.runs)
        for context in fake_tensorrt.contexts
        if "past_key.0" in context.shapes
    ]
    assert [capacity for (_, rows), capacity, _ in shapes if rows == tree] == [512], (
        "room for the answer was made before it began"
    )
    assert all(runs == 2 for (_, rows), _, runs in shapes if rows == tree), "run once, recorded once, launched from then on"
    profiles = {context.shapes["input_ids"][1]: context.profile for context in fake_tensorrt.contexts}
    assert profiles[tree] == 0
    assert profiles[32] == 1
    assert len({context.memory[0] for context in fake_tensorrt.contexts}) == 1, "temporary memory is shared"


def test_what_cannot_be_recorded_runs_as_it_is(engine: Engine, reference: Engine, cuda: FakeCuda) -> None:
    cuda.recordable = False
    assert run(engine.session(chunk=32), PROMPTS[2]).tokens == plain(reference, PROMPTS[2]).tokens
    assert cuda.graphs == cuda.traffic.launches == 0


def test_tensorrt_rtx_is_asked_before_its_work_is_recorded(
    engine: Engine, reference: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "ExecutionContext", fake_tensorrt.CapturableContext)
    assert run(engine.session(chunk=32), PROMPTS[2]).tokens == plain(reference, PROMPTS[2]).tokens
    assert cuda.traffic.launches > 10
    tree = engine.manifest.draft.nodes + 1
    assert [c.runs for c in fake_tensorrt.contexts if c.shapes["input_ids"][1] == tree] == [4], "three runs, and its recording"


# The fake GPU would notice.


@pytest.mark.parametrize("deed", ["wait", "upload", "commit"])
def test_a_backend_with_a_step_left_out_fails(
    engine: Engine, reference: Engine, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = {"wait": "synchronize", "upload": "enqueue_upload", "commit": "append"}[deed]
    expected = plain(reference, PROMPTS[2]).tokens
    monkeypatch.setattr(cuda_memory.CudaMemory, left_out, lambda *_: None)
    try:
        assert run(engine.session(chunk=32), PROMPTS[2]).tokens != expected
    except (InvalidArgument, EngineError):  # garbage for token numbers
        assert deed == "upload"


# One sentence for everything that cannot be done.


def test_a_chunk_that_was_not_built(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"shape \[1, 50\].*\[1, 32\].*--chunk"):
        run(engine.session(chunk=100), PROMPTS[4])


def test_the_context_that_was_built_is_the_engine_s(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.open(built_for(directory, monkeypatch, "--max-context", "300"), "tensorrt")
    result = run(engine.session(chunk=32), PROMPTS[4], 200)
    assert result.finish_reason == "context"
    assert len(result.tokens) == 50
    with pytest.raises(UsageError, match="context is 300"):
        run(engine.session(), [5] * 300)


def test_too_little_memory_on_the_gpu(engine: Engine, cuda: FakeCuda) -> None:
    cuda.free_bytes = 10_000
    with pytest.raises(EngineError, match="out of memory.*shorter context"):
        run(engine.session(chunk=32), PROMPTS[2])


def test_an_engine_that_tensorrt_does_not_load(directory: Path) -> None:
    file = directory / "tensorrt" / "sm87" / "target.engine"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"{", b"(", 1))
    with pytest.raises(EngineError, match=r"not the file"):
        Engine.open(directory, "tensorrt")
    manifest = Manifest.read(directory)
    manifest.files["tensorrt/sm87/target.engine"] = record(file)
    manifest.write(directory)
    with pytest.raises(EngineError, match=r"10\.99\.0 does not load.*another version; run jakiro-build again"):
        Engine.open(directory, "tensorrt")


def test_types_that_the_loop_cannot_read(directory: Path) -> None:
    file = directory / "tensorrt" / "sm87" / "target.engine"
    plan = {**json.loads(file.read_text()), "kinds": {"logits": "BF16"}}
    with pytest.raises(EngineError, match="logits is BF16"):
        TensorRTGraph(fake_tensorrt, fake_tensorrt.Engine(plan), None, None, None)


def test_features_of_two_types(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.bundle.draft.inputs = {**engine.bundle.draft.inputs, "hidden_states": np.dtype(np.float16)}
    with pytest.raises(EngineError, match="float32 and the draft takes float16.*one --precision"):
        run(engine.session(chunk=32), PROMPTS[2])


def test_temporary_memory_that_tensorrt_refuses(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """set_device_memory returns nothing; what it says to the logger is all there is."""

    def refuse(context: fake_tensorrt.ExecutionContext, address: int, size: int) -> None:
        context.engine.logger.log(fake_tensorrt.ILogger.Severity.ERROR, "the memory is too small.")

    monkeypatch.setattr(fake_tensorrt.ExecutionContext, "set_device_memory", refuse)
    with pytest.raises(EngineError, match="refuses .* bytes for temporary values: the memory is too small"):
        run(engine.session(chunk=32), PROMPTS[2])


def test_a_driver_too_old_for_tensorrt_is_said_so(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(fake_tensorrt.Runtime):
        def deserialize_cuda_engine(self, data: object) -> None:
            self.logger.log(fake_tensorrt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")

    monkeypatch.setattr(fake_tensorrt, "Runtime", Refusing)
    with pytest.raises(EngineError, match="error: 35: .*the driver is older than the CUDA this library was made with"):
        Engine.open(directory, "tensorrt")


def test_garbage_that_is_collected_while_a_stream_is_recorded(engine: Engine, reference: Engine, cuda: FakeCuda) -> None:
    """Device memory in a cycle, found by the collection that the fake makes inside a recording."""
    session = engine.session(chunk=32)

    class Cycle:
        def __init__(self) -> None:
            self.itself, self.array = self, engine.bundle.target.memory().upload(np.arange(9))  # type: ignore[attr-defined]

    events = session.generate(PROMPTS[2], 24)
    next(events)
    free = cuda.free_bytes
    Cycle()
    tokens = [token for event in events for token in event.tokens]
    assert cuda.graphs > 0, "nothing was recorded"
    assert cuda.recorded is None
    assert cuda.free_bytes <= free
    assert len(tokens) == 23 or tokens


def test_an_engine_is_checked_by_the_backend_that_runs_it(directory: Path) -> None:
    """What jakiro-build does after a build: every output of both graphs, through device memory."""
    manifest, loader = Manifest.read(directory), EngineLoader("tensorrt")
    for name, contract in (("target", manifest.target_contract), ("draft", manifest.draft_contract)):
        graph = graphs.read(directory / f"{name}.onnx")
        shapes = profiles(name, graph, manifest, Limits(chunk=32))
        file = directory / "tensorrt" / "sm87" / f"{name}.engine"
        checks = accuracy.check_engine(loader, file, graph, contract, shapes, manifest.model.vocab_size, "fp32")
        assert {check["profile"] for check in checks} == {"tree", "prompt"}
        assert len(checks) == 2 * (len(contract.outputs) - (name == "draft")), "the parents follow from near ties"
        assert all(check["passed"] for check in checks)
