"""Seals: digests that show whether a manifest, version or alias was changed after it was written.

A manifest's seal covers the fields of its result, but not dates, seconds and package versions. It
is stored in the manifest, in the version that names the artifact, and in the manifests of artifacts
made from it. A seal detects damage and edits. It does not protect against somebody who computes it
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# The fields of a manifest that the seal covers.
_RESULT = ("kind", "stage", "key", "inputs", "config", "data", "files", "metrics")
_CHECK = "check"


def digest_of(value: object) -> str:
    """Return the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's result. Pass the manifest as it is read from JSON."""
    return digest_of({field: manifest.get(field) for field in _RESULT})


def with_check(record: Mapping[str, Any], *place: object) -> dict[str, Any]:
    """Return a version or an alias with a digest of its content and place.

    The place is included, so that a swap of two records is detected.
    """
    return {**record, _CHECK: digest_of([*place, record])}


def is_checked(record: Mapping[str, Any]) -> bool:
    """Return whether a record has such a digest. Records of earlier code have none."""
    return _CHECK in record


def fits(record: Mapping[str, Any], *place: object) -> bool:
    """Return whether a record of `with_check` is unchanged and in the place it was written for."""
    own = {name: value for name, value in record.items() if name != _CHECK}
    return record.get(_CHECK) == digest_of([*place, own])
