"""Benchmark runner protocol: token ids in, token ids and timings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jakiro_bench.recording import RankCounts, RecordingGraph
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.session import Session


@dataclass
class TimedAnswer:
    """One answer and its timings, in seconds.

    first_token: from the call to the first token
    decode: from the first token to the last
    stats: our runtime's own statistics; None for another runtime
    """

    tokens: list[int]
    text: str
    first_token: float
    decode: float
    stats: Stats | None = None


class Runner(Protocol):
    """Something that answers greedily, one conversation at a time."""

    name: str

    def answer(self, prompt: Sequence[int], limit: int) -> TimedAnswer:
        """Answer a prompt with at most `limit` tokens, ending with an end-of-sequence token."""

    def reset(self) -> None:
        """Begin a new conversation: nothing of the one before may be used."""


class EngineRunner:
    """A session of our runtime.

    ranks: of the trees that `recording` recorded, counted while answering
    """

    def __init__(self, name: str, session: Session, recording: RecordingGraph | None = None) -> None:
        self.name, self.session, self.recording = name, session, recording
        self.ranks = RankCounts()

    def answer(self, prompt: Sequence[int], limit: int) -> TimedAnswer:
        tokens: list[int] = []
        text: list[str] = []
        before = 0
        for chunk in self.session.generate(prompt, limit):  # the session's clock stops while a chunk is looked at
            verified = self.session.stats.verified
            if tokens and self.recording:
                self.ranks.count(self.recording.tree(verified - before), chunk.tokens)
            before = verified
            tokens += chunk.tokens
            text.append(chunk.text)
        stats = self.session.stats
        return TimedAnswer(tokens, "".join(text), stats.first_token, stats.decode, stats)

    def reset(self) -> None:
        self.session.reset()
