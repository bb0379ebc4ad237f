"""Seeds by name."""

from __future__ import annotations

import hashlib

from align.runtime.seeds import derive_seed


def test_a_seed_is_63_bits_of_sha256_of_the_names():
    for names in ((0, "ppo", 3, 17), (1,), (0, "ppo", 317)):
        digest = hashlib.sha256("/".join(str(name) for name in names).encode()).hexdigest()
        assert derive_seed(*names) == int(digest[:16], 16) // 2


def test_seeds_fit_a_signed_64_bit_integer_and_use_its_range():
    seeds = [derive_seed(0, "a", i) for i in range(2000)]
    assert 0 <= min(seeds) < 2**56
    assert 2**63 - 2**56 < max(seeds) < 2**63


def test_different_names_give_different_seeds():
    names = [(s, stage, i) for s in range(3) for stage in ("ppo", "compare") for i in range(500)]
    assert len({derive_seed(*n) for n in names}) == len(names)
    assert derive_seed(0, "a", 12) != derive_seed(0, "a", 1, 2)


def test_a_known_seed():
    assert derive_seed(7, "ppo") == 0x3188B1BA4A22CFDE >> 1  # printf 7/ppo | sha256sum
