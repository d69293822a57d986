"""A family of heads is one file: it is found, told apart from the others, and exported, with no other file changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import jakiro_export.heads
import tiny
from answers import plain, run
from jakiro_export.cli.export import main as export_command
from jakiro_export.cli.inspect import main as inspect
from jakiro_export.errors import ExportError
from jakiro_export.heads import registry
from jakiro_runtime import Engine
from jakiro_runtime.format.manifest import Manifest

TOY = '''
"""A head whose layer is the shared one and nothing more: what attention gives is the next feature."""

from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.layer import DraftLayer, LayerConfig, layer_shapes, layer_weights, read_layer
from jakiro_export.heads.model import DraftModel, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.ops import selection
from torch import nn


class ToyModel(DraftModel):
    def predict(self, x, query, segments, parallel):
        feature, _ = self.head.attend(x, query, segments)
        return Prediction(feature, feature, feature)

    def candidates(self, scored, count):
        logits = nn.functional.linear(scored, self.projection).float()
        best, index = logits.log_softmax(-1).topk(count, -1)
        return best, self.tokens(index)


@register
class ToyHead(DraftHead):
    variant, title = "toy", "Toy"

    @classmethod
    def recognises(cls, config, shapes):
        return not any("mlp" in name for name in shapes)

    @classmethod
    def read_config(cls, config, shapes):
        return LayerConfig(**read_layer(config))

    @classmethod
    def expected_shapes(cls, config):
        return layer_shapes(config, {})

    def model(self, tree, draft_vocab, attention, opset):
        return ToyModel(DraftLayer(self.config, attention, opset), tree, draft_vocab)

    def layer_weights(self, dtype):
        return layer_weights(self.config, self.stored(dtype))
'''


@pytest.fixture
def toy_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file in one of the package's folders, as a user would add it."""
    registry.families()  # a module registers its family once, when it is imported
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "toy.py").write_text(TOY)
    monkeypatch.setattr(jakiro_export.heads, "__path__", [*jakiro_export.heads.__path__, str(tmp_path / "families")])
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    yield
    sys.modules.pop("jakiro_export.heads.toy", None)


@pytest.fixture
def toy_head(tmp_path: Path) -> Path:
    weights = {name: tensor for name, tensor in tiny.head_tensors(tiny.head_config()).items() if "mlp" not in name}
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "config.json").write_text(json.dumps(tiny.head_config()))
    save_file(weights, tmp_path / "head" / "model.safetensors")
    return tmp_path / "head"


@pytest.mark.slow
@pytest.mark.usefixtures("toy_family")
def test_a_family_in_a_file_of_its_own_is_exported_and_runs(tmp_path: Path, tiny_target: Path, toy_head: Path) -> None:
    out = tiny.make_engine(tmp_path / "engine", tiny_target, toy_head, depth=2, top_k=3, nodes=8, verify=True)
    manifest = Manifest.read(out)
    assert manifest.draft.variant == "toy"
    assert all(check["passed"] for check in manifest.checks)
    assert len(list(Engine.open(out).session().generate([5, 6, 7], 6))) >= 1


@pytest.mark.usefixtures("toy_family")
def test_the_known_families_are_still_told_apart(tmp_path: Path, toy_head: Path) -> None:
    heads = {
        "jakiro": tiny.make_head(tmp_path / "jakiro"),
        "jakiro_star": tiny.make_star_head(tmp_path / "star", True),
        "eagle": tiny.make_eagle_head(tmp_path / "eagle", biases=True),
        "toy": toy_head,
    }
    assert {name: registry.load_head(path, name).variant for name, path in heads.items()} == {name: name for name in heads}


def test_a_head_of_no_known_family_is_named(tmp_path: Path, toy_head: Path) -> None:
    with pytest.raises(
        ExportError, match=r"no family that this exporter knows \(EAGLE, EAGLE-3, Gumiho, Jakiro, Jakiro-3, Jakiro\*\)"
    ):
        registry.load_head(toy_head, "head")


def test_integers_in_a_head_are_refused(tmp_path: Path) -> None:
    head = tiny.make_head(tmp_path / "head")
    weights = tiny.head_tensors(tiny.head_config())
    weights["fc.weight"] = torch.zeros(weights["fc.weight"].shape, dtype=torch.int8)
    save_file(weights, head / "model.safetensors")
    with pytest.raises(ExportError, match=r"fc.weight holds int8"):
        registry.load_head(head, "head")


