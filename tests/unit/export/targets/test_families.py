"""Families of targets, each by a tiny random model: tokens are those of transformers, speculation or not; or one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import tiny
from answers import plain, run
from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.checkpoints.target import load_target
from jakiro_export.cli.export import main as export
from jakiro_export.errors import ExportError
from jakiro_export.graphs import target_graph
from jakiro_export.heads.registry import load_head
from jakiro_export.plan import ExportOptions, make_plan
from jakiro_export.targets import families, hooks
from jakiro_runtime import Engine
from jakiro_runtime.backends.onnxruntime import open_graph
from traces import Traces

WINDOW = 16  # shorter than the prompts
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MORE_EXPERTS = {"moe_intermediate_size": 32, "decoder_sparse_step": 1}


def scaled(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 256, **more}}


# name: model type, changes
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, **ALTERNATING}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, **ALTERNATING}),
    "phi3": ("phi3", {"rope_parameters": HALF}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", EXPERTS),
    # the rest runs with --all
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, **MORE_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, **MORE_EXPERTS, "head_dim": 8}),
    "olmoe": ("olmoe", EXPERTS),
    "gpt_oss": ("gpt_oss", {**EXPERTS, "head_dim": 8, "sliding_window": WINDOW}),
    "llama": ("llama", {}),
    "llama, linear": ("llama", scaled("linear", factor=2.0)),
    "llama, yarn": ("llama", scaled("yarn", factor=4.0)),
    "llama, llama3": ("llama", scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama, odd head": ("llama", {"head_dim": 20}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "ministral3": ("ministral3", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 8}),
    "phi3, whole": ("phi3", {}),
    "phi": ("phi", {}),
    "smollm3": ("smollm3", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": WINDOW}),
    "granite": (
        "granite",
        {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    ),
    "stablelm": ("stablelm", {}),
    "cohere": ("cohere", {"logit_scale": 0.2}),
    "cohere2": ("cohere2", {"sliding_window": WINDOW}),
    "exaone4": ("exaone4", {}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "starcoder2": ("starcoder2", {}),
    "nemotron": ("nemotron", {"rope_parameters": HALF}),
    "arcee": ("arcee", {}),
    "seed_oss": ("seed_oss", {}),
    "ernie4_5": ("ernie4_5", {}),
}
FEW = 5
NAMES = [name if n < FEW else pytest.param(name, marks=pytest.mark.exhaustive) for n, name in enumerate(FAMILIES)]
SIZES = {
    "vocab_size": tiny.VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.3, "tie_word_embeddings": True,
}  # fmt: skip


def make(folder: Path, name: str) -> torch.nn.Module:
    """A random model of a family, saved as transformers saves it. Norms and biases are no defaults: those hide faults."""
    kind, changes = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.ndim == 3:  # experts
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny.make_tokenizer(folder)
    return model.eval()


def exported(folder: Path, target: Path, head: Path, engine: Engine, precision: str = "fp32") -> Engine:
    """The target's graph with the tiny engine's draft, which is of the same sizes."""
    plan = make_plan(
        ExportOptions(str(head), str(target), folder, precision=precision), load_target(target, "t"), load_head(head, "h")
    )
    folder.mkdir()
    with DataFiles(folder) as files:
        save(target_graph(plan.target, {}), folder / "target.onnx", files)
    manifest = replace(plan.manifest(), draft=engine.manifest.draft)
    return Engine(engine.bundle.replace(manifest=manifest, target=open_graph(folder / "target.onnx")))


@torch.no_grad()
def is_tie(model: torch.nn.Module, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Whether two answers part where their tokens' logits are as near as rounding on another processor makes a difference."""
    place = next((n for n, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if place is None:
        return False
    logits = model(torch.tensor([prompt + theirs[:place]])).logits[0, -1]
    return abs(float(logits[ours[place]] - logits[theirs[place]])) < 1e-4


def differences(model: torch.nn.Module, engine: Engine) -> list[str]:
    """Where tokens with speculation or transformers' are others than those without."""
    found = []
    for length in (7, 100):
        prompt = np.random.default_rng(length).integers(3, 300, length).tolist()
        ours = plain(engine, prompt, 30).tokens
        if run(engine.session(), prompt, 30).tokens != ours:
            found.append(f"speculation, {length}")
        theirs = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), do_sample=False, max_new_tokens=len(ours), eos_token_id=2, pad_token_id=0
        )
        if (wanted := theirs[0, length:].tolist()) != ours and not is_tie(model, prompt, ours, wanted):
            found.append(f"transformers, {length}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_family_answers_as_transformers_does(tmp_path: Path, tiny_head: Path, engine: Engine, name: str) -> None:
    model = make(tmp_path / "target", name)
    assert differences(model, exported(tmp_path / "engine", tmp_path / "target", tiny_head, engine)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("gemma3", "fp16"),
        *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in (("gemma3", "bf16"), ("mixtral", "fp16"))),
    ],
)
def test_half_precision_graphs_have_one_type(tmp_path: Path, tiny_head: Path, name: str, precision: str) -> None:
    """Gemma scales its embedding by a buffer, which has the type of the weights."""
    make(tmp_path / "target", name)
    arguments = ["-t", str(tmp_path / "target"), "-d", str(tiny_head), "-o", str(tmp_path / "out"), "--precision", precision]
    result = CliRunner().invoke(export, [*arguments, "--depth", "1", "--top-k", "2", "--nodes", "3", "--no-build", "--no-verify"])
    assert result.exit_code == 0, result.output  # onnx.checker has looked at both


