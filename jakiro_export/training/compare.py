"""Comparison of training variants: `python -m jakiro_export.training.compare`. Heads on the same text for as many steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from jakiro_export.quiet import quiet_libraries

quiet_libraries()

import numpy as np
import torch

from jakiro_export.checkpoints.locate import locate
from jakiro_export.checkpoints.target import load_target
from jakiro_export.targets import families
from jakiro_export.training.console import CONSOLE, bar, in_work, log
from jakiro_export.training.features import Text
from jakiro_export.training.heldout import HeldOut, Measure
from jakiro_export.training.model import new_head
from jakiro_export.training.publish import publish
from jakiro_export.training.settings import Settings
from jakiro_export.training.sizes import published_config, sizes_of
from jakiro_export.training.sources import matrices, read_text
from jakiro_export.training.table import Result, write
from jakiro_export.training.trainer import Trainer
from jakiro_export.training.variants import AXES, Plan, plans


@click.command(
    "python -m jakiro_export.training.compare", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.option("--target", "-t", required=True, metavar="T", help="The target, as jakiro-train takes it.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True, required=True,
              help="Conversations, .jsonl or .jsonl.gz; may be given more than once.")  # fmt: skip
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path, file_okay=False), help="Tables, picture, a folder a head."
)
@click.option("--steps", type=click.IntRange(1), required=True, help="Training steps of every head.")
@click.option("--variants", default=",".join(AXES), help="What to vary, one thing at a time: names for their usual values, "
              "NAME=VALUE for others. eagle2 is an EAGLE-2-style head, its value a factor on the steps.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1000), default=None, show_default="all", help="Train on a part of the text.")
@click.option("--width", type=click.FloatRange(0, min_open=True), default=1.0, help="The baseline's inner size in hidden sizes.")
@click.option("--chain", type=click.IntRange(1, 8), default=Settings.chain, help="The baseline's.")
@click.option("--draft-vocab", type=click.IntRange(16), default=Settings.draft_vocab, help="The baseline's.")
@click.option("--batch-tokens", type=click.IntRange(64), default=Settings.batch_tokens, help="The baseline's.")
@click.option("--depths", type=click.IntRange(1, 8), default=Settings.depths, help="Depths to measure.")
@click.option("--seed", type=int, default=0, help="As for jakiro-train; the same for every head.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=None, show_default="OUT/work",
              help="Where features are kept, jakiro-train's --work for one.")  # fmt: skip
def main(target: str, data: tuple[Path, ...], out: Path, work: Path | None, **options: Any) -> None:
    """Train variants of a head at equal data, steps and seed, and compare them on held-out text.

    Finished heads are kept, an interrupted one continues; more variants may be asked for later.
    """
    work = work or out / "work"
    with in_work(work):
        _run(target, data, out, work, **options)


def _run(
    name: str, data: tuple[Path, ...], out: Path, work: Path, variants: str, max_tokens: int | None, width: float, **options: Any
) -> None:
    settings = Settings(hours=None, **options)
    wanted = plans(Plan(settings, width), variants.split(","))
    target = load_target(locate(name, "target"), name)
    families.check(target.config)
    text = read_text(target, data, work, max_tokens, settings.held_out)
    comparison = Comparison(name, target.config, text, *matrices(target), out)
    results: dict[str, Result] = {}
    for title, plan in wanted.items():
        results[title] = comparison.result(title, plan)
        write(out, results, comparison.about)
    CONSOLE.print((out / "comparison.md").read_text())


class Comparison:
    """What all heads share: the target's matrices, the text, what is held out of it, and where results are kept."""

    def __init__(self, name: str, config: Any, text: Text, embedding: torch.Tensor, projection: torch.Tensor, out: Path) -> None:
        # what is held out comes first then, in every part of the text
        text = text.part(int(text.lengths.sum()), Settings.held_out)
        self.config, self.text, self.embedding, self.projection, self.out = config, text, embedding, projection, out
        self.held = HeldOut(text, text.held_out(Settings.held_out), projection)
        self.about = {
            "target": name, "threads": torch.get_num_threads(), "conversations": len(text.tokens),
            "tokens": int(text.lengths.sum()), "held_out": len(self.held.numbers), "near_ties": self.held.near_ties,
        }  # fmt: skip

    def result(self, title: str, plan: Plan) -> Result:
        """A head's metrics, from an earlier run of the same plan or from training it now."""
        folder, text = self.out / title, self._text(plan.data)
        tokens = int(text.lengths[len(self.held.numbers) :].sum())
        same = {"plan": asdict(plan), "tokens": tokens, "conversations": len(text.tokens)}
        kept, done = folder / "plan.json", folder / "result.json"
        if not kept.is_file() or json.loads(kept.read_text()) != same:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            kept.write_text(json.dumps(same))
        if not done.is_file():
            self._train(title, plan, text, folder)
        found = json.loads(done.read_text())
        return Result(plan, found["parameters"], tokens, found["cpu"], Measure(**found["measure"]))

    def _train(self, title: str, plan: Plan, text: Text, folder: Path) -> None:
        """Train a head, or go on with it; its checkpoint lies in `head/`."""
        sizes = sizes_of(self.config, plan.family, width=plan.width)
        torch.manual_seed(plan.settings.seed)
        head = new_head(sizes)
        trainer = Trainer(head, text, self.embedding, self.projection, plan.settings, folder, self.held)
        trainer.resume()
        parameters = sum(p.numel() for p in head.parameters())
        CONSOLE.print(f"{title}: {parameters / 1e6:.2f} M parameters, {plan.settings.steps} steps")
        with bar(title, 1.0) as advance:
            trainer.run(plan.settings.steps or 1, log, advance)
        about = {"conversations": len(text.tokens), "tokens": int(text.lengths.sum())}
        publish(folder / "head", trainer, published_config(self.config, sizes), about)
        figures = {"parameters": parameters, "cpu": trainer.cpu, "measure": asdict(trainer.history[-1])}
        (folder / "result.json").write_text(json.dumps(figures))
        (folder / "state.pt").unlink()

    def _text(self, share: float) -> Text:
        """A part of the text: what is held out, which comes first, and a share of the rest."""
        ends = np.cumsum(self.text.lengths)
        held = int(ends[len(self.held.numbers) - 1])
        count = int((ends <= held + share * (int(ends[-1]) - held)).sum())
        return self.text.only(range(count))


if __name__ == "__main__":
    main()
