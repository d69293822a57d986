"""Published head: the checkpoint of a finished training, its metrics, and a plot of its accuracy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from jakiro_export.training.model import TrainedHead
from jakiro_export.training.trainer import Trainer


def publish(folder: Path, trainer: Trainer, config: dict[str, Any], data: dict[str, Any], **figures: Any) -> None:
    """Write `config.json`, `model.safetensors` (fp16), `token_order.safetensors`, `training.json`, `training.png`, each whole.

    figures: what `training.json` says besides the trainer's own
    """
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.absolute().parent) as partial:
        _write(Path(partial), trainer, config, data, figures)
        folder.mkdir(exist_ok=True)
        for file in Path(partial).iterdir():
            file.replace(folder / file.name)


def _write(folder: Path, trainer: Trainer, config: dict[str, Any], data: dict[str, Any], more: dict[str, Any]) -> None:
    tensors = weights(trainer.head)
    if trainer.head.sizes.layers and not trainer.head.sizes.experts:  # EAGLE-3's format has a vocabulary of its own
        config = {**config, "draft_vocab_size": len(trainer.draft_tokens)}
        tensors |= vocabulary(trainer)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").write_bytes(save(tensors))
    frequent = trainer.order[: max(16384, len(trainer.draft_tokens))].astype(np.int32)
    (folder / "token_order.safetensors").write_bytes(save({"token_ids": frequent}))
    figures = {"data": data, "settings": asdict(trainer.settings), "steps": trainer.step, "near_ties": trainer.held.near_ties,
               "hours": round(trainer.seconds / 3600, 3), "held_out": [asdict(m) for m in trainer.history],
               **more}  # fmt: skip
    (folder / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    picture(folder / "training.png", trainer)


def weights(head: TrainedHead) -> dict[str, np.ndarray]:
    """The head's tensors under their published names, in fp16."""
    return {name: tensor.detach().to(torch.float16).cpu().numpy() for name, tensor in head.state_dict().items()}


def vocabulary(trainer: Trainer) -> dict[str, np.ndarray]:
    """The tokens that the head proposes and their rows of the target's projection, as published EAGLE-3 heads have them."""
    tokens = trainer.draft_tokens.numpy()
    return {
        "lm_head.weight": trainer.projection[trainer.draft_tokens].to(torch.float16).numpy(),
        "d2t": tokens - np.arange(len(tokens)),
        "t2d": np.isin(np.arange(len(trainer.projection)), tokens),
    }


def picture(file: Path, trainer: Trainer) -> None:
    """Held-out accuracy per depth over the training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    steps = [m.step for m in trainer.history]
    for depth in range(len(trainer.history[-1].accuracy)):
        axes.plot(steps, [m.accuracy[depth] for m in trainer.history], marker=".", label=f"depth {depth + 1}")
    if trainer.head.sizes.experts:
        axes.plot(steps, [m.contrast or 0.0 for m in trainer.history], "--", marker=".", label="parallel step, one further")
    axes.set(xlabel="training step", ylabel="best guess = target's choice", title="Held-out accuracy", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
