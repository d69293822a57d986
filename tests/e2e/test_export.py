"""An exported engine: what is in the directory, and that the target's graph is exact to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import tiny
from jakiro_export.cli import export as cli
from jakiro_export.cli.export import main
from jakiro_export.errors import ExportError
from jakiro_export.verification import check as verification_check
from jakiro_runtime import Engine
from jakiro_runtime.backends.evaluate import GraphCall, append_rows, causal_mask
from jakiro_runtime.backends.onnxruntime import open_graph
from jakiro_runtime.errors import EngineError
from jakiro_runtime.errors import UsageError as RuntimeUsageError
from jakiro_runtime.format.integrity import check_integrity
from jakiro_runtime.format.manifest import Manifest


def test_the_directory_is_complete_and_checked(tiny_engine: Path) -> None:
    manifest = Manifest.read(tiny_engine)
    check_integrity(manifest, tiny_engine, full=True)
    assert {"target.onnx", "target.onnx.data", "draft.onnx", "tokenizer.json", "chat_template.jinja"} <= set(manifest.files)
    assert manifest.bitwise
    assert len(manifest.checks) >= 12
    assert all(check["passed"] and check["value"] <= check["tolerance"] for check in manifest.checks)
    assert not list(tiny_engine.parent.glob(f".{tiny_engine.name}*"))


@pytest.mark.parametrize("name", ["target", "draft"])
def test_graphs_are_valid_and_say_where_they_come_from(tiny_engine: Path, name: str) -> None:
    path = tiny_engine / f"{name}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["jakiro_version"]
    assert metadata["source_target"]
    external = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    assert external
    assert external <= {"target.onnx.data", "draft.onnx.data"}


def axes(path: Path) -> dict[str, list[object]]:
    session = onnxruntime.InferenceSession(str(path))
    return {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}


def test_axis_names_are_the_contract(tiny_engine: Path) -> None:
    target, draft = axes(tiny_engine / "target.onnx"), axes(tiny_engine / "draft.onnx")
    assert target["tree_mask"] == ["batch", "rows", "rows"]
    assert target["past_key.1"] == ["batch", 2, "capacity", 8]
    assert target["logits"] == ["batch", "selected", tiny.VOCAB]
    assert target["hidden_states"] == ["batch", "rows", 48]
    assert target["new_value.0"] == ["batch", 2, "rows", 8]
    assert draft["hidden_states"] == ["batch", "rows", 48]
    assert draft["tree_parents"] == ["batch", 12]
    assert draft["past_value"] == ["batch", 2, "capacity", 8]


def test_dispatch_stays_one_node_with_its_body_beside_it(tiny_engine: Path) -> None:
    model = onnx.load(tiny_engine / "draft.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == "ExpertDispatch"]
    assert len(nodes) == 3  # the first forward and two rounds; the last round runs none
    assert all(node.domain == "jakiro" for node in nodes)
    assert [(f.domain, f.name) for f in model.functions] == [("jakiro", "ExpertDispatch")]


class Target:
    """A target graph with a cache kept by hand."""

    def __init__(self, folder: Path, threads: int = 2, capacity: int = 256) -> None:
        self.graph = GraphCall(open_graph(folder / "target.onnx", threads), Manifest.read(folder).target_contract)
        self.cache, self.past = self.graph.empty_cache(1, capacity), 0

    def call(self, tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(tokens)
        if rows == 1:  # one row alone takes other kernels; the runtime pads to two
            tokens, positions, mask = np.repeat(tokens, 2), np.repeat(positions, 2), np.eye(2, dtype=bool)
        out = self.graph(
            input_ids=tokens[None],
            position_ids=positions[None],
            tree_mask=mask[None],
            past_length=np.array([self.past]),
            logit_rows=np.arange(len(tokens))[None],
            **self.cache,
        )
        return {k: (v[:, :, :rows] if k.startswith("new_") else v[:, :rows]) for k, v in out.items()}

    def commit(self, out: dict[str, np.ndarray], rows: list[int]) -> None:
        append_rows(self.cache, {name: value[:, :, rows] for name, value in out.items() if name.startswith("new_")}, self.past)
        self.past += len(rows)

    def run_chunks(self, tokens: np.ndarray, sizes: list[int]) -> np.ndarray:
        """Logits of every token, fed in chunks of the given sizes (the last one repeats)."""
        logits, start = [], 0
        while start < len(tokens):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            chunk = tokens[start : start + size]
            n = len(chunk)
            out = self.call(chunk, np.arange(start, start + n), causal_mask(n)[0])
            self.commit(out, list(range(n)))
            logits.append(out["logits"][0])
            start += n
        return np.concatenate(logits)


def run_in_trees(target: Target, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same tokens, each found in a random tree among junk: logits along the true path."""
    logits, start = [], 0
    while start < len(tokens):
        length = min(int(rng.integers(1, 6)), len(tokens) - start)
        junk = int(rng.integers(0, 12))
        size = length + junk
        on_path = np.sort(rng.permutation(size - 1)[: length - 1]) + 1 if length > 1 else np.array([], int)
        path = [0, *on_path.tolist()]
        parents, ids = np.zeros(size, int), rng.integers(0, tiny.VOCAB, size)
        for node in range(1, size):
            before = [p for p in path if p < node]
            parents[node] = before[-1] if node in path else int(rng.integers(0, node))
        ids[path] = tokens[start : start + length]
        mask = np.eye(size, dtype=bool)
        for node in range(1, size):
            mask[node] |= mask[parents[node]]
        out = target.call(ids, start + mask.sum(-1) - 1, mask)
        logits.append(out["logits"][0][path])
        target.commit(out, path)
        start += length
    return np.concatenate(logits)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_logits_are_equal_bit_for_bit_however_the_tokens_are_fed(tiny_engine: Path, threads: int) -> None:
    rng = np.random.default_rng(threads)
    tokens = rng.integers(0, tiny.VOCAB, 150)
    plain = Target(tiny_engine).run_chunks(tokens, [1])
    assert np.array_equal(plain, Target(tiny_engine, threads, capacity=1024).run_chunks(tokens, [37]))
    assert np.array_equal(plain, Target(tiny_engine, threads, capacity=512).run_chunks(tokens, [64, 5, 2]))
    for _ in range(4):
        assert np.array_equal(plain, run_in_trees(Target(tiny_engine, threads, capacity=256), tokens, rng))


