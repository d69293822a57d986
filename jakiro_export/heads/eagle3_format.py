"""The formats of published EAGLE-3 heads: one arithmetic under several conventions, told apart from config and tensors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jakiro_export.errors import ExportError
from jakiro_export.heads.config import Shape
from jakiro_export.heads.eagle import EagleConfig, check_activation
from jakiro_export.heads.layer import read_layer

MIDLAYER, LAYERS = "midlayer.", "layers.0."  # what the first layer's tensors are called
# Where a config.json may name the layers, and how far a number there is from the layer whose input it means
_LAYER_FIELDS = (
    (("eagle_aux_hidden_state_layer_ids",), 0),
    (("aux_hidden_state_layer_ids",), 0),
    (("target_layer_ids",), 1),
    (("eagle_config", "eagle_aux_hidden_state_layer_ids"), 1),
)
_STATES = 3  # that the fc reads, where no field says how many
_WINDOWED = "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(EagleConfig):
    """The sizes of an EAGLE-3 head, and what its dialect leaves open.

    dialect: the project in whose format it is
    prefix: of the first layer's tensors
    states: how many of the target's layers the fc reads; 0 where the head has no fc and reads the features after the final norm
    target_width: of the target
    named_layers: the layers whose inputs they are; None where the config does not name them
    draft_vocab: tokens that it proposes
    own_projection: it projects by a matrix of its own
    norm_before_fc: the fc reads its states normed together
    fc_norm: the fc reads each state normed by itself
    norm_before_residual: the attention is added to the normed feature
    norm_output: a child continues the feature after the final norm
    window: positions that its attention sees, where that is not all of them
    """

    dialect: str
    prefix: str
    states: int
    target_width: int
    named_layers: tuple[int, ...] | None
    draft_vocab: int
    own_projection: bool
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    window: int | None = None

    @property
    def target_hidden(self) -> int:
        return self.target_width

    @property
    def fc_inputs(self) -> int:
        return self.states * self.target_width

    def layer_prefix(self, number: int) -> str:
        """Of a layer's tensors."""
        return self.prefix if number == 0 else f"layers.{number}."


def is_eagle3(shapes: Mapping[str, Shape]) -> bool:
    """Whether tensors are an EAGLE-3 head's: its first layer's queries read an embedding and a feature."""
    for prefix in (MIDLAYER, LAYERS):
        query, out = shapes.get(f"{prefix}self_attn.q_proj.weight", ()), shapes.get(f"{prefix}self_attn.o_proj.weight", ())
        if len(query) == len(out) == 2 and query[1] == 2 * out[0]:
            return True
    return False


def has_experts(shapes: Mapping[str, Shape]) -> bool:
    """Whether the first layer mixes experts, as Jakiro-3's does."""
    return f"{MIDLAYER}mlp_moe.gate.weight" in shapes


def read_eagle3(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Eagle3Config:
    """The sizes and flags of an EAGLE-3 head of any dialect.

    Raises:
        KeyError: a field is missing
        ExportError: it is of a kind that this exporter does not run, or contradicts itself
    """
    named = " ".join([*(config.get("architectures") or ()), str(config.get("speculators_model_type", ""))])
    if "peagle" in named.lower().replace("-", ""):
        raise ExportError("The head is a P-EAGLE head, which drafts all tokens at once from mask tokens; it is not supported.")
    inner: Mapping[str, Any] = config.get("transformer_layer_config") or config
    check_activation(inner)
    prefix = MIDLAYER if f"{MIDLAYER}self_attn.q_proj.weight" in shapes else LAYERS
    layer = read_layer(inner)
    layer["qkv_bias"] = f"{prefix}self_attn.q_proj.bias" in shapes
    layer["o_bias"] = f"{prefix}self_attn.o_proj.bias" in shapes
    layer["qk_norm"] = f"{prefix}self_attn.q_norm.weight" in shapes
    layer["fc_bias"] = "fc.bias" in shapes
    layer["layers"] = 1 + sum(1 for number in range(1, 64) if f"layers.{number}.self_attn.q_proj.weight" in shapes)
    width = int(config.get("target_hidden_size") or layer["hidden"])
    layers = _named_layers(config)
    own_projection = "lm_head.weight" in shapes
    return Eagle3Config(
        **layer,
        inner=int(inner["intermediate_size"]),
        dialect=_dialect(config, prefix),
        prefix=prefix,
        states=_states(config, shapes, width, layers),
        target_width=width,
        named_layers=layers,
        draft_vocab=int(config.get("draft_vocab_size") or shapes.get("lm_head.weight", (layer["vocab"],))[0]),
        own_projection=own_projection,
        norm_before_fc=bool(config.get("norm_before_fc", False)),
        fc_norm=bool(config.get("fc_norm", False)),
        norm_before_residual=bool(config.get("norm_before_residual", False)),
        norm_output=bool(config.get("norm_output", False)),
        window=_window(inner),
    )


def _dialect(config: Mapping[str, Any], prefix: str) -> str:
    names = set(config.get("architectures") or ())
    if "transformer_layer_config" in config:
        return "speculators"
    if "target_layer_ids" in config:
        return "DeepSpec"
    if "Eagle3LlamaForCausalLM" in names or "target_model_type" in config:
        return "AngelSlim"
    if prefix == LAYERS:
        return "ModelOpt"
    return "SpecForge" if "LlamaForCausalLMEagle3" in names else "SafeAILab"


def _named_layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The layers whose inputs the head reads, by whatever field names them. Raises ExportError where fields contradict."""
    found: dict[str, tuple[int, ...]] = {}
    for path, shift in _LAYER_FIELDS:
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            continue
        name = ".".join(path)
        if not isinstance(value, Sequence) or not all(type(each) is int for each in value):
            raise ExportError(f"The head's {name} is {value!r}; a list of layer numbers was expected.")
        layers = tuple(each + shift for each in value)
        if list(layers) != sorted(set(layers)) or (layers and layers[0] < 0):
            raise ExportError(f"The head's {name} is {list(value)}; ascending layer numbers were expected.")
        found[name] = layers
    if len(set(found.values())) > 1:
        (one, ours), (other, theirs) = list(found.items())[:2]
        raise ExportError(
            f"The head's config.json contradicts itself: its {one} means the inputs of layers {list(ours)}, its {other} those "
            f"of {list(theirs)}; leave the one that it was trained with."
        )
    return next(iter(found.values()), None) or None


def _states(config: Mapping[str, Any], shapes: Mapping[str, Shape], width: int, layers: tuple[int, ...] | None) -> int:
    """How many of the target's layers the fc reads."""
    nested = config.get("eagle_config")
    if "fc.weight" not in shapes and isinstance(nested, Mapping) and nested.get("use_aux_hidden_state") is False:
        return 0
    inputs = shapes.get("fc.weight", (0, 0))[-1]
    if layers is not None and "fc.weight" in shapes and inputs != len(layers) * width:
        raise ExportError(
            f"The head's fc reads {inputs} numbers, but its config.json names {len(layers)} layers of {width}; both must agree."
        )
    return len(layers) if layers is not None else _STATES


def _window(config: Mapping[str, Any]) -> int | None:
    """Positions that the layers see; None for all."""
    windowed = _WINDOWED in (config.get("layer_types") or ()) or config.get("use_sliding_window", False)
    return int(config.get("sliding_window") or 0) or None if windowed else None
