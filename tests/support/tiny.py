"""A tiny target and a tiny head with random weights, in the formats users bring. Seconds, not minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jakiro_export.checkpoints.target import load_target
from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.eagle import EagleHead
from jakiro_export.heads.jakiro import JakiroHead
from jakiro_export.heads.jakiro_star import JakiroStarConfig, JakiroStarHead
from jakiro_export.heads.layer import read_layer
from jakiro_export.heads.registry import load_head
from jakiro_export.plan import DraftPlan
from jakiro_export.precisions import PRECISIONS

VOCAB = 320
Tensors = dict[str, torch.Tensor]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: 256 bytes, a few special tokens, and unused numbers up to VOCAB."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|pad|>": 0, "<|start|>": 1, "<|end|>": 2}
    vocab.update({symbol: 3 + number for number, symbol in enumerate(alphabet)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_target(folder: Path, seed: int = 0, layers: int = 3, **config: object) -> Path:
    """A random Llama of some 100 k parameters, saved as transformers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **config})).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def head_config(**changes: object) -> dict[str, object]:
    """The config.json of a head that fits `make_target`."""
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "bias": True,
    }
    return {**config, **changes}


def head_tensors(config: dict[str, object], seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights of a Jakiro head under the published names."""
    return random_tensors(JakiroHead.expected_shapes(JakiroHead.read_config(config, {})), seed)


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5)
        if len(shape) > 1
        else 1 + 0.1 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def make_star_head(folder: Path, third: bool, seed: int = 1) -> Path:
    """A random Jakiro* head in the published format, its experts of two matrices or three."""
    folder.mkdir(parents=True, exist_ok=True)
    config = head_config()
    sizes = JakiroStarConfig(**read_layer(config), experts=2, third=third, inner=48 if third else 96)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(JakiroStarHead.expected_shapes(sizes), seed), folder / "model.safetensors")
    return folder


def make_eagle_head(folder: Path, seed: int = 1, biases: bool = False, **changes: object) -> Path:
    """A random EAGLE head in the published format; biases: with those of queries, keys and values, as for Qwen2."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in head_config(**changes).items() if "experts" not in key}
    shapes = {"layers.0.self_attn.q_proj.bias": (48,)} if biases else {}
    tensors = random_tensors(EagleHead.expected_shapes(EagleHead.read_config(config, shapes)), seed)
    tensors["embed_tokens.weight"] = torch.zeros(VOCAB, 48)  # published ones hold a copy of the target's, which is not read
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


# What the projects that publish EAGLE-3 heads write into config.json, and how they call the first layer's tensors. Each of these
# reads the inputs of layers 1, 3 and 4 of a target, but for SafeAILab's, which names none.
EAGLE3_DIALECTS: dict[str, dict[str, object]] = {
    "SafeAILab": {"architectures": ["LlamaForCausalLM"]},
    "SpecForge": {
        "architectures": ["LlamaForCausalLMEagle3"],
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3]},
        "fc_norm": True,
        "norm_output": True,
    },
    "AngelSlim": {
        "architectures": ["Eagle3LlamaForCausalLM"],
        "target_model_type": "llama",
        "aux_hidden_state_layer_ids": [1, 3, 4],
    },
    "ModelOpt": {
        "architectures": ["LlamaForCausalLMEagle3"],
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3], "use_aux_hidden_state": True},
    },
    "speculators": {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "eagle_aux_hidden_state_layer_ids": [1, 3, 4],
        "norm_before_residual": True,
        "norm_before_fc": True,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "some/target"}},
    },
    "DeepSpec": {
        "architectures": ["Qwen3Eagle3Model"],
        "target_layer_ids": [0, 2, 3],
        "target_model_name_or_path": "some/target",
    },
}
_IN_LAYERS = ("ModelOpt", "speculators", "DeepSpec")
_QWEN3 = ("speculators", "DeepSpec")  # whose layers norm queries and keys


def eagle3_config(dialect: str, **changes: object) -> dict[str, object]:
    """The config.json of an EAGLE-3 head that fits `make_target`, in a project's format."""
    layer = {key: value for key, value in head_config().items() if "experts" not in key and key not in ("bias", "architectures")}
    layer["head_dim"] = 8
    if dialect in _QWEN3:
        layer["model_type"] = "qwen3"
    config = {**EAGLE3_DIALECTS[dialect], "draft_vocab_size": VOCAB if dialect == "DeepSpec" else 200, **changes}
    if dialect != "speculators":
        return {**layer, **config}
    inner = {key: config.pop(key, value) for key, value in layer.items()}
    more = {key: config.pop(key) for key in ("rope_theta", "layer_types", "sliding_window") if key in config}
    return {**config, "transformer_layer_config": {**inner, **more}}


