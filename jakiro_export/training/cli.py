"""Command line of `jakiro-train`: self-generated text, the target's features of it, a head that predicts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jakiro_export.quiet import quiet_libraries

quiet_libraries()

import torch

from jakiro_bench.numbers import Numbers
from jakiro_export.checkpoints.locate import locate
from jakiro_export.checkpoints.target import load_target
from jakiro_export.targets import families
from jakiro_export.training.console import CONSOLE, bar, in_work, log
from jakiro_export.training.init_checkpoint import loaded
from jakiro_export.training.model import new_head
from jakiro_export.training.publish import publish
from jakiro_export.training.settings import Settings
from jakiro_export.training.sizes import FAMILIES, family_of, published_config, sizes_of
from jakiro_export.training.sources import generate_text, matrices, read_text
from jakiro_export.training.trainer import Trainer

_LAYERS = Numbers("list of numbers such as 2,15,27", 0, 1 << 16)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--target", "-t", required=True, metavar="T", help="The target: a transformers folder, a hub id, a GGUF "
              "file, or an alias such as smollm2-135m.")  # fmt: skip
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, file_okay=False), help="The head's folder.")
@click.option("--family", type=click.Choice(FAMILIES), default="jakiro", help="jakiro: two experts, a gate and a parallel step; "
              "eagle: one MLP, in EAGLE's format. A 3: with --features fused.")  # fmt: skip
@click.option("--features", type=click.Choice(["last", "fused"]), default=None, show_default="the family's",
              help="What the head reads of the target: "
              "the features after its final norm, or the inputs of several layers.")  # fmt: skip
@click.option("--feature-layers", type=_LAYERS, metavar="N,N,..", default=None,
              show_default="2, L/2 and L of L layers; L - 3 for eagle3",
              help="The layers whose inputs a head with fused features reads.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="Conversations, .jsonl or .jsonl.gz; may be given more than once.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(0), default=None,
              show_default="1,000,000 for each of --hours where there are --prompts or no --data, else none",
              help="Tokens of text that the target writes, in answer to --prompts and to itself.")  # fmt: skip
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="What people ask, JSON lines with `prompt` or `turns` as jakiro-bench takes them: the target answers these "
              "before it asks itself. May be given more than once.")  # fmt: skip
@click.option("--slots", type=click.IntRange(1), default=64, help="Conversations that the target has at once.")
@click.option("--max-tokens", type=click.IntRange(1000), default=None, show_default="all", help="Train on a part of the text.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Training time.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Training steps instead of --hours: with the same "
              "--seed the result is the same.")  # fmt: skip
@click.option("--init", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None, metavar="HEAD",
              show_default="random", help="A head in the published format to begin with.")  # fmt: skip
@click.option(
    "--inner",
    type=click.IntRange(1),
    default=None,
    show_default="the hidden size, twice that for an MLP, or HEAD's",
    help="Inner size of an expert or of the MLP.",
)
@click.option("--chain", type=click.IntRange(1, 8), default=Settings.chain, help="Steps through the head's own predictions.")
@click.option("--draft-vocab", type=click.IntRange(16), default=Settings.draft_vocab, help="Tokens the head learns to propose.")
@click.option("--batch-tokens", type=click.IntRange(64), default=Settings.batch_tokens, help="Tokens of a training step.")
@click.option("--learning-rate", type=float, default=Settings.learning_rate,
              help="The highest one: it rises for the first steps and falls to zero at the end.")  # fmt: skip
@click.option("--noise", type=float, default=Settings.noise, help="Uniform noise on the features, in standard deviations.")
@click.option("--feature-loss", type=float, default=Settings.feature_loss, help="Weight of the distance between features, as the "
              "projection reads them.")  # fmt: skip
@click.option("--contrast-loss", type=float, default=Settings.contrast_loss, help="Weight of the parallel step's loss.")
@click.option("--every", type=click.IntRange(1), default=250, help="Steps between measurements on held-out text.")
@click.option("--seed", type=int, default=0, help="Of the head's first weights, of the noise, and of the order of the text.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=None, show_default="OUT.work",
              help="Where text, features and state are kept.")  # fmt: skip
def main(target: str, out: Path, data: tuple[Path, ...], work: Path | None, **options: Any) -> None:
    """Train a draft head for a target, on the target's own text, in its family's published checkpoint format.

    Everything is kept in the work folder as it is made; the same command continues where an interrupted one stopped.

    \b
    Example:
      jakiro-train --target smollm2-135m --hours 1 --out my-head/
      jakiro-train --target smollm2-135m --features fused --hours 1 --out my-jakiro3/
      jakiro-export --target smollm2-135m --draft my-head/ --out out/mine
    """
    work = work or out.with_name(out.name + ".work")
    with in_work(work):
        _run(target, out, data, work, **options)


def _run(
    name: str,
    out: Path,
    data: tuple[Path, ...],
    work: Path,
    tokens: int | None,
    prompts: tuple[Path, ...],
    slots: int,
    max_tokens: int | None,
    init: Path | None,
    inner: int | None,
    family: str,
    features: str | None,
    feature_layers: tuple[int, ...] | None,
    every: int,
    **options: Any,
) -> None:
    family = family_of(family, features)
    if tokens is None:
        tokens = round(1_000_000 * options["hours"]) if prompts or not data else 0
    options["hours"] = None if options["steps"] else options["hours"]
    settings = Settings(**options, trained=init is not None, depths=max(Settings.depths, options["chain"]))
    target = load_target(locate(name, "target"), name)
    families.check(target.config)
    sizes = sizes_of(target.config, family, inner, feature_layers)
    if tokens:
        data = (*data, generate_text(target, work, tokens, slots, settings.seed, prompts))
    text = read_text(target, data, work, max_tokens, settings.held_out, sizes.layers)
    if len(text.tokens) < 2:
        raise click.ClickException(f"{len(text.tokens)} usable conversations; at least two are needed, thousands are better.")
    total = int(text.lengths.sum())
    torch.manual_seed(settings.seed)
    head, order = loaded(init, sizes, inner) if init else (new_head(sizes), None)
    trainer = Trainer(head, text, *matrices(target), settings, work, order=order)
    resumed = trainer.resume()
    parameters = sum(p.numel() for p in head.parameters())
    CONSOLE.print(
        f"{len(text.tokens)} conversations, {total} tokens; a head of {parameters / 1e6:.2f} M parameters"
        + (f"; continuing at step {trainer.step}" if resumed else "")
    )
    with bar("Training", 1.0) as advance:
        trainer.run(every, log, advance)
    about = {"conversations": len(text.tokens), "tokens": total}
    publish(out, trainer, published_config(target.config, head.sizes), about, trained_on=trainer.train_accuracy())
    CONSOLE.print(f"Wrote {out}. Next: jakiro-export --target {name} --draft {out} --out out/mine")


if __name__ == "__main__":
    main()
