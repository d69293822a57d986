"""The golden vectors of tests/vectors: the code gives what stands there, and they would notice if it did not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

import vectors


def same(found: Any, expected: Any) -> bool:
    """Equal; doubles up to the last places, in which mathematical libraries differ."""
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-300)
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("name", vectors.FILES)
def test_the_code_gives_what_the_vectors_say(name: str) -> None:
    cases = json.loads((vectors.FOLDER / f"{name}.json").read_text())
    assert len(cases) > 5
    for case in cases:
        found = json.loads(json.dumps(vectors.CALLS[case["call"]](**case["given"])))
        assert same(found, case["expected"]), case


@pytest.mark.parametrize("name", vectors.FILES)
def test_a_vector_that_was_changed_is_noticed(name: str) -> None:
    def changed(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        if isinstance(value, list):
            return [*value[:-1], changed(value[-1])] if value else [0]
        return {key: changed(each) for key, each in value.items()} if isinstance(value, dict) else f"{value}x"

    for case in json.loads((vectors.FOLDER / f"{name}.json").read_text()):
        assert not same(json.loads(json.dumps(vectors.CALLS[case["call"]](**case["given"]))), changed(case["expected"]))


def test_the_files_are_those_of_the_command() -> None:
    assert {file.stem for file in vectors.FOLDER.glob("*.json")} == set(vectors.FILES)
