"""A target as it was found: configuration, tokenizer files, weights by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from jakiro_export.checkpoints import plain, quantised
from jakiro_export.checkpoints.json_file import read_object
from jakiro_export.checkpoints.memory import MemoryStore
from jakiro_export.checkpoints.quantised import QuantisedStore
from jakiro_export.checkpoints.safetensors import SafetensorsStore
from jakiro_export.checkpoints.store import TensorStore, same_rows
from jakiro_export.errors import ExportError, UsageError

_EMBEDDING, _PROJECTION = "model.embed_tokens.weight", "lm_head.weight"
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of training on several GPUs, left in names that were saved there


@dataclass
class Target:
    """A target: everything the exporter needs of it, weights not yet read where the format allows."""

    name: str
    path: Path
    config: PreTrainedConfig
    store: TensorStore
    generation: dict[str, Any]  # the content of generation_config.json; empty where there is none
    _model: nn.Module | None = None
    _tokenizer: Any = None

    @property
    def gguf(self) -> dict[str, str]:
        """The keyword transformers needs to read a GGUF file; empty for a folder."""
        return {"gguf_file": self.path.name} if self.path.suffix.lower() == ".gguf" else {}

    @property
    def folder(self) -> Path:
        return self.path.parent if self.gguf else self.path

    def model(self) -> nn.Module:
        """transformers' own model with its weights in float32, to compare with."""
        if self._model is None:
            self._model = self._unpacked() if isinstance(self.store, QuantisedStore) else _load(self.folder, self.gguf)
        return self._model

    def _unpacked(self) -> nn.Module:
        """transformers' model with the matrices that a quantised checkpoint stands for, without the quantiser's package."""
        config = copy.deepcopy(self.config)
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stored = self.tensor_name(name)
                rows = self.store.rows(stored, 0, self.store.shapes()[stored][0])
                parameter.copy_(torch.from_numpy(rows.astype(np.float32)))
        return model.eval()  # type: ignore[no-any-return]

    @property
    def quantised(self) -> str | None:
        """How the checkpoint's matrices are quantised, for reports; None where they are not."""
        return self.store.label if isinstance(self.store, QuantisedStore) else None

    def find(self, parameter: str) -> str | None:
        """The name in the checkpoint of a parameter of the model; None where there is no such tensor."""
        shapes, prefix = self.store.shapes(), "model."
        names = [parameter, parameter.removeprefix(prefix), prefix + parameter]
        names += [name.replace(".mlp.", ".block_sparse_moe.") for name in names if ".mlp." in name]  # Mixtral's own
        return next((before + name for before in ("", *_WRAPPERS) for name in names if before + name in shapes), None)

    def tensor_name(self, parameter: str) -> str:
        """The same; of a tied pair of which the checkpoint has one, that one.

        Raises:
            ExportError: the checkpoint has no such tensor.
        """
        found = self.find(parameter)
        if found is None and self.tied and parameter == _EMBEDDING:
            found = self.find(_PROJECTION)
        if found is None:
            raise ExportError(f"The target's checkpoint in {self.path} lacks the tensor {parameter}.")
        return found

    @property
    def tied(self) -> bool:
        """Whether the projection to logits is the token embedding."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def embedding_name(self) -> str:
        """The name in the checkpoint of the token embedding, [vocab, hidden]."""
        return self.tensor_name(_EMBEDDING)

    def projection_name(self) -> str:
        """The name in the checkpoint of the projection to logits, [vocab, hidden]: the embedding's where it is tied."""
        return self.embedding_name() if self.tied else self.tensor_name(_PROJECTION)

    @property
    def parameters(self) -> int:
        """How many numbers the model learned; a tied embedding counts once."""
        twice = self.find(_PROJECTION) if self.tied and self.find(_EMBEDDING) else None
        return sum(prod(shape) for name, shape in self.store.shapes().items() if name != twice)

    def eos_token_ids(self) -> list[int]:
        """The tokens that end an answer, from the generation configuration or, failing that, the model's."""
        ids = self.generation.get("eos_token_id")
        ids = ids if ids is not None else getattr(self.config, "eos_token_id", None)
        found = [] if ids is None else ids if isinstance(ids, list) else [ids]
        if not all(isinstance(each, int) for each in found):
            raise ExportError(f"The target in {self.folder} names {ids!r} as eos_token_id, where token ids are expected.")
        return found

    def tokenizer(self) -> Any:
        """transformers' tokenizer.

        Raises:
            ExportError: it is missing or damaged, or needs a package that is not installed
        """
        if self._tokenizer is None:
            self._check_sentencepiece()
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, **self.gguf)
            except Exception as error:  # a missing package, a damaged file, code that is not run: all are said in one sentence
                raise ExportError(f"There is no usable tokenizer with the target in {self.folder}: {_first(error)}") from error
        return self._tokenizer

    def _check_sentencepiece(self) -> None:
        """Raise ExportError for a SentencePiece tokenizer that cannot be read; transformers would ask for tiktoken."""
        bare = (self.folder / "tokenizer.model").is_file() and not (self.folder / "tokenizer.json").is_file()
        if bare and find_spec("sentencepiece") is None:
            raise ExportError(
                f"The target in {self.folder} has its tokenizer as tokenizer.model alone, and the package that reads it is "
                f"missing; pip install sentencepiece."
            )


