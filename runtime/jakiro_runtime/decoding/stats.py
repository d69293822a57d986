"""Every figure of an answer in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stats:
    """Counts and times of one answer; times in seconds.

    rounds: target passes after the prompt
    drafts: rounds that drafted a tree
    verified: tree nodes that the target verified, over all rounds
    looked_up: accepted tokens that the head had not drafted: the text was looked up for them
    accepted: how many rounds accepted at least n tree tokens, for n = 1, 2, ...
    host: everything outside the two graph calls, after the prompt: masks, accept, commit, detokenising
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    drafts: int = 0
    verified: int = 0
    looked_up: int = 0
    accepted: list[int] = field(default_factory=list)
    prefill: float = 0.0
    first_token: float = 0.0
    draft: float = 0.0
    target: float = 0.0
    host: float = 0.0

    def count_round(self, accepted: int, nodes: int, drafted: bool, looked_up: int) -> None:
        """Note a round that accepted so many of the nodes that it verified, and `looked_up` of these without the head."""
        self.rounds += 1
        self.drafts += drafted
        self.verified += nodes
        self.looked_up += looked_up
        self.accepted += [0] * (accepted - len(self.accepted))
        for level in range(accepted):
            self.accepted[level] += 1

    @property
    def decode(self) -> float:
        """Seconds from the first token to the last."""
        return self.draft + self.target + self.host

    @property
    def tau(self) -> float:
        """Tokens per target pass, the pass over the prompt not counted."""
        return (sum(self.accepted) + self.rounds) / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, per second of decoding."""
        return (self.new_tokens - 1) / self.decode if self.decode and self.new_tokens > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in milliseconds, `host_share` of a round."""
        rounds = max(1, self.rounds)
        return {
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "new_tokens": self.new_tokens,
            "rounds": self.rounds,
            "drafts": self.drafts,
            "nodes_per_round": round(self.verified / rounds, 3),
            "looked_up": self.looked_up,
            "tau": round(self.tau, 4),
            "accepted_per_depth": [round(count / rounds, 4) for count in self.accepted],
            "tokens_per_second": round(self.tokens_per_second, 2),
            "first_token_ms": round(1e3 * self.first_token, 3),
            "prefill_ms": round(1e3 * self.prefill, 3),
            "draft_ms": round(1e3 * self.draft, 3),
            "target_ms": round(1e3 * self.target, 3),
            "host_ms": round(1e3 * self.host, 3),
            "round_ms": round(1e3 * self.decode / rounds, 3),
            "host_share": round(self.host / self.decode, 5) if self.decode else 0.0,
        }

    def line(self) -> str:
        """One line for a terminal."""
        return (
            f"{self.new_tokens} tokens, {self.tokens_per_second:.1f} tokens/s, tau {self.tau:.2f} over {self.rounds} rounds, "
            f"first token after {1e3 * self.first_token:.0f} ms"
        )
