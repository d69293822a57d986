"""A tiny target and a tiny head with random weights, in the formats users bring. Seconds, not minutes."""

from __future__ import annotations

import json
from pathlib import Path

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
