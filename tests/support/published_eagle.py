"""EAGLE's published code, as it stands, against the plain arithmetic: `python tests/support/published_eagle.py CHECKOUT`.

CHECKOUT is a clone of github.com/SafeAILab/EAGLE; its code runs, so take one that you trust. Random heads of both generations
draft trees of several shapes, which must be the same in tokens and parents. Exit status 1 where one is not.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import tiny
from reference_draft import Node, PlainEagle, PlainEagle3

SHAPES = ((5, 8, 59), (3, 4, 20), (2, 3, 10))  # depth, top_k and nodes
HEADS = 12


def published(checkout: Path) -> tuple[Any, Any, Any]:
    """The modules of configuration, EAGLE-3 and EAGLE, without what their packages import besides."""
    for name in ("eagle", "eagle.model"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    return tuple(importlib.import_module(f"eagle.model.{name}") for name in ("configs", "cnets", "cnets1"))  # type: ignore[return-value]


def theirs(model: Any, states: torch.Tensor, tokens: torch.Tensor, projection: torch.nn.Module | None) -> set[tuple[int, ...]]:
    """The paths of a tree, by their tokens."""
    drafted, _, mask, _ = model.topK_genrate(states, tokens, projection, None)
    row = drafted[0].tolist()
    return {tuple(row[n] for n in range(1, len(row)) if seen[n]) for seen in mask[0, 0].bool().tolist()[1:]}


def ours(nodes: list[Node]) -> set[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for node in nodes:
        paths.append((*paths[node.parent], node.token))
    return set(paths[1:])


@torch.no_grad()
def agree(modules: tuple[Any, Any, Any], folder: Path, eagle3: bool, seed: int) -> bool:
    """Whether one random head drafts the same tree both ways."""
    configs, cnets, cnets1 = modules
    torch.manual_seed(seed)
    depth, top_k, nodes = SHAPES[seed % len(SHAPES)]
    head = tiny.make_eagle3_head(folder, "SafeAILab", seed=seed) if eagle3 else tiny.make_eagle_head(folder, seed=seed)
    given, weights = json.loads((head / "config.json").read_text()), load_file(head / "model.safetensors")
    config = configs.EConfig(**{**given, "hidden_act": "silu"})
    config.pad_token_id, config.rope_scaling = 0, None
    embedding, length = torch.randn(tiny.VOCAB, 48), 4 + seed
    options = {"total_tokens": nodes + 1, "depth": depth, "top_k": top_k}
    model = cnets.Model(config, **options) if eagle3 else cnets1.Model(config, bias=given["bias"], **options)
    model.load_state_dict({**weights, "embed_tokens.weight": embedding})
    model.eval().init_tree()
    projection = torch.nn.Linear(48, tiny.VOCAB, bias=False)
    projection.weight.data = embedding
    tokens, states = torch.randint(3, tiny.VOCAB, (1, length + 1)), torch.randn(1, length, 144 if eagle3 else 48)
    found = theirs(model, states, tokens, projection)
    plain = (PlainEagle3 if eagle3 else PlainEagle)(weights, embedding, 6, 2, 10000.0)
    accepted = (tokens[0, 1:].tolist(), states[0], list(range(length)), [])
    return found == ours(plain.tree(*accepted, depth, top_k, nodes, parallel=False))


def main(checkout: Path) -> int:
    modules, wrong = published(checkout), 0
    with tempfile.TemporaryDirectory() as folder:
        for name, eagle3 in (("EAGLE-3", True), ("EAGLE", False)):
            same = [agree(modules, Path(folder) / f"{name}{seed}", eagle3, seed) for seed in range(HEADS)]
            print(f"{name}: {sum(same)} of {HEADS} trees are the same")
            wrong += same.count(False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
