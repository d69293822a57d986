"""Sampling: from the target's logits to a token."""

from jakiro_runtime.sampling.sampler import Constraint, LogitsProcessor, Sampler, Sampling, TokenLogprob

__all__ = ["Constraint", "LogitsProcessor", "Sampler", "Sampling", "TokenLogprob"]
