"""Train a Jakiro head for a target: self-generated text, the target's features of it, a head that predicts them.

    python train_head.py --target smollm2-135m --hours 1 --out my-head/
    jakiro-export --target smollm2-135m --draft my-head/ --out out/mine

Everything is kept in the work folder as it is made; the same command continues where an interrupted one stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jakiro_export.quiet import quiet_libraries

quiet_libraries()

import numpy as np
import torch
from conversations import headers, read
from features import Text, extract
from generation import ANSWER, OPENINGS, QUESTION, Passes, features_of, generate, take_up, written_graph
from model import TrainedHead
from publish import publish
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from training import Measure, Settings, Trainer, fast_dtype

from jakiro_export.checkpoint.locate import locate
from jakiro_export.checkpoint.target import Target, load_target
from jakiro_runtime.backend.onnxruntime import open_graph
from jakiro_runtime.errors import in_words

_CONSOLE = Console(stderr=True, soft_wrap=True, highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--target", "-t", required=True, metavar="T", help="The target: a transformers folder, a hub id, a GGUF "
              "file, or an alias such as smollm2-135m.")  # fmt: skip
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, file_okay=False), help="The head's folder.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="Conversations, .jsonl or .jsonl.gz; may be given more than once.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(0), default=None, show_default="1,000,000 where there is no --data, else none",
              help="Text that the target shall write in conversation with itself.")  # fmt: skip
@click.option("--slots", type=click.IntRange(1), default=64, help="Conversations that it has side by side.")
@click.option("--max-tokens", type=click.IntRange(1000), default=None, show_default="all", help="Train on a part of the text.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Training time.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Training steps instead of --hours: with the same "
              "--seed the result is the same.")  # fmt: skip
@click.option("--inner", type=click.IntRange(1), default=None, show_default="the hidden size", help="Inner size of an expert.")
@click.option("--chain", type=click.IntRange(1, 8), default=Settings.chain, help="Steps through the head's own predictions.")
@click.option("--draft-vocab", type=click.IntRange(16), default=Settings.draft_vocab, help="Tokens the head learns to propose.")
@click.option("--batch-tokens", type=click.IntRange(64), default=Settings.batch_tokens, help="Tokens of a training step.")
@click.option("--learning-rate", type=float, default=Settings.learning_rate)
@click.option("--noise", type=float, default=Settings.noise, help="Uniform noise on the features, in standard deviations.")
@click.option("--feature-loss", type=float, default=Settings.feature_loss, help="Weight of the distance between features.")
@click.option("--mixture/--no-mixture", default=True, help="Two experts and a gate, or one MLP of as many parameters and no "
              "parallel step, to compare with.")  # fmt: skip
@click.option("--contrast-loss", type=float, default=Settings.contrast_loss, help="Weight of the parallel step's loss.")
@click.option("--every", type=click.IntRange(1), default=250, help="Steps between measurements on held-out text.")
@click.option("--seed", type=int, default=0)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=None, show_default="OUT.work",
              help="Where text, features and state are kept.")  # fmt: skip
def main(target: str, out: Path, data: tuple[Path, ...], work: Path | None, **options: Any) -> None:
    """Train a Jakiro head for a target, on its own text, in the published checkpoint format."""
    with in_words(False, "Interrupted; the same command goes on from what was kept."):
        _run(target, out, data, work or out.with_name(out.name + ".work"), **options)


def _run(
    name: str,
    out: Path,
    data: tuple[Path, ...],
    work: Path,
    tokens: int | None,
    slots: int,
    max_tokens: int | None,
    inner: int | None,
    mixture: bool,
    every: int,
    **options: Any,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    options["hours"] = None if options["steps"] else options["hours"]
    if not mixture:
        options["contrast_loss"] = 0.0
    settings = Settings(**options)
    target = load_target(locate(name, "target"), name)
    text = Text()
    tokens = (0 if data else 1_000_000) if tokens is None else tokens
    if data:
        text.add(*_given(target, data, work))
    if tokens:
        text.add(*_generated(target, work, tokens, slots, settings.seed))
    if max_tokens is not None:
        text.keep(max_tokens, settings.held_out)
    if len(text.tokens) < 2:
        raise click.ClickException(f"{len(text.tokens)} usable conversations; at least two are needed, thousands are better.")
    model, config, total = target.model(), target.config, int(text.lengths.sum())
    embedding = model.get_input_embeddings().weight.detach().float()
    projection = model.get_output_embeddings().weight.detach().clone()
    target._model = None
    del model

    shape = _shape(config, inner)
    torch.manual_seed(settings.seed)
    head = TrainedHead(**shape, mixture=mixture)
    trainer = Trainer(head, text, embedding, projection, settings, work)
    resumed = trainer.resume()
    parameters = sum(p.numel() for p in head.parameters())
    _CONSOLE.print(
        f"{len(text.tokens)} conversations, {total} tokens; a head of {parameters / 1e6:.2f} M parameters"
        + (f"; continuing at step {trainer.step}" if resumed else "")
    )
    with _bar("Training", 1.0) as advance:
        trainer.run(every, _say, advance)
    publish(out, trainer, _config(config, shape), {"conversations": len(text.tokens), "tokens": total})
    _CONSOLE.print(f"Wrote {out}. Next: jakiro-export --target {name} --draft {out} --out out/mine")


def _given(target: Target, files: tuple[Path, ...], work: Path) -> tuple[list[list[int]], np.ndarray]:
    """The conversations of the user's files, and their features."""
    longest = target.config.max_position_embeddings
    conversations = [c for file in files for c in read(file, target.config.vocab_size) if 8 <= len(c) <= longest]
    model = target.model().to(fast_dtype())  # type: ignore[call-overload]
    with _bar("Features", sum(map(len, conversations))) as advance:
        features = extract(model, conversations, work, advance)
    target._model = None
    return conversations, features


