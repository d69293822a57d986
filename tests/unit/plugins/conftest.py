"""The plugins' CPU build, once a session."""

from __future__ import annotations

import pytest

import plugin_library
from plugin_library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    return Library(plugin_library.build())
