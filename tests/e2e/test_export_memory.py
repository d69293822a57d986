"""A checkpoint is streamed: its size does not show in the exporter's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from jakiro_export.heads.jakiro import JakiroHead

SIZES = {
    "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 5, "num_attention_heads": 24,
    "num_key_value_heads": 8, "vocab_size": 16000,
}  # fmt: skip


def hollow(file: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of fp16 zeros that takes no room on the disk; its size."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)
    return offset


@pytest.mark.slow
def test_a_large_checkpoint_needs_less_than_a_gigabyte(tmp_path: Path) -> None:
    import torch

    target, head = tmp_path / "target", tmp_path / "head"
    tiny.make_target(target, **{**SIZES, "num_hidden_layers": 1, "hidden_size": 48, "intermediate_size": 96})
    config = {**json.loads((target / "config.json").read_text()), **SIZES, "head_dim": 128, "layer_types": None}
    (target / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    size = hollow(target / "model.safetensors", shapes)
    assert size > 1_300_000_000
    settings = tiny.head_config(**{k: v for k, v in SIZES.items() if k != "num_hidden_layers"})
    head.mkdir()
    (head / "config.json").write_text(json.dumps(settings))
    hollow(head / "model.safetensors", JakiroHead.expected_shapes(JakiroHead.read_config(settings, {})))
    command = [sys.executable, "-m", "jakiro_export.cli.export", "-t", str(target), "-d", str(head), "-o", str(tmp_path / "out")]
    # by a small process of its own: a child's peak counts what its parent held when it was started
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, *command, "--no-verify", "--precision", "fp16"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) * 1024
    assert (tmp_path / "out" / "target.onnx.data").stat().st_size > size * 0.9
    assert peak < 1_000_000_000, f"{peak / 1e6:.0f} MB"
