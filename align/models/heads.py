"""A scalar on every token: the reward model, and the value model that starts from it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import align.models.load  # noqa: F401  it registers align's own architectures
from align.models.attention import ATTENTION

SHIFT = "align_reward_shift"


class ScalarModel(torch.nn.Module):
    """`transformers`' sequence classifier with one label, read at any token, minus a shift kept in its config.

    The shift makes the mean score of the demonstrations 0; a value model started from a reward model carries it on.
    """

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        self.classifier: PreTrainedModel = classifier

    @property
    def shift(self) -> float:
        return getattr(self.classifier.config, SHIFT, 0.0)

    @shift.setter
    def shift(self, value: float) -> None:
        setattr(self.classifier.config, SHIFT, value)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Scalars [len(at)], float32, at the tokens `at` (indices) of one packed row [1, N]."""
        hidden = self.classifier.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state[0, at]
        with torch.autocast(hidden.device.type, enabled=False):  # eight bits of mantissa would quantise the scores
            return self.classifier.score(hidden.float())[:, 0] - self.shift

    def save(self, folder: Path) -> None:
        """As a plain Hugging Face classifier; loaded by anything but `load_scalar`, it scores without the shift."""
        self.classifier.save_pretrained(folder, safe_serialization=True)


def scalar_from_lm(folder: Path, device: torch.device | str = "cpu") -> ScalarModel:
    """The trunk of a language model under a fresh head, N(0, 1 / (width + 1)), as in lm-human-preferences."""
    model = _load(folder, device)
    head = model.classifier.score
    torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    return model


def load_scalar(folder: Path, device: torch.device | str = "cpu") -> ScalarModel:
    """The reward model of an artifact, in eval mode."""
    return _load(folder, device).eval()


def _load(folder: Path, device: torch.device | str) -> ScalarModel:
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False
    )
    return ScalarModel(classifier.to(device))
