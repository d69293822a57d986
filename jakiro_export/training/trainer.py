"""The training loop: resumable, seeded, measured on held-out conversations as it goes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jakiro_export.training.features import Text
from jakiro_export.training.heldout import HeldOut, Measure
from jakiro_export.training.model import SoftCrossEntropy, TrainedHead

_SAVE = 100  # steps that an interruption may cost


@dataclass(frozen=True)
class Settings:
    """How a head is trained. Every figure was chosen on held-out text, see the shipped head's card."""

    hours: float | None = 1.0
    steps: int | None = None
    seed: int = 0
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    noise: float = 0.1  # uniform, as a share of the features' standard deviation
    batch_tokens: int = 1024
    draft_vocab: int = 8192  # the loss sees the most frequent tokens only, as the exported graph does
    columns: int = 2048  # tokens of these that a step looks at: the likeliest in its text, and a sample that stands for the rest
    chain: int = 4  # steps through the head's own predictions, reached in three phases
    decay: float = 0.8  # weight of a step against the one before it
    feature_loss: float = 20.0  # SmoothL1 between predicted and true features, in standard deviations
    contrast_loss: float = 0.4  # the parallel step's second guess, from the second phase on
    held_out: int = 96  # conversations
    depths: int = 4  # measured on them
    trained: bool = False  # the head was trained before: chains are long, and the second guess learns, from the start

    def chain_at(self, share: float) -> int:
        """Steps to train after a share of the training: short chains first, they cost less."""
        return max(1, self.chain if share >= 0.6 or self.trained else min(2, self.chain) if share >= 0.3 else 1)

    def guesses_ahead(self, share: float) -> bool:
        """Whether the parallel step's second guess is trained, too."""
        return self.contrast_loss > 0 and (share >= 0.3 or self.trained)

    def rate_at(self, share: float) -> float:
        """The learning rate: a short rise, then half a cosine."""
        return self.learning_rate * min(1.0, share / 0.02 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, share)))


class _Words(NamedTuple):
    """The columns of the draft vocabulary that a step looks at.

    projection, bias: their logits are `feature @ projection.T + bias`, [columns, hidden] and [columns]
    wanted: what the target thinks after every feature of an answer, [batch, length, columns]; other rows hold nothing
    """

    projection: Tensor
    bias: Tensor
    wanted: Tensor