def load_target(path: Path, name: str) -> Target:
    """Open a target without reading its weights, except where its format leaves no choice (GGUF, `.bin`).

    Raises:
        UsageError: `path` is not a model folder or GGUF file.
        ExportError: it is damaged, or transformers does not know it.
    """
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise UsageError(f"The target {path} is a file, but not a .gguf; give the folder that holds config.json.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"The target folder {path} has no config.json; a transformers model folder is expected.")
    gguf = {"gguf_file": path.name} if path.suffix.lower() == ".gguf" else {}
    folder = path.parent if gguf else path
    try:
        # code that comes with a checkpoint is never run; without a value transformers asks at the terminal
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
    except Exception as error:  # transformers and gguf raise many kinds for a damaged file; all mean the same here
        raise ExportError(f"The target's configuration in {path} cannot be read: {_first(error)}") from error
    packing = _packing(config, path) if not gguf else None
    generation = folder / "generation_config.json"
    settings = read_object(generation, "The target's generation configuration") if generation.is_file() and not gguf else {}
    files = _safetensors(folder) if not gguf else []
    if packing is not None and not files:
        raise ExportError(f"The quantised checkpoint in {path} has no model.safetensors; save it again as safetensors.")
    if files:
        store: TensorStore = SafetensorsStore(files)
        if packing is not None:
            store = QuantisedStore(store, packing)
            if not store.names:
                raise ExportError(
                    f"The checkpoint in {path} says that it is quantised ({packing.title}), but no matrix in it is."
                )
        target = Target(name, path, config, store, settings)
    else:
        model = _load(folder, gguf)
        target = Target(name, path, model.config, MemoryStore(model.state_dict()), settings, model)  # type: ignore[arg-type]
    matrices = (name for name, shape in target.store.shapes().items() if name.endswith(".weight") and len(shape) > 1)
    plain.check_tensors(target.store, matrices, path)
    _untie(target)
    target.eos_token_ids()
    return target


def _packing(config: PreTrainedConfig, path: Path) -> quantised.Layout | None:
    """How a quantised checkpoint packs its matrices; None for a plain one. ModelOpt may say so in a file of its own."""
    said: Any = getattr(config, "quantization_config", None)
    file = path / "hf_quant_config.json"
    if not said and file.is_file():
        said = {"quant_method": "modelopt", **read_object(file, "The target's quantisation")}
        config.quantization_config = said
    if said is None or (isinstance(said, Mapping) and not said):
        return None
    return quantised.layout(said if isinstance(said, Mapping) else said.to_dict(), path)


def _untie(target: Target) -> None:
    """A projection that differs from the embedding is used, whatever the configuration says; transformers does the same."""
    embedding, projection = target.find(_EMBEDDING), target.find(_PROJECTION)
    store = target.store
    if target.tied and embedding and projection and not same_rows(store, embedding, store, projection):
        target.config.tie_word_embeddings = False


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
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **gguf)
    except Exception as error:  # as above: damaged or unknown, said in one sentence; --debug shows the rest
        raise ExportError(f"The target in {folder} cannot be loaded: {_first(error)}") from error
    return model.eval()


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
