"""Philox 4x32-10: one pseudo-random number for each seed and position (Salmon et al., SC 2011)."""

from __future__ import annotations


def uniform(seed: int, position: int) -> float:
    """The pseudo-random number of a position, in [0, 1) with 53 bits: Philox 4x32-10, key seed, counter position."""
    high, low = philox(seed & 0xFFFFFFFF, seed >> 32, (position & 0xFFFFFFFF, position >> 32, 0, 0))[:2]
    return ((high >> 5) * 67108864 + (low >> 6)) / 9007199254740992


def philox(key0: int, key1: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox 4x32: four 32-bit numbers from a 64-bit key and a 128-bit counter (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ key0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ key1, p0 & 0xFFFFFFFF
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
