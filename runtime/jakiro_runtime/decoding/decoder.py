"""The decoding loop for a batch of sequences in lockstep: process prompts, then rounds of draft, verify, accept, commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np

from jakiro_runtime.backends import Memory
from jakiro_runtime.bundle import Bundle
from jakiro_runtime.decoding.proposers import NoProposer, Proposer, TreeProposer, call_spans
from jakiro_runtime.decoding.sequence import Gain, TokenSequence
from jakiro_runtime.decoding.target_runner import TargetOutput, TargetRunner
from jakiro_runtime.decoding.tree import DraftTree, NextToken, accept, tree_mask


class Decoder:
    """The target, what proposes trees for it, and their caches, for a batch of sequences.

    Args:
        speculate: False decodes with the target alone, in the same loop with empty trees
        chunk: rows of a prompt that are processed in one call
        nodes, ngrams: as `TreeProposer` takes them
        memory: where its tensors live; sequences move between decoders of one memory. A new one by default
    """

    def __init__(
        self,
        bundle: Bundle,
        batch: int,
        speculate: bool,
        chunk: int,
        nodes: int | None,
        ngrams: bool,
        memory: Memory | None = None,
    ) -> None:
        memory = memory or bundle.target.memory()
        self.target = TargetRunner(bundle.target, bundle.manifest, batch, memory)
        self.proposer: Proposer = TreeProposer(bundle, batch, memory, chunk, nodes, ngrams) if speculate else NoProposer()
        self._chunk, self._grows = chunk, bundle.flexible_rows

    def prefill(self, sequences: Sequence[TokenSequence]) -> list[Gain]:
        """Process what the caches do not hold of each prompt; the first token of each answer."""
        return next(gains for gains in self.prefill_calls(sequences) if gains)

    def prefill_calls(self, sequences: Sequence[TokenSequence]) -> Iterator[list[Gain]]:
        """`prefill`, a call of the target at a time: nothing after each, and the first tokens after the last one."""
        self.proposer.start(sequences)
        if not self._grows:  # a cache that grew in mid-answer would have every shape bound and recorded again
            slots = max(sequence.longest for sequence in sequences) + self.proposer.row_counts[-1]
            self.target.reserve(slots)
            if self.proposer.draft:
                self.proposer.draft.reserve(slots)
        waiting = [
            sequence.tokens[length:] for sequence, length in zip(sequences, self.target.cache.lengths.tolist(), strict=True)
        ]
        calls = call_spans([len(ids) for ids in waiting], self._chunk)
        for spans in calls:
            output = self._prefill_chunk(
                [ids[start:stop] for ids, (start, stop) in zip(waiting, spans, strict=True)],
                logits=_need_logits(sequences) and spans is calls[-1],
            )
            if spans is not calls[-1]:
                yield []
        yield [Gain([_next_token(sequence, output, number)(0, [])]) for number, sequence in enumerate(sequences)]

    def _prefill_chunk(self, chunk: Sequence[Sequence[int]], logits: bool) -> TargetOutput:
        counts = np.array([len(ids) for ids in chunk])
        rows = int(counts.max())
        tokens = np.zeros((len(chunk), rows), np.int64)
        for number, ids in enumerate(chunk):
            tokens[number, : len(ids)] = ids
        depths = np.broadcast_to(np.arange(rows), tokens.shape)
        mask = np.broadcast_to(np.tri(rows, dtype=bool), (len(chunk), rows, rows))
        output = self.target.run(tokens, depths, mask, logits, np.maximum(counts - 1, 0))
        self._commit(output, [range(count) for count in counts.tolist()])
        return output

    def round(self, sequences: Sequence[TokenSequence]) -> list[Gain]:
        """One round: for each sequence the tokens of its tree that the target agrees with, and one more."""
        trees = self.proposer.propose(sequences, self.target.cache.capacity)  # head and n-grams, cut to what is worth its rows
        output = self._verify(sequences, trees)  # one pass of the target over every root and its tree
        # x ~ target(. | path) after each visited row; follow the child whose token is x, else stop there. The draw does not look
        # at the tree, so that the output is the target's own, greedy or sampled, whatever was proposed.
        accepted = [
            accept(tree, _next_token(sequence, output, number))
            for number, (sequence, tree) in enumerate(zip(sequences, trees, strict=True))
        ]
        self._commit(output, [path.rows for path in accepted])  # accepted rows only; the others were never in the cache
        counts = self.proposer.observe(trees, accepted, self.target.cache.capacity)
        rounds = zip(accepted, counts, trees, strict=True)
        return [Gain(path.tokens, count, tree, path.rows) for path, count, tree in rounds]

    def _verify(self, sequences: Sequence[TokenSequence], trees: Sequence[DraftTree]) -> TargetOutput:
        nodes = max(len(tree.tokens) for tree in trees)
        rows = next(count for count in self.proposer.row_counts if count > nodes)  # few shapes, each bound once
        tokens = [
            [sequence.tokens[-1], *tree.tokens, *[0] * (rows - 1 - len(tree.tokens))]
            for sequence, tree in zip(sequences, trees, strict=True)
        ]
        masks, depths = zip(*(tree_mask(tree.parents, rows) for tree in trees), strict=True)
        return self.target.run(tokens, depths, masks, _need_logits(sequences))

    def _commit(self, output: TargetOutput, rows: Sequence[Sequence[int]]) -> None:
        """Keep these rows of a pass, for each sequence: their features to draft after, their keys and values to attend to."""
        self.proposer.extend(output.features, rows)
        self.target.commit(output, rows)

    @property
    def seconds(self) -> tuple[float, float]:
        """Spent in the draft graph and in the target graph so far."""
        draft = self.proposer.draft
        return draft.seconds if draft else 0.0, self.target.seconds

    def truncate(self, sequence: int, length: int) -> None:
        """Forget what the caches hold of a sequence from `length` on."""
        self.target.cache.truncate(sequence, length)
        if self.proposer.draft:
            self.proposer.draft.cache.truncate(sequence, length)

    def cached_length(self, sequence: int) -> int:
        """How many tokens of a sequence every cache holds."""
        caches = [self.target.cache, *([self.proposer.draft.cache] if self.proposer.draft else [])]
        return min(int(cache.lengths[sequence]) for cache in caches)

    def reuse(self, known: Sequence[int], ids: Sequence[int]) -> int:
        """Truncate the first sequence, whose caches stand for `known`, to what a prompt shares with it; how many tokens.

        The prompt's last token is always processed, for its logits.
        """
        # a draft row needs the token after its own: the last common token's row is made again
        length = max(0, min(shared_prefix(known, ids) - 1, self.cached_length(0), len(ids) - 1))
        self.truncate(0, length)
        return length

    def select(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence."""
        self.assemble([(self, number) for number in sequences])

    def admit(self, other: Decoder) -> None:
        """Append the sequences of another decoder of the same memory and options, whose prompts are processed."""
        self.assemble([(decoder, number) for decoder in (self, other) for number in range(len(decoder.target.cache.lengths))])

    def assemble(self, parts: Sequence[tuple[Decoder, int]]) -> None:
        """Hold copies of these sequences, (decoder, number) each, in place of its own."""
        self.proposer.assemble([(decoder.proposer, number) for decoder, number in parts])
        self.target.assemble([(decoder.target, number) for decoder, number in parts])


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _need_logits(sequences: Sequence[TokenSequence]) -> bool:
    return any(sequence.needs_logits for sequence in sequences)


def _next_token(sequence: TokenSequence, output: TargetOutput, number: int) -> NextToken:
    """How the sequence in row `number` of the batch draws its tokens after the rows of a pass."""
    best, logits = output.next_tokens[number].tolist(), output.logits
    if logits is None or not sequence.needs_logits:
        return lambda row, path: int(best[row])
    return lambda row, path: sequence.next_token(best[row], np.asarray(logits[number, row]), path)
