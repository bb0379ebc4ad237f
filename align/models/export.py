"""Export an artifact as a whole model; an adapter is merged into its base."""

from __future__ import annotations

from pathlib import Path

from align.models.heads import load_reward_model
from align.models.load import load_model, load_tokenizer, save_model


def write_whole(kind: str, place: Path, folder: Path) -> None:
    """Load the model or reward model in `place` and save it as a plain Hugging Face folder."""
    if kind == "reward_model":
        load_reward_model(place).save(folder)
    else:
        save_model(load_model(place), load_tokenizer(place), folder)
