"""Calibration texts."""

from __future__ import annotations

from jakiro_export.tree_search.texts import Text
from jakiro_runtime import Engine


def test_calibration_texts_are_what_the_target_says(engine: Engine, calibration: list[Text]) -> None:
    assert len(calibration) >= 6
    for text in calibration[:2]:
        prompt = text.tokens[: text.first].tolist()
        said = [token for chunk in engine.session(speculate=False).generate(prompt, 48) for token in chunk.tokens]
        assert text.tokens[text.first :].tolist() == said
        assert text.features.shape == (len(text.tokens), 48)
