"""Is a row's result its own? Logits of speculative answers against plain ones, bit for bit."""

from __future__ import annotations

import numpy as np

import tiny
from answers import plain, run
from jakiro_runtime import Engine, Sampling
from oracle import with_oracle


def differs(engine: Engine) -> bool:
    """Whether speculation changes a logit of any of some answers."""
    for seed in range(5):
        prompt = np.random.default_rng(seed).integers(3, tiny.VOCAB, 40).tolist()
        how = Sampling(temperature=0.8, seed=seed, logprobs=4)
        expected = plain(engine, prompt, 40, sampling=how)
        oracle = with_oracle(engine, [[*prompt, *expected.tokens]], seed)
        found = run(oracle.session(chunk=17), prompt, 40, sampling=how)
        if (found.tokens, found.logprobs) != (expected.tokens, expected.logprobs):
            return True
    return False
