"""Opening an engine directory: what engine.json says of the graphs is compared with what they are."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jakiro_runtime import Engine, EngineError


@pytest.mark.parametrize(
    ("part", "changes", "difference"),
    [
        ("model", {"num_layers": 1}, "takes past_key.1, which is not expected"),
        ("model", {"num_layers": 99}, "takes no past_key."),
        ("model", {"num_kv_heads": 99}, "past_key.0 is [?, "),
        ("model", {"head_dim": 2}, "past_key.0 is [?, "),
        ("model", {"hidden_size": 2}, "hidden_states is [?, ?, "),
        ("model", {"vocab_size": 1 << 20}, "logits is [?, ?, "),
        ("draft", {"num_kv_heads": 99}, "past_key is [?, "),
        ("draft", {"num_layers": 2}, "takes past_key, which is not expected"),
        ("draft", {"feature_layers": [0, 1]}, "gives hidden_states, which is not expected"),
        ("draft", {"feature_layers": [1, 0]}, "draft.feature_layers is [1, 0]; ascending numbers from 0 to 3"),
        ("draft", {"feature_layers": [9]}, "draft.feature_layers is [9]"),
        ("draft", {"nodes": 99}, "tree_tokens is [?, "),
    ],
)
def test_another_manifest_than_the_graphs_is_refused(
    tiny_engine: Path, tmp_path: Path, part: str, changes: dict[str, object], difference: str
) -> None:
    for file in tiny_engine.iterdir():
        if file.is_file():
            os.link(file, tmp_path / file.name)
    manifest = json.loads((tiny_engine / "engine.json").read_text())
    manifest[part] |= changes
    (tmp_path / "engine.json").unlink()
    (tmp_path / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError) as caught:
        Engine.open(tmp_path)
    assert difference in str(caught.value), caught.value
    assert "export it again" in str(caught.value)
    shutil.copy(tiny_engine / "engine.json", tmp_path)
    Engine.open(tmp_path)  # a control


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda graph: graph["inputs"].pop("tree_mask"), "takes no tree_mask"),
        (lambda graph: graph["inputs"].update(more=np.dtype(np.int64)), "takes more, which is not expected"),
        (lambda graph: graph["inputs"].update(tree_mask=np.dtype(np.int64)), "tree_mask is int64, and bool is expected"),
        (lambda graph: graph["outputs"].pop("next_tokens"), "gives no next_tokens"),
        (lambda graph: graph["outputs"].update(logits=np.dtype(np.int64)), "logits is int64, and float is expected"),
        (lambda graph: graph["dims"].update(logits=(None, 3)), "logits is [?, 3], and [batch, selected, "),
        (lambda graph: None, None),
    ],
)
def test_each_difference_is_told(engine: Engine, change: Any, difference: str | None) -> None:
    opened = engine.bundle.target
    graph = {"inputs": dict(opened.inputs), "outputs": dict(opened.outputs), "dims": dict(opened.dims)}
    change(graph)
    found = engine.manifest.target_contract.difference(**graph)
    assert (found is None) if difference is None else difference in str(found)


def test_a_graph_that_fails_gets_a_sentence(engine: Engine) -> None:
    class Broken:
        """Nothing that the loop binds runs."""

        def run(self) -> None:
            raise RuntimeError("no memory\nand more")

    class Graph:
        inputs, outputs, memory = engine.bundle.target.inputs, engine.bundle.target.outputs, engine.bundle.target.memory

        def bind(self, *_: object) -> Broken:
            return Broken()

    broken = replace(engine.bundle, target=Graph())  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="The engine's graph failed: no memory"):
        list(Engine(broken).session().generate([1, 2], 3))
