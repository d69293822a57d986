"""Grammar trial: compiling a large or deep grammar in a process of its own first, which may hang, crash or run out of memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from jakiro_runtime.errors import UsageError

_SECONDS = 10
_BYTES = 4 << 30
_LARGEST = 1 << 22  # characters
# no trial for what cannot take long: compiling in the library recurses by brackets and multiplies by repetitions
_SMALL, _SHALLOW = 1 << 13, 40
_LARGE_NUMBER = re.compile(r"\d{4}|e\d", re.IGNORECASE)
_PROGRAM = """
import json, resource, sys
given = json.load(sys.stdin)
sys.path[:] = given["path"]
resource.setrlimit(resource.RLIMIT_AS, (given["bytes"], given["bytes"]))
resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"], given["seconds"]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import llguidance, llguidance.numpy
tokenizer = llguidance.LLTokenizer("byte")
matcher = llguidance.LLMatcher(tokenizer, given["source"])
if not matcher.get_error():
    bits = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
    llguidance.numpy.fill_next_token_bitmask(matcher, bits, 0)
"""


def try_grammar(source: str, text: str) -> None:
    """Compile a grammar elsewhere if it is large or deep.

    Args:
        source: as llguidance takes it
        text: as the user wrote it

    Raises:
        UsageError: it takes too much time or memory, or crashes the library
    """
    if len(text) > _LARGEST:
        raise UsageError(f"The grammar has {len(text)} characters; at most {_LARGEST} are expected.")
    if len(text) <= _SMALL and _depth(text) <= _SHALLOW and not _LARGE_NUMBER.search(text):
        return
    given = {"path": sys.path, "source": source, "bytes": _BYTES, "seconds": _SECONDS}
    command = [sys.executable, "-I", "-c", _PROGRAM]
    try:
        done = subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, timeout=2 * _SECONDS, check=False)
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        raise UsageError(
            f"The grammar does not compile within {_SECONDS} seconds and {_BYTES >> 30} GiB, or breaks its library; "
            "give one with fewer repetitions and brackets."
        )


def _depth(text: str) -> int:
    """How deep brackets may be nested; operators before an operand count too."""
    depth = deepest = 0
    for character in text:
        if character in "([{~-!":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}" and depth:
            depth -= 1
    return deepest
