"""A target as it was found: configuration, tokenizer files, weights by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from jakiro_export.checkpoints.json_file import read_object
from jakiro_export.checkpoints.memory import MemoryStore
from jakiro_export.checkpoints.safetensors import SafetensorsStore
from jakiro_export.checkpoints.store import TensorStore
from jakiro_export.errors import ExportError, UsageError


@dataclass
class Target:
    """A target: everything the exporter needs of it, weights not yet read where the format allows."""

    name: str
    path: Path
    config: PreTrainedConfig
    store: TensorStore
    _model: nn.Module | None = None

    @property
    def gguf(self) -> dict[str, str]:
        """The keyword transformers needs to read a GGUF file; empty for a folder."""
        return {"gguf_file": self.path.name} if self.path.suffix == ".gguf" else {}

    @property
    def folder(self) -> Path:
        return self.path.parent if self.gguf else self.path

    def model(self) -> nn.Module:
        """transformers' own model with its weights in float32, to compare with."""
        if self._model is None:
            self._model = _load(self.folder, self.gguf)
        return self._model

    def tensor_name(self, parameter: str) -> str:
        """The name in the checkpoint of a parameter of the model.

        Raises:
            ExportError: the checkpoint has no such tensor.
        """
        shapes = self.store.shapes()
        prefix = "model."
        for name in (parameter, parameter.removeprefix(prefix), prefix + parameter):
            if name in shapes:
                return name
        raise ExportError(f"The target's checkpoint in {self.path} lacks the tensor {parameter}.")

    def embedding_name(self) -> str:
        """The name in the checkpoint of the token embedding, [vocab, hidden]."""
        return self.tensor_name("model.embed_tokens.weight")

    def projection_name(self) -> str:
        """The name in the checkpoint of the projection to logits, [vocab, hidden]: the embedding's where it is tied."""
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        return self.embedding_name() if tied else self.tensor_name("lm_head.weight")

    @property
    def parameters(self) -> int:
        """How many numbers the model learned; a tied embedding counts once."""
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        shapes = self.store.shapes().items()
        return sum(prod(shape) for name, shape in shapes if not (tied and name == "lm_head.weight"))

    def eos_token_ids(self) -> list[int]:
        """The tokens that end an answer, from the generation configuration or, failing that, the model's."""
        ids = self.generation_config().get("eos_token_id")
        ids = ids if ids is not None else getattr(self.config, "eos_token_id", None)
        if ids is None:
            return []
        return [int(n) for n in ids] if isinstance(ids, Iterable) else [int(ids)]

    def generation_config(self) -> dict[str, Any]:
        """The folder's `generation_config.json`; empty where there is none. Raises ExportError where it is damaged."""
        file = self.folder / "generation_config.json"
        if self.gguf or not file.is_file():
            return {}
        return read_object(file, "The target's generation configuration")

    def tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self.folder, **self.gguf)
        except (OSError, ValueError, KeyError) as error:
            raise ExportError(f"There is no usable tokenizer with the target in {self.folder}: {_first(error)}") from error


def load_target(path: Path, name: str) -> Target:
    """Open a target without reading its weights, except where its format leaves no choice (GGUF, `.bin`).

    Raises:
        UsageError: `path` is not a model folder or GGUF file.
        ExportError: it is damaged, or transformers does not know it.
    """
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError(f"The target {path} is a file, but not a .gguf; give the folder that holds config.json.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"The target folder {path} has no config.json; a transformers model folder is expected.")
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if gguf else path
    try:
        config = AutoConfig.from_pretrained(folder, **gguf)
    except Exception as error:  # transformers and gguf raise many kinds for a damaged file; all mean the same here
        raise ExportError(f"The target's configuration in {path} cannot be read: {_first(error)}") from error
    files = _safetensors(folder) if not gguf else []
    if files:
        return Target(name, path, config, SafetensorsStore(files))
    model = _load(folder, gguf)
    return Target(name, path, model.config, MemoryStore(model.state_dict()), model)  # type: ignore[arg-type]


def _safetensors(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("model.safetensors"))
    places = read_object(index, "The target's index").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ExportError(f"The target's index {index} lacks its weight_map: which tensor lies in which file; download it again.")
    names = sorted(set(places.values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ExportError(f"The target in {folder} is incomplete: its index names {missing[0]}, which is not there.")
    return [folder / name for name in names]


def _load(folder: Path, gguf: dict[str, str]) -> nn.Module:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf)
    except Exception as error:  # as above: damaged or unknown, said in one sentence; --debug shows the rest
        raise ExportError(f"The target in {folder} cannot be loaded: {_first(error)}") from error
    return model.eval()


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
