"""What each scheme for GPUs costs a target: perplexity and agreement of the best tokens with float32, on the sample text.

    python -m jakiro_export.verification.formats smollm2-135m

Computed in torch with the numbers that an export would write, activations rounded where the scheme rounds them; attention, norms
and the embedding stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.artifact.weights import Stored, Transposed, Weight, nbytes
from jakiro_export.checkpoints.locate import locate
from jakiro_export.checkpoints.target import Target, load_target
from jakiro_export.ops import fp4
from jakiro_export.quantization.recipe import LOGITS, RECIPES
from jakiro_export.quantization.scaling import TOKENS, scale_by_activations
from jakiro_export.quantization.scheme import Scheme
from jakiro_export.quantization.schemes import GPU_SCHEMES
from jakiro_export.verification.text import surprise

_SAMPLE = Path(__file__).with_name("sample.txt")
_HALF = np.dtype(np.float16)


class Row(NamedTuple):
    """A scheme's figures. bits: of a weight of a layer, scales included; rise, differ: shares, against float32."""

    name: str
    bits: float
    perplexity: float
    rise: float
    differ: float


def dequantised(weights: dict[str, Weight]) -> np.ndarray:
    """The matrix [out, in] that a scheme's initializers stand for, float32."""
    by = {name.rpartition(".")[2]: weight for name, weight in weights.items() if not name.startswith("row.")}

    def values(weight: Weight) -> np.ndarray:
        if isinstance(weight, Transposed):  # as the scheme has it: [out, in]
            return np.concatenate(list(weight.weight.panels()))
        return np.concatenate(list(weight.panels())) if weight.shape else next(iter(weight.panels()))

    scales = values(by["scales"]).astype(np.float32)
    if "fp4" in by:
        packed = values(by["fp4"])  # two outputs a byte
        codes = np.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[1])
        table = np.array([*fp4.VALUES, *(-value for value in fp4.VALUES)], np.float32)
        steps, scales = table[codes], scales * values(by["shared"]).astype(np.float32)
    else:
        steps = values(next(by[kind] for kind in ("int4", "int8", "fp8") if kind in by)).astype(np.float32)
    scales = scales.reshape(len(steps), -1)
    group = steps.shape[1] // scales.shape[1]
    found: np.ndarray = (steps.reshape(len(steps), -1, group) * scales[..., None]).reshape(steps.shape)
    if "offsets" in by:
        found = found + np.repeat(values(by["offsets"]).astype(np.float32), group, 1)
    return found


def rounded_rows(name: str) -> Callable[[Tensor], Tensor] | None:
    """What a scheme does to activations; None for nothing."""

    def rows(x: Tensor, round_: Callable[[Tensor], Tensor]) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp(min=2.0**-14)
        return round_(x / largest) * largest

    if name == "w8a8":
        return lambda x: rows(x, lambda v: (v * 127).round() / 127)
    if name == "fp8":
        return lambda x: rows(x, lambda v: (v * 256).to(torch.float8_e4m3fn).float() / 256)
    if name == "nvfp4":
        return lambda x: rows(x, fp4.round_fp4)
    return None


@torch.no_grad()
def figures(
    target: Target, scheme: Scheme | None, tokens: np.ndarray, logits_scheme: Scheme | None = None
) -> tuple[np.ndarray, float]:
    """The logits [tokens, vocab] of the target with its layers' matrices in a scheme, and the bits of a weight."""
    model, hooks, bits, count, kept = target.model(), [], 0, 0, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        used = scheme if ".layers." in name else logits_scheme
        shape = tuple(module.weight.shape)
        if used is None or not used.fits(shape):
            continue
        stored = target.tensor_name(f"{name}.weight") if ".layers." in name else target.projection_name()
        weights = used.initializers(Stored(target.store, stored, _HALF), name)
        kept[module] = module.weight
        module.weight = nn.Parameter(torch.from_numpy(dequantised(weights)), requires_grad=False)
        if ".layers." in name:
            bits += 8 * sum(nbytes(weight) for key, weight in weights.items() if not key.startswith("row."))
            count += shape[0] * shape[1]
        change = rounded_rows(used.name)
        if change is not None:
            hooks.append(module.register_forward_pre_hook(lambda _, args, change=change: (change(args[0]),)))  # type: ignore[misc]
    gains = _scaled_gains(target, model)
    try:
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in kept.items():
            module.weight = weight
        for parameter, before in gains:
            parameter.copy_(before)
    return logits, bits / max(1, count)


def _scaled_gains(target: Target, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Norms' gains as the store has them, where factors were exchanged; what they were."""
    rows = getattr(target.store, "rows_by", {})
    changed = []
    for name, parameter in model.named_parameters():
        stored = target.tensor_name(name) if parameter.ndim == 1 else ""
        if stored in rows:
            changed.append((parameter.data, parameter.detach().clone()))
            parameter.data.copy_(torch.from_numpy(target.store.rows(stored, 0, len(parameter)).astype(np.float32)))
    return changed


def table(target: Target, names: list[str]) -> Iterator[Row]:
    """A row for float32 and for each scheme; "NAME+scaling" has factors exchanged for it first."""
    tokenizer: Any = target.tokenizer()
    tokens = np.array(tokenizer(_SAMPLE.read_text(encoding="utf-8"))["input_ids"], np.int64)[:TOKENS]
    exact, _ = figures(target, None, tokens)
    before = surprise(exact, tokens)
    yield Row("float32", 32, float(np.exp(before)), 0, 0)
    plain = target.store
    for name in names:
        scheme = GPU_SCHEMES[name.removesuffix("+scaling")]
        if name.endswith("+scaling"):
            scale_by_activations(target)
        try:
            logits, bits = figures(target, scheme, tokens, _logits_scheme(scheme.name))
        finally:
            target.store = plain
        after = surprise(logits, tokens)
        differ = float((logits.argmax(-1) != exact.argmax(-1)).mean())
        yield Row(name, bits, float(np.exp(after)), float(np.exp(after - before) - 1), differ)


def _logits_scheme(name: str) -> Scheme | None:
    """What the precision with this scheme in its layers gives the projection to logits."""
    recipe = RECIPES["w4a16" if name.startswith("w4") else "fp8" if name.startswith(("fp8", "nvfp4")) else "w8a8"]
    return recipe.scheme(LOGITS, (2, 16), (LOGITS,))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("target")
@click.option(
    "--scheme", "names", multiple=True, metavar="NAME", help="Schemes, each with +scaling where AWQ's factors are wanted."
)
def main(target: str, names: tuple[str, ...]) -> None:
    """Print the table of a target."""
    from jakiro_export.errors import UsageError
    from jakiro_runtime.errors import cli_errors

    with cli_errors(False):
        wrong = next((each for each in names if each.removesuffix("+scaling") not in GPU_SCHEMES), None)
        if wrong is not None:
            raise UsageError(f"There is no scheme {wrong!r}; there are {', '.join(GPU_SCHEMES)}.")
        chosen = list(names) or [
            "w8a16",
            "w8a8",
            "fp8",
            "w4-nearest",
            "w4-nearest+scaling",
            "w4",
            "w4g32",
            "w4z",
            "w4zg32",
            "nvfp4a16",
            "nvfp4",
        ]
        click.echo("| scheme | bits a weight | perplexity | above float32 | other best tokens |\n| --- | --- | --- | --- | --- |")
        for row in table(load_target(locate(target, "target"), target), chosen):
            click.echo(f"| {row.name} | {row.bits:.2f} | {row.perplexity:.2f} | {row.rise:+.1%} | {row.differ:.1%} |")


if __name__ == "__main__":
    main()
