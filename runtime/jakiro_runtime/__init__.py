"""Run exported Jakiro engines: draft a tree, verify it in one pass, keep what the target agrees with.

from jakiro_runtime import Engine

engine = Engine.open("out/smollm2")
session = engine.session()
for event in session.generate(engine.chat_prompt([{"role": "user", "content": "Why is the sky blue?"}])):
    print(event.text, end="", flush=True)
print(session.stats.line())
"""

from jakiro_runtime.decoding.sequence import GenerationChunk, GenerationResult
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.sampling import LogitsProcessor, Sampling, TokenLogprob
from jakiro_runtime.session import Session

__all__ = [
    "Engine",
    "EngineError",
    "GenerationChunk",
    "GenerationResult",
    "LogitsProcessor",
    "Sampling",
    "Session",
    "Stats",
    "TokenLogprob",
    "UsageError",
]