def test_without_the_exact_sums_bits_do_differ(tiny_numerical: Path) -> None:
    """The control of the test above: a numerical engine fails it."""
    engine = tiny_numerical
    assert Manifest.read(engine).equality == "numerical"
    tokens = np.random.default_rng(0).integers(0, tiny.VOCAB, 150)
    plain = Target(engine).run_chunks(tokens, [1])
    chunked = Target(engine, capacity=1024).run_chunks(tokens, [37])
    assert not np.array_equal(plain, chunked)
    np.testing.assert_allclose(plain, chunked, atol=1e-3)


@pytest.mark.slow
def test_other_precisions_and_opsets_pass_their_checks(half_engine: Path, tiny_jetpack_6: Path) -> None:
    for engine, opset in ((half_engine, 23), (tiny_jetpack_6, 20)):
        assert len(Manifest.read(engine).checks) >= 12
        model = onnx.load(engine / "target.onnx", load_external_data=False)
        assert next(o.version for o in model.opset_import if o.domain == "") == opset
        operators = {node.op_type for node in model.graph.node}
        assert ("RMSNormalization" in operators) == (opset >= 23)


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.mark.slow
def test_a_failed_check_leaves_nothing(
    tmp_path: Path, tiny_target: Path, tiny_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verification_check.TOLERANCE, "fp32", 1e-12)
    code, output = invoke("-d", tiny_head, "-t", tiny_target, "-o", tmp_path / "e", "--depth", 2, "--nodes", 8)
    assert code == 1
    assert "checks failed" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tmp_path: Path, tiny_target: Path, tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jakiro_export.artifact.weights.os.pwrite", full)
    code, output = invoke("-d", tiny_head, "-t", tiny_target, "-o", tmp_path / "e", "--depth", 2, "--nodes", 8)
    assert code == 1
    assert "disk is full" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"-t": "/nowhere"}, 2, "neither a folder"),
        ({"-d": "/nowhere"}, 2, "neither a folder"),
        ({"--nodes": 500}, 2, "candidates"),
        ({"--max-context": 5000}, 2, "1024 positions"),
        ({"--precision": "fp16", "--equality": "bitwise"}, 2, "fp32"),
        ({"--precision": "int3"}, 2, "int3"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    tmp_path: Path, tiny_target: Path, tiny_head: Path, change: dict[str, object], code: int, words: str
) -> None:
    call = {"-d": tiny_head, "-t": tiny_target, "-o": tmp_path / "e", "--depth": 2, "--nodes": 8, **change}
    got, output = invoke(*(part for pair in call.items() for part in pair))
    assert (got, "Traceback" in output) == (code, False)
    assert words in output
    assert list(tmp_path.iterdir()) == []


