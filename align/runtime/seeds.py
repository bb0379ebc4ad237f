"""Derived random seeds: the same names give the same seed, whatever ran before."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for one purpose: `derive_seed(cfg.seed, "ppo", iteration, prompt)`.

    Different names give independent random streams. So a knob of one stage cannot change the random
    numbers of another.
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
