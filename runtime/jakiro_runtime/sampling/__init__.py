"""Sampling: from the target's logits to a token."""

from jakiro_runtime.sampling.constraint import Constraint
from jakiro_runtime.sampling.logprobs import TokenLogprob
from jakiro_runtime.sampling.parameters import LogitsProcessor, Sampling
from jakiro_runtime.sampling.sampler import NO_TOKEN, Sampler

__all__ = ["NO_TOKEN", "Constraint", "LogitsProcessor", "Sampler", "Sampling", "TokenLogprob"]