def eagle3_tensors(dialect: str, config: dict[str, object], seed: int = 1, layers: int = 1, biases: bool = False) -> Tensors:
    """Random weights of such a head under the names of its project; d2t skips every third token."""
    told: dict[str, Any] = {**config, **config.get("transformer_layer_config", {})}  # type: ignore[dict-item]
    hidden, width = told["hidden_size"], told.get("target_hidden_size", told["hidden_size"])
    heads, kv, dim, inner = (told[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"))
    named = told.get("target_layer_ids", [0, 1, 2])
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (hidden, len(named) * width), "norm.weight": (hidden,)}
    if told.get("fc_norm"):
        shapes.update({f"fc_norm.{n}.weight": (width,) for n in range(len(named))})
    if told.get("norm_before_fc"):
        shapes["input_norm.weight"] = (len(named) * width,)
    first = "layers.0." if dialect in _IN_LAYERS else "midlayer."
    shapes[f"{first}hidden_norm.weight"] = (hidden,)
    for number in range(layers):
        prefix, inputs = (f"layers.{number}.", hidden) if number else (first, 2 * hidden)
        for name, size in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (size, inputs)
            if biases:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, heads * dim)
        if biases:
            shapes[f"{prefix}self_attn.o_proj.bias"] = (hidden,)
        if dialect in _QWEN3:
            shapes.update({f"{prefix}self_attn.{name}_norm.weight": (dim,) for name in ("q", "k")})
        shapes.update({f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")})
        shapes.update({f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")})
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    shapes["lm_head.weight"] = (told["draft_vocab_size"], hidden)
    if dialect == "DeepSpec" or hidden != width:
        shapes["embed_tokens.weight"] = (told["vocab_size"], hidden)
    tensors = random_tensors(shapes, seed)
    if told["draft_vocab_size"] < told["vocab_size"]:
        kept = [token for token in range(told["vocab_size"]) if token % 3][: told["draft_vocab_size"]]
        tensors["d2t"] = torch.tensor(kept) - torch.arange(len(kept))
        tensors["t2d"] = torch.isin(torch.arange(told["vocab_size"]), torch.tensor(kept))
    return tensors


def make_eagle3_head(
    folder: Path, dialect: str = "ModelOpt", seed: int = 1, layers: int = 1, biases: bool = False, **changes: object
) -> Path:
    """A random EAGLE-3 head as a project publishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = eagle3_config(dialect, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(eagle3_tensors(dialect, config, seed, layers, biases), folder / "model.safetensors")
    return folder


def make_jakiro3_head(folder: Path, seed: int = 1, **changes: object) -> Path:
    """A random Jakiro-3 head, which reads the inputs of layers 1, 3 and 4 and projects by the target's matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**head_config(), "architectures": ["Jakiro3Head"], "head_dim": 8, **changes}
    config = {"aux_hidden_state_layer_ids": [1, 3, 4], **config}
    tensors = eagle3_tensors("SafeAILab", {**config, "draft_vocab_size": VOCAB}, seed)
    tensors = {name: tensor for name, tensor in tensors.items() if ".mlp." not in name and name != "lm_head.weight"}
    for name, tensor in head_tensors(config, seed).items():
        if ".mlp_moe." in name:
            tensors[name.replace("layers.0.", "midlayer.")] = tensor
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def make_gumiho_head(folder: Path, seed: int = 1, mlps: int = 3, nested: bool = False, **changes: object) -> Path:
    """A random Gumiho head in the published format: two layers, MLPs of three blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**head_config(**changes), "num_hidden_layers": 2}
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (48, 96), "fc.bias": (48,), "layers.1.input_layernorm.weight": (48,)}
    for number in range(2):
        prefix = f"layers.{number}."
        shapes.update({f"{prefix}self_attn.{name}_proj.weight": (size, 48) for name, size in (("q", 48), ("k", 16), ("v", 16))})
        shapes[f"{prefix}self_attn.o_proj.weight"] = (48, 48)
        shapes.update({f"{prefix}mlp.{name}_proj.weight": (96, 48) for name in ("gate", "up")})
        shapes[f"{prefix}mlp.down_proj.weight"] = (48, 96)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (48,)
    for mlp in range(mlps):
        for block in range(3):
            base = f"{'mlp.' if nested else ''}mlp.{mlp}.{block}.linear."
            shapes.update({f"{base}weight": (48, 48 if block else 96), f"{base}bias": (48,)})
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if "experts" not in key}))
    save_file(random_tensors(shapes, seed), folder / "model.safetensors")
    return folder


def make_head(folder: Path, seed: int = 1, **changes: object) -> Path:
    """A random head in the published format (safetensors)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = head_config(**changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(head_tensors(config, seed), folder / "model.safetensors")
    return folder


def draft_plan(target: Path, head: Path, shape: TreeShape, draft_vocab: int | None = None, opset: int = 23) -> DraftPlan:
    """How a head's draft graph with a tree of this shape is written, in fp32."""
    found = load_head(head, "head")
    token_map = found.token_map(draft_vocab)
    return DraftPlan(found, load_target(target, "target"), found.tree(shape), token_map, PRECISIONS["fp32"], opset)


def make_engine(out: Path, target: Path, head: Path, **settings: object) -> Path:
    """Export a tiny target and head; settings are fields of `ExportOptions`, its tree smaller by default."""
    from rich.console import Console

    from jakiro_export.export import export
    from jakiro_export.plan import ExportOptions
    from jakiro_export.report import Report

    small = {"depth": 3, "top_k": 4, "nodes": 12}
    export(ExportOptions(str(head), str(target), out, **{**small, **settings}), Report(Console(quiet=True)))
    return out


def make_tiny_engine(folder: Path, **settings: object) -> Path:
    """A whole tiny engine from nothing, in `folder / "engine"`."""
    target, head = make_target(folder / "target"), make_head(folder / "head")
    return make_engine(folder / "engine", target, head, **settings)
