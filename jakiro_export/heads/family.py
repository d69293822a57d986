"""What a family of draft heads answers: how its checkpoint is recognised and read, and the graph that is drawn of it.

A family is one file of this package: a subclass of `DraftHead` under `@register`. The rest of the exporter knows heads by these
calls alone; which tree it grows is a choice of its own (`heads.trees`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from jakiro_export.artifact.weights import Picked, Stored, Weight
from jakiro_export.checkpoints import plain
from jakiro_export.checkpoints.head import HeadCheckpoint
from jakiro_export.checkpoints.target import Target
from jakiro_export.errors import ExportError
from jakiro_export.heads.config import HeadConfig, Shape, TreeShape
from jakiro_export.heads.model import DraftModel, DraftTree
from jakiro_export.heads.trees import DynamicBeam
from jakiro_export.precisions import AttentionImpl

Head = TypeVar("Head", bound="DraftHead")


class DraftHead(ABC):
    """A head that was read from a checkpoint. A subclass is a family.

    variant: the family's name in engine.json
    title: its name in sentences
    ignored: tensors, by prefix, that may be there and are not read: copies of the target's
    second_guess: one pass gives the token after next too, which the parallel step reads
    """

    variant: ClassVar[str]
    title: ClassVar[str]
    ignored: ClassVar[tuple[str, ...]] = ("embed_tokens", "lm_head")
    second_guess: ClassVar[bool] = True

    def __init__(self, checkpoint: HeadCheckpoint, config: HeadConfig) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.token_order = checkpoint.token_order(config.vocab)

    @classmethod
    @abstractmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        """Whether a checkpoint with this `config.json` and tensors of these shapes is one of the family."""

    @classmethod
    @abstractmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> HeadConfig:
        """The head's sizes. Raises KeyError for a missing field, ValueError for an unusable one."""

    @classmethod
    @abstractmethod
    def expected_shapes(cls, config: Any) -> dict[str, Shape]:
        """Every tensor of a head of these sizes and its shape, by published name."""

    @classmethod
    def expected_integers(cls, config: Any) -> dict[str, Shape]:
        """Tensors of integers that a head of these sizes has besides."""
        return {}

    @classmethod
    def read(cls: type[Head], checkpoint: HeadCheckpoint) -> Head:
        """The head of a checkpoint, checked tensor by tensor.

        Raises:
            ExportError: the configuration is unusable, a tensor is missing or mis-shaped, or one is there that the family lacks
        """
        shapes, what = checkpoint.store.shapes(), f"The {cls.title} head in {checkpoint.path}"
        try:
            config = cls.read_config(checkpoint.config, shapes)
        except ExportError:
            raise
        except Exception as error:  # transformers' own configurations raise many kinds
            raise ExportError(f"{what} has an unusable config.json ({type(error).__name__}: {error}).") from error
        expected, integers = cls.expected_shapes(config), cls.expected_integers(config)
        for name, shape in {**expected, **integers}.items():
            if name not in shapes:
                raise ExportError(f"{what} lacks the tensor {name}, expected with shape {list(shape)}.")
            if shapes[name] != shape:
                raise ExportError(f"{what}: tensor {name} has shape {list(shapes[name])}, expected {list(shape)}.")
        plain.check_tensors(checkpoint.store, expected, checkpoint.path)
        named = {*expected, *integers}
        extra = [name for name in shapes if name not in named and not name.startswith(cls.ignored)]
        if extra:
            raise ExportError(f"{what} has a tensor {extra[0]} that published ones do not have.")
        return cls(checkpoint, config)

    def check_values(self) -> None:
        """Raise ExportError where a weight is no finite number. Reads all of them."""
        for name in self.expected_shapes(self.config):
            for panel in Stored(self.checkpoint.store, name, np.dtype(np.float32)).panels():
                if not np.isfinite(panel).all():
                    raise ExportError(
                        f"The {self.title} head in {self.checkpoint.path} has a weight in {name} that is no finite number; "
                        f"download it again, or train on from an earlier step."
                    )

    @property
    def dialect(self) -> str:
        """In whose format the checkpoint is."""
        return "published"

    @property
    def parameters(self) -> int:
        """How many numbers the head learned."""
        return sum(int(np.prod(shape)) for shape in self.expected_shapes(self.config).values())

    @property
    def summary(self) -> str:
        """One line for reports."""
        return f"{self.title}, {self.parameters / 1e6:.2f} M parameters"

    @property
    def flags(self) -> dict[str, bool]:
        """What one checkpoint of the family has and another lacks, such as biases."""
        values = {field.name: getattr(self.config, field.name) for field in fields(self.config)}
        return {name: value for name, value in values.items() if isinstance(value, bool)}

    @property
    def reads(self) -> str:
        """What the head reads of its target, in words."""
        return "the features after the final norm"

    def feature_layers(self, count: int) -> tuple[int, ...]:
        """The layers whose inputs the head reads of a target of `count` layers, ascending; none where it reads no layer's input.

        Raises:
            ExportError: the target lacks one of them
        """
        return ()

    @property
    def frequency(self) -> str:
        """By what `token_map` chooses: "most frequent" where the checkpoint says how frequent tokens are, else "lowest"."""
        return "most frequent" if self.token_order is not None else "lowest-numbered"

    @property
    def window(self) -> int | None:
        """How many positions its attention sees; None for all."""
        return None

    @property
    def num_experts(self) -> int:
        """Experts that the layer mixes."""
        return 1

    def tree(self, shape: TreeShape) -> DraftTree:
        """The tree it drafts: a beam of the shape asked for, unless the family has a tree of its own."""
        return DynamicBeam(replace(shape, parallel=shape.parallel and self.second_guess))

    def token_map(self, draft_vocab: int | None) -> np.ndarray | None:
        """The tokens that the head proposes, ascending [draft_vocab]; None where it proposes all.

        The checkpoint may say how often each token occurs. Where it does not, low ids are kept: byte-pair vocabularies are
        numbered in the order of their merges, which is nearly the order of frequency.
        """
        vocab, order = self.config.vocab, self.token_order
        if draft_vocab is None or draft_vocab >= vocab:
            return None
        if order is None:
            order = np.arange(vocab)
        if len(order) < draft_vocab:
            order = np.concatenate([order, np.setdiff1d(np.arange(vocab), order)])
        return np.sort(order[:draft_vocab]).astype(np.int64)

    @abstractmethod
    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> DraftModel:
        """The draft phase as a torch module with empty parameters.

        Args:
            draft_vocab: rows of the projection; None for the whole vocabulary
        """

    def stored(self, dtype: np.dtype) -> Callable[[str], Stored]:
        """The recipe of a tensor of the checkpoint, by its published name, cast to `dtype`."""
        return lambda name: Stored(self.checkpoint.store, name, dtype)

    @abstractmethod
    def layer_weights(self, dtype: np.dtype) -> dict[str, Weight]:
        """The recipes of the model's parameters under `head.`, by name."""

    def vocabulary_weights(self, target: Target, dtype: np.dtype, token_map: np.ndarray | None) -> dict[str, Weight]:
        """The recipes of embedding and projection: the target's. A family with its own overrides this."""
        embedding, projection = target.embedding_name(), target.projection_name()
        weights: dict[str, Weight] = {"embedding": Stored(target.store, embedding, dtype)}
        if token_map is None:
            weights["projection"] = Stored(target.store, projection, dtype)
        else:
            weights["projection"] = Picked(target.store, projection, dtype, token_map)
        return weights