@pytest.mark.slow
def test_a_window_of_another_length_is_noticed(
    tmp_path: Path, tiny_head: Path, engine: Engine, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control; and windows in int8, which has no fused operator for them."""
    make(tmp_path / "target", "mistral")
    right = exported(tmp_path / "right", tmp_path / "target", tiny_head, engine, "int8")
    asked = hooks.ReadOnlyCache.window
    monkeypatch.setattr(hooks.ReadOnlyCache, "window", lambda *of: asked(*of) and asked(*of) + 1)
    with traces.off():
        wrong = exported(tmp_path / "wrong", tmp_path / "target", tiny_head, engine, "int8")
    prompt = np.random.default_rng(0).integers(3, 300, 100).tolist()
    assert plain(right, prompt, 30).tokens == run(right.session(chunk=33), prompt, 30).tokens
    assert plain(wrong, prompt, 30).tokens != plain(right, prompt, 30).tokens


def test_what_is_listed_is_tested() -> None:
    configs = [CONFIG_MAPPING[kind](**{**SIZES, **changes}) for kind, changes in FAMILIES.values()]
    assert {families.architecture(config) for config in configs} == set(families.KNOWN_TO_WORK)
    for config in configs:
        families.check(config)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gpt2", {}, "learned positions"), ("opt", {}, "learned positions"), ("bloom", {}, "learned positions or biases"),
        ("mpt", {}, "biases"), ("falcon", {}, "no num_key_value_heads"), ("gptj", {}, "no num_key_value_heads"),
        ("bert", {}, "encoder"), ("t5", {}, "no causal language model"), ("mamba", {}, "no key/value cache"),
        ("jamba", {}, "no key/value cache"), ("deepseek_v3", {}, "latent attention"),
        ("phimoe", {}, "experts a layer"),
        ("granitemoe", {"num_local_experts": 8}, "8 experts a layer"), ("llama4_text", {}, "experts a layer"),
        ("gemma3", {}, "reads more than text"),
        ("mistral3", {}, "reads more than text"), ("llama", scaled("dynamic", factor=2.0), "'dynamic' depends on the length"),
        ("llama", scaled("longrope", factor=2.0, short_factor=[1.0] * 4, long_factor=[2.0] * 4), "'longrope' depends"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "layers of type linear_attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_at_once(kind: str, changes: dict[str, Any], reason: str) -> None:
    config = CONFIG_MAPPING[kind](**({**SIZES, **changes} if changes else {}))
    with pytest.raises(ExportError, match=reason) as caught:
        families.check(config)
    assert "\n" not in str(caught.value)


def test_a_refused_target_leaves_nothing(tmp_path: Path, tiny_head: Path) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING["opt"](vocab_size=tiny.VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, ffn_dim=96)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "target")
    tiny.make_tokenizer(tmp_path / "target")
    arguments = ["-t", str(tmp_path / "target"), "-d", str(tiny_head), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 1
    assert "OPTForCausalLM" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


@pytest.mark.parametrize("argument", [{"position_bias": torch.zeros(1)}, {"indices": 3}])
def test_an_unknown_argument_of_attention_is_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=f"takes {next(iter(argument))}"):
        hooks._attention(torch.nn.Module(), *[torch.zeros(1)] * 4, **argument)


def test_the_context_ends_where_attention_does() -> None:
    def config(**changes: Any) -> Any:
        return CONFIG_MAPPING["llama"](**{**SIZES, **changes})

    assert families.context_limit(config(), None) == 1024
    chunked = config(layer_types=["chunked_attention", "full_attention"], attention_chunk_size=64)
    assert families.context_limit(chunked, None) == 64
    windowed = CONFIG_MAPPING["mistral"](**{**SIZES, "sliding_window": 128})
    assert families.context_limit(windowed, None) == 1024
    assert families.windows(windowed, 1024) == {0: 128, 1: 128}
    assert families.windows(windowed, 128) == {}
    assert families.has_plain_attention(windowed, 128)
    assert not families.has_plain_attention(windowed, 129)