@pytest.mark.parametrize(
    ("tensor", "config", "said"),
    [
        ("0.0.linear.weight", {}, "Medusa heads"),
        ("layers.0.eh_proj.weight", {}, "MTP"),
        ("fc.weight", {"dflash_config": {}}, "DFlash head"),
        ("model.layers.0.mlp.gate_proj.weight", {}, "whole language model"),
        ("fc.weight", {}, "no family"),
    ],
)
def test_what_is_no_such_head_is_named(tmp_path: Path, tensor: str, config: dict[str, object], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({tensor: torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=said):
        registry.load_head(tmp_path, "head")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias": False}, "has a tensor fc.bias"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"intermediate_size": 95}, r"gate_proj.weight has shape \[96, 48\], expected \[95, 48\]"),
    ],
)
def test_an_eagle_head_that_is_not_as_its_config_says_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    head = tiny.make_eagle_head(tmp_path)
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ExportError, match=said):
        registry.load_head(head, "head")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_eagle_engine_changes_nothing(tmp_path: Path, tiny_target: Path, precision: str) -> None:
    head = tiny.make_eagle_head(tmp_path / "head", biases=True)
    engine = Engine.open(tiny.make_engine(tmp_path / "engine", tiny_target, head, precision=precision, verify=True))
    assert all(check["passed"] for check in engine.manifest.checks)
    for prompt in ([5, 6, 7], [9, 9, 1, 3], list(range(20, 60))):
        together, alone = (
            [token for chunk in engine.session(speculate=each).generate(prompt, 24) for token in chunk.tokens]
            for each in (True, False)
        )
        assert together == alone


def test_a_family_that_a_checkpoint_is_not_of_is_refused(tmp_path: Path) -> None:
    head = tiny.make_gumiho_head(tmp_path)
    assert registry.load_head(head, "head", "gumiho").variant == registry.load_head(head, "head").variant == "gumiho"
    with pytest.raises(ExportError, match="is a head of the family gumiho, and --family says eagle"):
        registry.load_head(head, "head", "eagle")


def test_the_command_offers_every_family() -> None:
    option = next(each for each in export_command.params if each.name == "family")
    assert sorted(option.type.choices) == [family.variant for family in registry.families()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_without_checks_too(tmp_path: Path, tiny_target: Path, value: float) -> None:
    head = tiny.make_eagle_head(tmp_path / "head")
    tensors = load_file(head / "model.safetensors")
    tensors["layers.0.mlp.up_proj.weight"][95, 47] = value
    save_file(tensors, head / "model.safetensors")
    with pytest.raises(ExportError, match=r"weight in layers.0.mlp.up_proj.weight that is no finite number"):
        tiny.make_engine(tmp_path / "engine", tiny_target, head, verify=False)
    assert not (tmp_path / "engine").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tree"), [("gumiho", None), ("eagle", "static")])
def test_another_kind_of_tree_changes_no_answer(tmp_path: Path, tiny_target: Path, kind: str, tree: str | None) -> None:
    head = (tiny.make_gumiho_head if kind == "gumiho" else tiny.make_eagle_head)(tmp_path / "head")
    shape = {"depth": None, "top_k": None, "nodes": None, "tree": tree} if tree else {"depth": 4}
    engine = Engine.open(tiny.make_engine(tmp_path / "engine", tiny_target, head, precision="int8", **shape), threads=1)
    assert (engine.manifest.draft.num_layers, engine.manifest.draft.nodes) == ((2, 12) if kind == "gumiho" else (1, 25))
    for prompt in ([5, 6, 7], list(range(20, 60))):
        assert run(engine.session(), prompt, 24).tokens == plain(engine, prompt, 24).tokens


@pytest.mark.slow
def test_a_jakiro_3_head_changes_no_answer_and_keeps_its_parallel_step(tmp_path: Path) -> None:
    target = tiny.make_target(tmp_path / "target", layers=7, initializer_range=0.1)  # less chaotic in int8
    engine = tiny.make_engine(tmp_path / "engine", target, tiny.make_jakiro3_head(tmp_path / "head"), precision="int8")
    draft = Engine.open(engine, threads=1).manifest.draft
    assert (draft.variant, draft.feature_layers, draft.num_experts, draft.parallel_step) == ("jakiro3", [1, 3, 4], 2, True)
    opened = Engine.open(engine, threads=1)
    for prompt in ([5, 6, 7], list(range(20, 60))):
        assert run(opened.session(), prompt, 24).tokens == plain(opened, prompt, 24).tokens


def test_inspecting_a_head_says_what_it_is(tmp_path: Path) -> None:
    heads = {
        "jakiro3": tiny.make_jakiro3_head(tmp_path / "five"),
        "jakiro": tiny.make_head(tmp_path / "one"),
        "jakiro_star": tiny.make_star_head(tmp_path / "two", True),
        "eagle": tiny.make_eagle_head(tmp_path / "three", biases=True),
        "eagle3": tiny.make_eagle3_head(tmp_path / "four", "DeepSpec"),
    }
    for family, head in heads.items():
        found = json.loads(CliRunner().invoke(inspect, [str(head), "--json"]).output)
        assert found["family"] == family
        assert found["flags"]["qkv_bias"] == (family == "eagle")
        assert found["tensors"]["fc.weight"] == f"float32 [48, {144 if family.endswith('3') else 96}]"
        assert f"hidden size 48, vocabulary {tiny.VOCAB}" in CliRunner().invoke(inspect, [str(head)]).output
