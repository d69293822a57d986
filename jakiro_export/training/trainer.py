"""Training loop: resumable, seeded, measured on held-out conversations as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jakiro_export.training.batches import Batches
from jakiro_export.training.columns import Columns, sample_columns
from jakiro_export.training.features import Text
from jakiro_export.training.heldout import HeldOut, Measure
from jakiro_export.training.model import FusedFeatureHead, SoftCrossEntropy, TrainedHead
from jakiro_export.training.settings import Settings

_SAVE = 100  # steps that an interruption may cost


class Trainer:
    """Trains `head` on `data`; `embedding` and `projection` are the target's, [vocab, hidden].

    Args:
        folder: where its state is kept
        held: what it is measured on; trainers that share text may share it
        order: token ids, those to propose first; those that are most frequent in the text if it is None
        dtype: of the large matrix products; `fast_dtype` if it is None

    seconds, cpu: what the steps took, by the clock and of the processor
    draft_tokens, draft_projection: the tokens that the head proposes, ascending, and their rows of the projection
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
        dtype: torch.dtype | None = None,
    ) -> None:
        self.head, self.data, self.settings, self.folder = head, data, settings, folder
        self.embedding, self.projection = embedding.float(), projection
        frequent = np.argsort(-data.frequencies(len(embedding)), kind="stable")
        self.order = frequent if order is None else np.concatenate([order, np.setdiff1d(frequent, order, assume_unique=True)])
        vocab = min(settings.draft_vocab, len(embedding))
        self.draft_tokens = torch.from_numpy(np.sort(self.order[:vocab]))
        self._use(dtype or fast_dtype())
        sample = np.concatenate(data.features[:64]).astype(np.float32)
        self.scale = float(np.std(sample))
        if isinstance(head, FusedFeatureHead) and not settings.trained:
            head.fit_scale(torch.from_numpy(sample), torch.from_numpy(np.concatenate(data.states[:64])))
        self.held = held or HeldOut(data, data.held_out(settings.held_out), projection)
        train = np.setdiff1d(np.arange(len(data.tokens)), self.held.numbers)
        self.batches = Batches(data, train, settings.batch_tokens, settings.seed)
        learning = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learning, settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
        )
        self.step, self.seconds, self.cpu, self.epoch, self.batch = 0, 0.0, 0.0, 0, 0
        self.history: list[Measure] = []

    def _use(self, dtype: torch.dtype) -> None:
        """Compute the large matrix products in this type."""
        self.dtype, self.draft_projection = dtype, self.projection[self.draft_tokens].to(dtype).contiguous()

    # -- one step

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _loss(self, group: np.ndarray, chain: int, guess_ahead: bool) -> Tensor:
        tokens, truth, states, answers = self.batches.load(group)
        embeddings = torch.nn.functional.embedding(tokens[:, 1:], self.embedding)
        if not self.head.sizes.layers:  # a head with fused features learns from its own predictions alone
            states = states + (torch.rand_like(states) - 0.5) * (2 * self.settings.noise * self.scale)
        columns = sample_columns(self.draft_projection, truth, answers, self.settings.columns)
        total = torch.zeros(())
        weight, norm = 1.0, 0.0
        for step, (primary, contrast) in enumerate(self.head.steps(embeddings, states[:, :-1], chain)):
            total = total + weight * self.compare(primary, truth, columns, answers, 1, step)
            norm += weight
            if step == self.step % chain and guess_ahead and contrast is not None:  # trees of any depth end in it
                total = total + self.settings.contrast_loss * self.compare(contrast, truth, columns, answers, 2, step)
            weight *= self.settings.decay
        return total / norm

    def compare(self, guess: Tensor, truth: Tensor, columns: Columns, answers: Tensor, ahead: int, step: int) -> Tensor:
        """The loss of guesses of the features `ahead` rows later, of chains of `step` that start in an answer."""
        last, goals = truth.shape[1] - ahead, slice(step + ahead, None)
        seen = answers[:, : last - step] & answers[:, goals]
        guess, goal, wanted = guess[:, step:last][seen].float(), truth[:, goals][seen], columns.wanted[:, goals][seen]
        if not len(guess):
            return guess.sum()
        ce_loss: Tensor = SoftCrossEntropy.apply(guess, columns.projection, columns.bias, wanted) / len(guess)
        return ce_loss + self.settings.feature_loss * torch.nn.functional.smooth_l1_loss(guess, goal) / self.scale

    # -- held-out text

    def measure(self, loss: float) -> Measure:
        """Accuracy at every depth of the chain on held-out conversations; added to `history`."""
        self.history.append(Measure(self.step, self.seconds / 3600, loss, *self._accuracy(self.held)))
        return self.history[-1]

    def train_accuracy(self) -> dict[str, Any]:
        """`accuracy` and `contrast` on as many of the conversations that it is trained on, to compare with the held-out ones."""
        drawn = np.random.default_rng(self.settings.seed).permutation(self.batches.numbers)[: len(self.held.numbers)]
        accuracy, contrast = self._accuracy(HeldOut(self.data, drawn, self.projection))
        return {"accuracy": accuracy, "contrast": contrast}

    def _accuracy(self, held: HeldOut) -> tuple[list[float], float | None]:
        self.head.eval()
        with self._autocast():
            found = held.accuracy(self.head, self.embedding, self.draft_projection, self.draft_tokens, self.settings.depths)
        self.head.train()
        return found

    # -- the whole of it

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.seconds / 3600 / (self.settings.hours or 1.0)

    def run(self, every: int, log: Callable[[Measure], None], progress: Callable[[float], None]) -> None:
        """Train to the end, saving every `_SAVE` steps, measuring and saving every `every`."""
        torch.set_flush_denormal(True)  # probabilities are full of denormals, which are slow
        try:
            self._run(every, log, progress)
        finally:
            torch.set_flush_denormal(False)  # it holds for the whole thread

    def _run(self, every: int, log: Callable[[Measure], None], progress: Callable[[float], None]) -> None:
        self.head.train()
        groups = self.batches.epoch(self.epoch)
        losses: list[float] = []
        while self.share < 1.0:
            if self.batch == len(groups):
                self.epoch, self.batch = self.epoch + 1, 0
                groups = self.batches.epoch(self.epoch)
            losses.append(self._learn(groups[self.batch]))
            progress(min(1.0, self.share))
            measured = self.step % every == 0 or self.share >= 1.0
            if measured:
                log(self.measure(float(np.mean(losses))))
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

    @property
    def _sizes(self) -> str:
        return json.dumps(asdict(self.head.sizes))

    def save(self) -> None:
        state = {
            "head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds, "cpu": self.cpu, "epoch": self.epoch, "batch": self.batch,
            "train": len(self.batches.numbers), "history": [asdict(m) for m in self.history],
            "settings": json.dumps(asdict(self.settings)), "sizes": self._sizes, "dtype": str(self.dtype).removeprefix("torch."),
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
        if Settings(**json.loads(state["settings"])).without_length() != self.settings.without_length():
            return False
        if state.get("sizes", self._sizes) != self._sizes:  # another family, another width, or other layers of the target
            return False
        self._use(getattr(torch, state.get("dtype", str(self.dtype).removeprefix("torch."))))  # or it would end at another head
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.cpu, self.epoch, self.batch = (
            state[k] for k in ("step", "seconds", "cpu", "epoch", "batch")
        )
        if state["train"] != len(self.batches.numbers):  # there is more text now
            self.epoch, self.batch = self.epoch + 1, 0
        self.history = [Measure(**m) for m in state["history"]]
        return True


def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor has instructions to multiply it (AMX, AVX-512 BF16), else float32.

    Not timed: the same seed shall give the same head on a busy machine too.
    """
    found = torch.cpu.get_capabilities()
    return torch.bfloat16 if found.get("amx_bf16") or found.get("avx512_bf16") else torch.float32
