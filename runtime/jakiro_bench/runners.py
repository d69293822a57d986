"""What is measured: something that answers token ids with token ids, and says how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jakiro_bench.recording import Ranks, Watch
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.session import Session


@dataclass
class Answer:
    """One answer; times in seconds.

    first_token: from the call to the first token
    decode: from the first token to the last
    stats: our runtime's own figures; None for a peer
    """

    tokens: list[int]
    text: str
    first_token: float
    decode: float
    stats: Stats | None = None


class Contender(Protocol):
    """Answers greedily, one conversation at a time."""

    name: str

    def answer(self, prompt: Sequence[int], limit: int) -> Answer:
        """Answer a prompt with at most `limit` tokens, stopping behind an end-of-sequence token."""

    def reset(self) -> None:
        """A new conversation: nothing of the one before may be used."""


class Ours:
    """A session of our runtime."""

    def __init__(self, name: str, session: Session, watch: Watch | None = None) -> None:
        self.name, self.session = name, session
        self.watch = watch
        self.ranks = Ranks()

    def answer(self, prompt: Sequence[int], limit: int) -> Answer:
        tokens: list[int] = []
        text: list[str] = []
        before = 0
        for event in self.session.generate(prompt, limit):  # the session's clock stands while we look at an event
            verified = self.session.stats.verified
            if tokens and self.watch:
                self.ranks.count(self.watch.tree(verified - before), event.tokens)
            before = verified
            tokens += event.tokens
            text.append(event.text)
        stats = self.session.stats
        return Answer(tokens, "".join(text), stats.first_token, stats.decode, stats)

    def reset(self) -> None:
        self.session.reset()
