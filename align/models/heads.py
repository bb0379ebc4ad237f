"""A scalar on every token: the reward model, and the value model that starts from it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from align.errors import ConfigError
from align.models.load import attention_of, fit_as_recorded, save_weights, stored_dtype
from align.models.lora import merge_adapter, read_adapter
from align.store.artifacts import base_folder

SHIFT = "align_reward_shift"


class ScalarModel(torch.nn.Module):
    """A sequence classifier with one label, read at any token, minus a shift kept in its config.

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
        save_weights(self.classifier, folder)


def scalar_from_lm(folder: Path, device: torch.device | str = "cpu") -> ScalarModel:
    """The trunk of a language model under a fresh head, N(0, 1 / (width + 1)), as in lm-human-preferences."""
    model = _load(folder, device, fresh_head=True)
    head = model.classifier.score
    torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    return model


def load_scalar(folder: Path, device: torch.device | str = "cpu", fresh_head: bool = False) -> ScalarModel:
    """The reward model of an artifact, in eval mode; an adapter comes merged into its base.

    Args:
        fresh_head: the folder holds a language model, and the head is the caller's to fill.

    Raises:
        ConfigError: the folder has no head, or one that is not a linear layer called `score`.
    """
    return _load(folder, device, fresh_head).eval()


def classifier_class(config: PreTrainedConfig) -> type[Any]:
    """The library's sequence classifier for this architecture, or one of ours where it has none that fits.

    Ours is the library's own recipe (a trunk and a linear layer `score`) over this architecture's trunk. The folder it
    saves opens with `AutoModel`, without the head, and with `load_scalar`.
    """
    mapping = AutoModelForSequenceClassification._model_mapping
    if type(config) in mapping:
        found = mapping[type(config)]
        with torch.device("meta"):
            head = getattr(found(copy.deepcopy(config)), "score", None)
        if isinstance(head, torch.nn.Linear):
            return found
    if type(config) not in AutoModel._model_mapping:
        raise ConfigError(f"{config.model_type}: transformers has no trunk of it to put a scalar head on")
    trunk = AutoModel._model_mapping[type(config)]
    base = next(kind for kind in trunk.__mro__ if PreTrainedModel in kind.__bases__)  # how its models load
    name = f"{base.__name__.removesuffix('PreTrainedModel')}ForSequenceClassification"
    # The library looks into a class's module to see what the architecture can do.
    own = {"base_model_prefix": base.base_model_prefix, "__module__": base.__module__}
    return type(name, (GenericForSequenceClassification, base), own)


def _biased(kind: type[Any]) -> type[Any]:
    """The same classifier, its head with a bias, as some published reward models have it."""

    def __init__(self: Any, config: PreTrainedConfig) -> None:
        kind.__init__(self, config)
        self.score = torch.nn.Linear(self.score.in_features, config.num_labels)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


def _load(folder: Path, device: torch.device | str, fresh_head: bool = False) -> ScalarModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, num_labels=1)
    stored = stored_dtype(config)
    classifier, loading = open_classifier(
        config,
        pretrained_model_name_or_path=base_folder(folder),
        dtype=torch.float32,
        attn_implementation=attention_of(config),
    )
    classifier.stored_dtype = stored
    adapter = read_adapter(folder)
    if adapter is not None:
        classifier.stored_dtype = torch.float32  # as `load_model` does
        fresh_head = fresh_head or bool(adapter.head)  # the base is a language model: it has none
        merge_adapter(classifier, adapter)
    missing = {name for name in loading["missing_keys"] if not (fresh_head and name.startswith("score."))}
    if missing:
        raise ConfigError(
            f"{folder.name[:12]}: missing weights: {min(missing)}; a reward model is the trunk of a language model "
            f"and one linear layer called score"
        )
    fit_as_recorded(classifier)
    return ScalarModel(classifier.to(device))


def open_classifier(config: PreTrainedConfig, **given: Any) -> tuple[Any, dict[str, Any]]:
    """A sequence classifier with its head as it was saved, with a bias or without, and what of it did not fit.

    Args:
        config: with one label.
        given: further arguments of `from_pretrained`.
    """
    kind = classifier_class(config)
    classifier, loading = kind.from_pretrained(config=config, output_loading_info=True, **given)
    if "score.bias" in loading["unexpected_keys"]:
        classifier, loading = _biased(kind).from_pretrained(config=config, output_loading_info=True, **given)
    return classifier, loading
