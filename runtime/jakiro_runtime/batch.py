"""Batches: several prompts in one padded batch through the same graphs; each answer equals its prompt's run alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jakiro_runtime.bundle import Bundle
from jakiro_runtime.decoding.decoder import Decoder
from jakiro_runtime.decoding.sequence import GenerationResult, TokenSequence
from jakiro_runtime.sampling import Sampling
from jakiro_runtime.sampling.grammar import Grammar


def generate(
    bundle: Bundle,
    prompts: Sequence[Sequence[int] | str],
    max_new_tokens: int = 512,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Sequence[str] = (),
    grammar: Grammar | None = None,
    speculate: bool = True,
    chunk: int = 128,
    nodes: int | None = None,
    lookup: bool = True,
) -> list[GenerationResult]:
    """Answer every prompt. A finished answer leaves the batch, so the others do not pay for it.

    Args:
        prompts: token ids or text, of any lengths
        sampling: one for all, or one for each prompt
        speculate, chunk, nodes, lookup: as `Session` takes them

    Returns:
        one result a prompt, in order; times in their statistics are the whole batch's

    Raises:
        UsageError: as `Session.generate`
    """
    if not prompts:
        return []
    each = sampling if isinstance(sampling, Sequence) else [sampling] * len(prompts)
    sequences = [
        TokenSequence(bundle, prompt, max_new_tokens, how, stop, grammar) for prompt, how in zip(prompts, each, strict=True)
    ]
    decoder = Decoder(bundle, len(prompts), speculate, chunk, nodes, lookup)
    results = [GenerationResult(stats=sequence.stats) for sequence in sequences]
    started = time.perf_counter()
    gains = decoder.prefill(sequences)
    prefilled = time.perf_counter()
    before = decoder.seconds
    active = list(range(len(sequences)))  # the sequence in each row of the batch
    while True:
        for number, gain in zip(active, gains, strict=True):
            results[number].add(sequences[number].take(gain))
            stats = sequences[number].stats
            stats.prefill = stats.first_token = prefilled - started
            stats.draft, stats.target = (now - then for now, then in zip(decoder.seconds, before, strict=True))
            stats.host = time.perf_counter() - prefilled - stats.draft - stats.target
        staying = [row for row, number in enumerate(active) if not sequences[number].finish_reason]
        if not staying:
            return results
        if len(staying) < len(active):
            decoder.select(staying)
            active = [active[row] for row in staying]
        gains = decoder.round([sequences[number] for number in active])
