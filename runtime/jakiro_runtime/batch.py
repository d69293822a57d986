"""Several prompts at once, in one padded batch through the same graphs; each answer equals its prompt's run alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jakiro_runtime.decoding.decoder import Decoder
from jakiro_runtime.decoding.sequence import GenerationResult
from jakiro_runtime.sampling.sampler import Sampling

if TYPE_CHECKING:
    from jakiro_runtime.engine import Engine
    from jakiro_runtime.sampling.grammar import Grammar


def generate(
    engine: Engine,
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
    decoder = Decoder(engine, len(prompts), speculate, chunk, nodes, lookup) if prompts else None
    if decoder is None:
        return []
    each = sampling if isinstance(sampling, Sequence) else [sampling] * len(prompts)
    answers = [
        engine.answer(prompt, max_new_tokens, how, stop, grammar, decoder.levels)
        for prompt, how in zip(prompts, each, strict=True)
    ]
    results = [GenerationResult(stats=answer.stats) for answer in answers]
    started = time.perf_counter()
    gained = decoder.prefill(answers)
    prefilled = time.perf_counter()
    before = decoder.seconds
    active = list(range(len(answers)))  # the answer in each row of the batch
    while True:
        for number, chosen in zip(active, gained, strict=True):
            results[number].add(answers[number].take(chosen))
            stats = answers[number].stats
            stats.prefill = stats.first_token = prefilled - started
            stats.draft, stats.target = (now - then for now, then in zip(decoder.seconds, before, strict=True))
            stats.host = time.perf_counter() - prefilled - stats.draft - stats.target
        staying = [row for row, number in enumerate(active) if not answers[number].finish_reason]
        if not staying:
            return results
        if len(staying) < len(active):
            decoder.keep(staying)
            active = [active[row] for row in staying]
        gained = decoder.round([answers[number] for number in active])
