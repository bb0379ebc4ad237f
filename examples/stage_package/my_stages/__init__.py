"""Stages of mine."""

from dataclasses import dataclass
from typing import ClassVar

from align.configs import StageConfig, knob


@dataclass(slots=True, kw_only=True)
class Dedupe(StageConfig):
    """Keep one prompt of those that begin with the same words."""

    STAGE: ClassVar[str] = "dedupe"
    MODULE: ClassVar[str] = "my_stages.dedupe"
    OUTPUT: ClassVar[str] = "prompts"
    INPUTS: ClassVar[dict[str, str]] = {"prompts": "prompts"}
    PARALLEL: ClassVar[bool] = False
    num_words: int = knob(5, "words that must differ [ours]")


STAGES = [Dedupe]