class Trainer:
    """Trains `head` on `data`; `embedding` and `projection` are the target's, [vocab, hidden].

    seconds, cpu: what the steps took, by the clock and of the processor
    held: what it is measured on; trainers that share text may share it
    order: tokens, those to propose first; those that are most frequent in the text if it is None
    """

    def __init__(
        self,
        head: TrainedHead,
        data: Text,
        embedding: Tensor,
        projection: Tensor,
        settings: Settings,
        folder: Path,
        held: HeldOut | None = None,
        order: np.ndarray | None = None,
    ) -> None:
        self.head, self.data, self.settings, self.folder = head, data, settings, folder
        self.embedding, self.dtype = embedding.float(), fast_dtype()
        frequent = np.argsort(-data.frequencies(len(embedding)), kind="stable")
        self.order = frequent if order is None else np.concatenate([order, np.setdiff1d(frequent, order, assume_unique=True)])
        vocab = min(settings.draft_vocab, len(embedding))
        self.kept = torch.from_numpy(np.sort(self.order[:vocab]))
        self.small = projection[self.kept].to(self.dtype).contiguous()
        self.scale = float(np.std(np.concatenate(data.features[:64]).astype(np.float32)))
        self.projection = projection
        self.held = held or HeldOut(data, data.held_out(settings.held_out), projection)
        self.lengths, self.first = data.lengths, np.array([data.first_row(n) for n in range(len(data.tokens))])
        self.train = np.setdiff1d(np.arange(len(data.tokens)), self.held.numbers)
        learning = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learning, settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
        )
        self.step, self.seconds, self.cpu, self.epoch, self.batch = 0, 0.0, 0.0, 0, 0
        self.history: list[Measure] = []

    # -- data

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: conversations of similar length together, in random order."""
        rng = np.random.default_rng((self.settings.seed, epoch))
        lengths = self.lengths
        order = self.train[np.argsort(lengths[self.train] + rng.uniform(0, 24, len(self.train)), kind="stable")]
        groups, start = [], 0
        while start < len(order):
            size = 1
            while start + size < len(order) and lengths[order[start + size]] * (size + 1) <= self.settings.batch_tokens:
                size += 1
            groups.append(order[start : start + size])
            start += size
        return [groups[n] for n in rng.permutation(len(groups))]

    def _load(self, group: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [batch, length], features [batch, length, hidden] and which rows may be guessed from: those of the answers."""
        lengths = self.lengths[group]
        longest = int(lengths.max())
        tokens = np.zeros((len(group), longest), np.int64)
        features = np.zeros((len(group), longest, self.data.features[0].shape[1]), np.float16)
        for row, (n, length) in enumerate(zip(group, lengths, strict=True)):
            tokens[row, :length] = self.data.tokens[n]
            features[row, :length] = self.data.features[n]
        rows = np.arange(longest)[None, :]
        answers = (rows >= self.first[group][:, None]) & (rows < lengths[:, None])
        return torch.from_numpy(tokens), torch.from_numpy(features).float(), torch.from_numpy(answers)

    # -- one step

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _loss(self, group: np.ndarray, chain: int, guess_ahead: bool) -> Tensor:
        tokens, truth, answers = self._load(group)
        embeddings = torch.nn.functional.embedding(tokens[:, 1:], self.embedding)
        noise = (torch.rand_like(truth) - 0.5) * (2 * self.settings.noise * self.scale)
        given = (truth + noise)[:, :-1]
        words = self._words(truth, answers)
        total = torch.zeros(())
        weight, norm = 1.0, 0.0
        for step, (primary, contrast) in enumerate(self.head.steps(embeddings, given, chain)):
            total = total + weight * self._compare(primary, truth, words, answers, 1, step)
            norm += weight
            if step == self.step % chain and guess_ahead:  # trees of any depth end in it
                total = total + self.settings.contrast_loss * self._compare(contrast, truth, words, answers, 2, step)
            weight *= self.settings.decay
        return total / norm

    def _words(self, truth: Tensor, answers: Tensor) -> _Words:
        """What this step compares guesses with. truth [batch, length, hidden], answers [batch, length]."""
        shares, columns, counts = self._wanted(truth[answers].to(self.dtype))
        wanted = shares.new_empty(*answers.shape, len(columns))
        wanted[answers] = shares
        return _Words(self.small[columns], counts.log(), wanted)

    def _wanted(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the target thinks after its features, [rows, hidden], over the columns that this step looks at.

        Three in four are the tokens that are likeliest in these rows. The others are drawn from the rest of the draft vocabulary,
        and each stands for as many of it as there are to one drawn: sums over the columns are those over the whole, on average.

        Returns:
            shares [rows, columns]; which columns of the draft vocabulary; how many tokens each of them stands for
        """
        vocab = len(self.kept)
        shares = torch.empty(len(features), vocab, dtype=self.dtype)
        for start in range(0, len(features), 256):
            part = slice(start, start + 256)
            shares[part] = (features[part] @ self.small.T).float().softmax(-1).to(self.dtype)
        if self.settings.columns >= vocab:
            return shares, torch.arange(vocab), torch.ones(vocab)
        likely = self.settings.columns * 3 // 4
        order = shares.sum(0, dtype=torch.float32).argsort(descending=True)
        drawn = order[likely:][torch.randperm(vocab - likely)[: self.settings.columns - likely]]
        columns, counts = torch.cat([order[:likely], drawn]), torch.ones(self.settings.columns)
        counts[likely:] = (vocab - likely) / len(drawn)
        return shares[:, columns] * counts.to(self.dtype), columns, counts

    def _compare(self, guess: Tensor, truth: Tensor, words: _Words, answers: Tensor, ahead: int, step: int) -> Tensor:
        """The loss of guesses of the features `ahead` rows later, of chains of `step` that start in an answer."""
        last, goals = truth.shape[1] - ahead, slice(step + ahead, None)
        seen = answers[:, : last - step] & answers[:, goals]
        guess, goal, wanted = guess[:, step:last][seen].float(), truth[:, goals][seen], words.wanted[:, goals][seen]
        if not len(guess):
            return guess.sum()
        spoken = SoftCrossEntropy.apply(guess, words.projection, words.bias, wanted) / len(guess)
        return spoken + self.settings.feature_loss * torch.nn.functional.smooth_l1_loss(guess, goal) / self.scale

    # -- held-out text

    def measure(self, loss: float) -> Measure:
        """Accuracy at every depth of the chain on held-out conversations; added to `history`."""
        self.history.append(Measure(self.step, self.seconds / 3600, loss, *self._accuracy(self.held)))
        return self.history[-1]

    def by_heart(self) -> dict[str, Any]:
        """`accuracy` and `contrast` of as many conversations of those it is trained on: compare with the held-out figures."""
        drawn = np.random.default_rng(self.settings.seed).permutation(self.train)[: len(self.held.numbers)]
        accuracy, contrast = self._accuracy(HeldOut(self.data, drawn, self.projection))
        return {"accuracy": accuracy, "contrast": contrast}

    def _accuracy(self, held: HeldOut) -> tuple[list[float], float]:
        self.head.eval()
        with self._autocast():
            found = held.accuracy(self.head, self.embedding, self.small, self.kept, self.settings.depths)
        self.head.train()
        return found

    # -- the whole of it

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.seconds / 3600 / (self.settings.hours or 1.0)

    def run(self, every: int, said: Callable[[Measure], None], progress: Callable[[float], None]) -> None:
        """Train to the end, saving every `_SAVE` steps, measuring and saving every `every`."""
        torch.set_flush_denormal(True)  # probabilities are full of denormals, which are slow
        self.head.train()
        groups = self._epoch(self.epoch)
        losses: list[float] = []
        while self.share < 1.0:
            if self.batch == len(groups):
                self.epoch, self.batch = self.epoch + 1, 0
                groups = self._epoch(self.epoch)
            losses.append(self._learn(groups[self.batch]))
            progress(min(1.0, self.share))
            measured = self.step % every == 0 or self.share >= 1.0
            if measured:
                said(self.measure(float(np.mean(losses))))
                losses = []
            if measured or self.step % _SAVE == 0:
                self.save()

    def _learn(self, group: np.ndarray) -> float:
        """One step; its loss."""
        started, cpu = time.monotonic(), time.process_time()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)
        for each in self.optimizer.param_groups:
            each["lr"] = self.settings.rate_at(self.share)
        with self._autocast():
            loss = self._loss(group, self.settings.chain_at(self.share), self.settings.guesses_ahead(self.share))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step, self.batch = self.step + 1, self.batch + 1
        self.seconds, self.cpu = self.seconds + time.monotonic() - started, self.cpu + time.process_time() - cpu
        return float(loss)

    # -- state on disk

    def save(self) -> None:
        state = {
            "head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds, "cpu": self.cpu, "epoch": self.epoch, "batch": self.batch,
            "train": len(self.train), "history": [asdict(m) for m in self.history], "settings": json.dumps(asdict(self.settings)),
        }  # fmt: skip
        whole = BytesIO()  # torch's own writer hides that a disk is full
        torch.save(state, whole)
        (self.folder / "state.new").write_bytes(whole.getbuffer())
        (self.folder / "state.new").replace(self.folder / "state.pt")

    def resume(self) -> bool:
        """Continue from what an interrupted run saved with the same settings; how long it shall take may differ, and the text."""
        if not (self.folder / "state.pt").is_file():
            return False
        state = torch.load(self.folder / "state.pt", weights_only=True)
        if _without_length(json.loads(state["settings"])) != _without_length(asdict(self.settings)):
            return False
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.cpu, self.epoch, self.batch = (
            state[k] for k in ("step", "seconds", "cpu", "epoch", "batch")
        )
        if state["train"] != len(self.train):  # there is more text now
            self.epoch, self.batch = self.epoch + 1, 0
        self.history = [Measure(**m) for m in state["history"]]
        return True


def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it faster than float32 (AMX, AVX-512 BF16), else float32."""
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 576, dtype=dtype), torch.ones(576, 576, dtype=dtype)
        a @ b
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        took[dtype] = time.perf_counter() - started
    return min(took, key=took.__getitem__)


def _without_length(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in ("hours", "steps")}
