"""Detect the language of a text with the package langdetect, which is optional."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from align.errors import ConfigError

MISSING = "needs the package langdetect: pip install langdetect, or align's extra `rewards`"


def is_installed() -> bool:
    """Return whether languages can be detected here."""
    return importlib.util.find_spec("langdetect") is not None


@functools.cache
def codes() -> list[str]:
    """Return the codes that `detect` can give, sorted."""
    from langdetect.detector_factory import PROFILES_DIRECTORY

    return sorted(file.name for file in Path(PROFILES_DIRECTORY).iterdir() if "." not in file.name)


def detect(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None for a text without letters.

    Chinese is `zh-cn` or `zh-tw`. The package draws random numbers; here their seed is fixed, so
    that a text has one answer.

    Raises:
        ConfigError: langdetect is not installed.
    """
    if not is_installed():
        raise ConfigError(f"language detection {MISSING}")
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        found: str = detector.detect()
    except LangDetectException:
        return None
    return found


@functools.cache
def _factory() -> Any:
    """Return a factory of our own: the seed of the package's shared one may be a user's choice."""
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.seed = 0
    factory.load_profile(PROFILES_DIRECTORY)
    return factory