def test_a_head_for_another_target_is_refused(tmp_path: Path, tiny_target: Path) -> None:
    head = tiny.make_head(tmp_path / "h", hidden_size=96)
    code, output = invoke("-d", head, "-t", tiny_target, "-o", tmp_path / "e")
    assert code == 1
    assert "hidden size 96, the target" in output


def test_a_quantised_checkpoint_is_refused_before_tracing(
    tmp_path: Path, tiny_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jakiro_export.export.target_graph", lambda *_: pytest.fail("traced"))
    target = tiny.make_target(
        tmp_path / "t", quantization_config={"quant_method": "compressed-tensors", "format": "int-quantized"}
    )
    code, output = invoke("-d", tiny_head, "-t", target, "-o", tmp_path / "e", "--no-verify")
    assert code == 1
    assert "compressed-tensors" in output


@pytest.mark.slow
def test_named_chat_templates_and_a_projection_of_its_own_are_exported(tmp_path: Path, tiny_head: Path) -> None:
    """Checked against transformers, which reads them the same way."""
    target = tiny.make_target(tmp_path / "t", layers=2)
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tool_use.jinja").write_text("T{{ messages[0].content }}")
    tensors = load_file(target / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].flip(0).contiguous()},
              target / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    out = tiny.make_engine(tmp_path / "e", target, tiny_head, depth=1, top_k=3, nodes=4)
    manifest = Manifest.read(out)
    check_integrity(manifest, out, full=True)
    assert "additional_chat_templates/tool_use.jinja" in manifest.files
    engine = Engine.open(out)
    prompt = engine.bundle.tokenizer.decode(engine.chat_prompt([{"role": "user", "content": "x"}]), skip_special_tokens=False)
    assert prompt == "<|start|>user\nx<|end|>\n<|start|>assistant\n"


def test_an_unknown_architecture_says_which_are_known(tmp_path: Path, tiny_head: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}))
    code, output = invoke("-d", tiny_head, "-t", folder, "-o", tmp_path / "e")
    assert code == 1
    assert "Traceback" not in output


def test_a_folder_that_is_no_engine_is_not_overwritten(tmp_path: Path, tiny_target: Path, tiny_head: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    code, output = invoke("-d", tiny_head, "-t", tiny_target, "-o", tmp_path)
    assert (code, "not an engine directory" in output) == (2, True)
    assert (tmp_path / "precious.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("no backend"), 1), (RuntimeUsageError("no text"), 2), (ExportError("no room"), 1), (KeyboardInterrupt(), 130)],
)
def test_whatever_an_export_meets_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int
) -> None:
    """The runtime's errors too: --tree auto runs it."""

    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    done = CliRunner().invoke(cli.main, ["-d", "x", "-t", "y", "-o", str(tmp_path / "out")])
    assert done.exit_code == code
    assert done.output.startswith("Interrupted" if code == 130 else f"Error: {error}")