def _generated(target: Target, work: Path, tokens: int, slots: int, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """Conversations of the target with itself, and their features."""
    tokenizer = target.tokenizer()
    file, marks, hidden = work / "conversations.jsonl", headers(tokenizer), target.config.hidden_size
    openings = [tokenizer.encode(words, add_special_tokens=False) for words in OPENINGS]
    if take_up(file, hidden)[1] < tokens:
        with _bar("The target's graph", 1.0):
            graph = open_graph(written_graph(target, work))
        passes = Passes(graph, target.config, len(marks[0]) + len(marks[1]) + QUESTION + ANSWER, slots)
        with _bar("Text", tokens) as advance:
            generate(passes, marks, openings, target.eos_token_ids(), file, tokens, seed, advance)
    return list(read(file, target.config.vocab_size)), np.memmap(features_of(file), np.float16, "r").reshape(-1, hidden)


def _shape(config: Any, inner: int | None) -> dict[str, Any]:
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "hidden": config.hidden_size,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "inner": inner or config.hidden_size,
        "norm_eps": getattr(config, "rms_norm_eps", 1e-5),
        "rope_theta": float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0),
    }


def _config(config: Any, shape: dict[str, Any]) -> dict[str, Any]:
    """A published head's `config.json`."""
    return {
        "architectures": ["JakiroHead"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": config.intermediate_size,
        **({"intermediate": shape["inner"]} if shape["inner"] != shape["hidden"] else {}),
        "num_hidden_layers": 1,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "max_position_embeddings": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": shape["norm_eps"],
        "rope_theta": shape["rope_theta"],
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "bias": True,
        "dtype": "float16",
    }


def _say(measure: Measure) -> None:
    depths = " ".join(f"{a:.3f}" for a in measure.accuracy)
    _CONSOLE.print(
        f"step {measure.step:6d}  {measure.hours:5.2f} h  loss {measure.loss:6.3f}  held-out accuracy {depths}  "
        f"contrast {measure.contrast:.3f}  tau of the chain {measure.chain_tau:.2f}"
    )


class _bar:
    """A bar with the time left at a terminal, one line in a log. Called with how much is done."""

    def __init__(self, text: str, total: float) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.text, self.total = text, total
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_CONSOLE)

    def __enter__(self) -> Any:
        if not _CONSOLE.is_terminal:
            _CONSOLE.print(self.text)
            return lambda done: None
        self.progress.start()
        task = self.progress.add_task(self.text, total=self.total)
        return lambda done: self.progress.update(task, completed=float(np.minimum(done, self.total)))

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


if __name__ == "__main__":
    main()
