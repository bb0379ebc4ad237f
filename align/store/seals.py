"""Seals: digests by which a manifest, a version or an alias shows that it was changed after it was written.

A manifest's seal is over the fields that make its result, not over dates, seconds and versions of packages. It stands
in the manifest, in the version that names the artifact, and in the manifests of what was made from it. A seal finds
damage and edits; it does not stop somebody who computes it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_RESULT = ("kind", "stage", "key", "inputs", "config", "data", "files", "metrics")  # of a manifest
_CHECK = "check"


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal_of(manifest: Mapping[str, Any]) -> str:
    """The digest of a manifest's result, as it is read from JSON."""
    return digest_of({field: manifest.get(field) for field in _RESULT})


def with_check(record: Mapping[str, Any], *place: object) -> dict[str, Any]:
    """A version or an alias with the digest of itself and of its place, so that two of them cannot be swapped."""
    return {**record, _CHECK: digest_of([*place, record])}


def is_checked(record: Mapping[str, Any]) -> bool:
    """Whether the record has a digest of itself; stores of earlier code have none."""
    return _CHECK in record


def fits(record: Mapping[str, Any], *place: object) -> bool:
    """Whether a record of `with_check` is as it was written, at the place where it was written."""
    own = {name: value for name, value in record.items() if name != _CHECK}
    return record.get(_CHECK) == digest_of([*place, own])
