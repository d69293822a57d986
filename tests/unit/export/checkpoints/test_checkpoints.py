"""What users bring, damaged in every way we know of: one sentence that names it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from jakiro_export.checkpoints import aliases
from jakiro_export.checkpoints.locate import locate
from jakiro_export.checkpoints.memory import MemoryStore
from jakiro_export.checkpoints.safetensors import SafetensorsStore
from jakiro_export.checkpoints.target import load_target
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.heads.registry import load_head


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(4, 2, 3).bfloat16(), "c": torch.arange(9).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    stored, memory = SafetensorsStore([tmp_path / "x.safetensors"]), MemoryStore(tensors)
    for name, tensor in tensors.items():
        for store in (stored, memory):
            rows = store.rows(name, 1, 4).astype(np.float32)
            np.testing.assert_array_equal(rows, tensor[1:4].float().numpy())
            assert store.shapes()[name] == tuple(tensor.shape)


@pytest.mark.parametrize("keep", [3, 40, 0.5, 0.99])
def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, keep: float) -> None:
    save_file({"a": torch.randn(64, 64)}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ExportError, match="safetensors|truncated"):
        SafetensorsStore([tmp_path / "x.safetensors"])


@pytest.mark.parametrize("offsets", [[0, 9999], [-4, 12], [100, 116], ["a", 1]])
def test_a_header_that_lies_about_offsets_is_refused(tmp_path: Path, offsets: list[object]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": offsets}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ExportError):
        SafetensorsStore([tmp_path / "x.safetensors"])


def write_head(folder: Path, drop: str | None = None, change: dict[str, object] | None = None, **tensors: torch.Tensor) -> Path:
    config = tiny.head_config(**(change or {}))
    weights = {**tiny.head_tensors(tiny.head_config()), **tensors}
    weights.pop(drop or "", None)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_published_head_loads_from_either_format(tmp_path: Path) -> None:
    head = write_head(tmp_path / "h")
    first = load_head(head, "h")
    row = first.checkpoint.store.rows("fc.weight", 0, 48)
    weights = {**load_file(head / "model.safetensors"), "embed_tokens.weight": torch.zeros(2, 2)}
    (head / "model.safetensors").unlink()
    torch.save(weights, head / "pytorch_model.bin")
    second = load_head(head, "h")
    assert first.parameters == second.parameters
    np.testing.assert_array_equal(row, second.checkpoint.store.rows("fc.weight", 0, 48))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"drop": "layers.0.mlp_moe.gate.weight"}, "lacks the tensor layers.0.mlp_moe.gate.weight"),
        ({"fc.weight": torch.zeros(48, 48)}, r"fc.weight has shape \[48, 48\], expected \[48, 96\]"),
        ({"layers.0.extra": torch.zeros(1)}, "layers.0.extra"),
        ({"change": {"num_local_experts": 4}}, "4 experts"),
        ({"layers.0.mlp_moe.experts.0.fc.weight": torch.zeros(1)}, r"Jakiro\*"),
    ],
)
def test_a_wrong_head_is_named(tmp_path: Path, damage: dict[str, object], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        load_head(write_head(tmp_path / "h", **damage), "h")  # type: ignore[arg-type]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_that_is_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    head = write_head(tmp_path / "h")
    (head / "model.safetensors").unlink()
    (head / "pytorch_model.bin").write_bytes(pickle.dumps({"fc.weight": Evil()}))
    with pytest.raises(ExportError, match="more than plain tensors|damaged"):
        load_head(head, "h")
    torch.save({"fc.weight": Evil()}, head / "pytorch_model.bin")
    with pytest.raises(ExportError, match="more than plain tensors"):
        load_head(head, "h")


def test_an_unknown_name_lists_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="smollm2-135m"):
        locate("no-such-model", "target")
    with pytest.raises(UsageError, match="config.json"):
        load_target(tmp_path, "x")


def test_a_hub_id_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_target: Path) -> None:
    """The layout huggingface_hub keeps: models--owner--name/snapshots/<commit>, refs/main."""
    commit = "a" * 40
    repo = tmp_path / "models--someone--tiny"
    (repo / "snapshots").mkdir(parents=True)
    (repo / "snapshots" / commit).symlink_to(tiny_target)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = locate("someone/tiny", "target")
    assert (found / "config.json").is_file()
    with pytest.raises(ExportError, match="cannot be downloaded"):
        locate("someone/absent", "target")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf at all" * 10])
def test_a_damaged_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ExportError, match="cannot be read"):
        load_target(tmp_path / "m.gguf", "m")


def test_aliases_are_the_published_names() -> None:
    heads = aliases.names("head")
    assert heads["vicuna-13b"] == "Hhaiduo/Jakiro-Vicuna-13B-v1.3"
    assert heads["vicuna-13b-star"] == "Hhaiduo/Jakiro_star-Vicuna-13B-v1.3"
    assert heads["llama3-8b"] == "Hhaiduo/Jakiro-Llama3-instruct-8b"
    assert "llama3-8b-star" not in heads
    assert "vicuna-13b-star" not in aliases.names("target")


class Hub:
    """The hub's API, without a network: what a repository holds, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
        self.asked: dict[str, object] = {}
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        siblings = [SimpleNamespace(rfilename=file) for file in files]
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.file)

    def snapshot(self, name: str, allow_patterns: list[str]) -> str:
        self.asked = {"name": name, "patterns": allow_patterns}
        return "/nowhere"

    def file(self, name: str, file: str) -> str:
        self.asked = {"name": name, "file": file}
        return "/nowhere/file.gguf"


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], "*.safetensors"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], "*.bin"),
        (["config.json", "model-00001-of-00002.safetensors", "consolidated.00.bin"], "*.safetensors"),
    ],
)
def test_weights_are_downloaded_once(monkeypatch: pytest.MonkeyPatch, files: list[str], weights: str) -> None:
    hub = Hub(monkeypatch, files)
    locate("someone/model", "target")
    patterns = hub.asked["patterns"]
    assert isinstance(patterns, list)
    assert [pattern for pattern in patterns if pattern in ("*.safetensors", "*.bin")] == [weights]
    assert "*.json" in patterns


def test_a_gguf_repository_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, ["README.md", "model-Q4_K_M.gguf", "model-Q8_0.gguf"])
    with pytest.raises(UsageError, match="name one of them, such as someone/model/model-Q4_K_M.gguf"):
        locate("someone/model", "target")
    locate("someone/model/model-Q8_0.gguf", "target")
    assert hub.asked == {"name": "someone/model", "file": "model-Q8_0.gguf"}


def test_a_folder_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "model.GGUF").write_bytes(b"x")
    assert locate(str(tmp_path), "target") == tmp_path / "model.GGUF"
    (tmp_path / "other.gguf").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds 2 GGUF files"):
        locate(str(tmp_path), "target")
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path), "target") == tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476925163\n")
    with pytest.raises(ExportError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        locate(str(tmp_path), "target")
