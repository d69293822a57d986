"""Statistics of one answer: counts, times, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class RoundCounts(NamedTuple):
    """What to count of a round. from_head: accepted nodes that the head drafted, the others are n-grams'."""

    verified: int = 0
    drafted: bool = False
    from_head: int = 0


@dataclass
class Stats:
    """Counts and times of one answer; times in seconds.

    rounds: target passes after the prompt
    drafts: rounds that drafted a tree
    verified: tree nodes that the target verified, over all rounds
    from_ngrams: tokens of the answer that n-grams proposed and the head had not drafted
    accepted: how many rounds brought at least n tokens of a tree into the answer, for n = 1, 2, ...
    host: everything outside the two graph calls, after the prompt: masks, accept, commit, detokenising
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    drafts: int = 0
    verified: int = 0
    from_ngrams: int = 0
    accepted: list[int] = field(default_factory=list)
    prefill: float = 0.0
    first_token: float = 0.0
    draft: float = 0.0
    target: float = 0.0
    host: float = 0.0

    def count_round(self, accepted: int, counts: RoundCounts) -> None:
        """Count a round that brought `accepted` tokens of its tree into the answer; what an answer's end cut off is none."""
        self.rounds += 1
        self.drafts += counts.drafted
        self.verified += counts.verified
        self.from_ngrams += max(0, accepted - counts.from_head)
        self.accepted += [0] * (accepted - len(self.accepted))
        for level in range(accepted):
            self.accepted[level] += 1

    @property
    def decode(self) -> float:
        """Seconds from the first token to the last."""
        return self.draft + self.target + self.host

    @property
    def tau(self) -> float:
        """Tokens of the answer per target pass; neither the pass over the prompt counts nor the token that it gave."""
        return (self.new_tokens - 1) / self.rounds if self.rounds else 0.0

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
            "from_ngrams": self.from_ngrams,
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
