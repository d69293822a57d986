"""Whole answers, as tests want them."""

from __future__ import annotations

from jakiro_runtime import Engine, GenerationResult, Session


def run(session: Session, prompt: list[int] | str, most: int = 40, **options: object) -> GenerationResult:
    result = GenerationResult()
    for event in session.generate(prompt, most, **options):
        assert event.tokens or event.finish_reason == "constraint"
        result.add(event)
    result.stats = session.stats
    return result


def plain(engine: Engine, prompt: list[int], most: int = 40, **options: object) -> GenerationResult:
    return run(engine.session(speculate=False), prompt, most, **options)
