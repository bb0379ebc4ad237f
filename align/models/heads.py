"""Models with a scalar for every token: the reward model and the value model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

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
MEMBERS = "members"  # the folder of an ensemble's members after the first


class ScalarModel(torch.nn.Module):
    """A sequence classifier with one label, read at any token, minus a shift stored in its config.

    The shift makes the mean score of the demonstrations 0. A value model that starts from a reward
    model keeps the shift.
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

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Return float32 scalars [len(at)] at the token indices `at` of one packed row [1, N]."""
        hidden = self.classifier.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state[0, at]
        # bf16 would round the scores to eight bits of precision.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.classifier.score(hidden.float())[:, 0] - self.shift

    def save(self, folder: Path) -> None:
        """Save as a plain Hugging Face classifier.

        Only `load_scalar` applies the shift; other loaders score without it.
        """
        save_weights(self.classifier, folder)


class Ensemble(torch.nn.Module):
    """Reward models of one architecture and vocabulary; their mean score counts."""

    def __init__(self, members: Iterable[ScalarModel]):
        super().__init__()
        self.members = torch.nn.ModuleList(members)

    def __iter__(self) -> Iterator[ScalarModel]:
        return iter(cast("Iterable[ScalarModel]", self.members))

    @property
    def classifier(self) -> PreTrainedModel:
        """The classifier of the first member; its config is that of every member."""
        return next(iter(self)).classifier

    def each(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Return the scores of every member, [M, len(at)]; see `ScalarModel.forward`."""
        return torch.stack([member(input_ids, position_ids, at) for member in self])

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean score of the members, [len(at)]."""
        return self.each(input_ids, position_ids, at).mean(0)

    def save(self, folder: Path) -> None:
        """Save the first member as a plain reward model, and the others in folders below it."""
        for number, member in enumerate(self):
            place = folder / MEMBERS / str(number) if number else folder
            place.mkdir(parents=True, exist_ok=True)
            member.save(place)


def scalar_from_lm(folder: Path, device: torch.device | str = "cpu") -> ScalarModel:
    """Put a fresh scalar head on the trunk of a language model.

    Head weights are drawn from N(0, 1 / (width + 1)), as in lm-human-preferences.
    """
    model = _load(folder, device, fresh_head=True)
    head = model.classifier.score
    torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    return model


def load_scalar(
    folder: Path, device: torch.device | str = "cpu", fresh_head: bool = False
) -> ScalarModel:
    """Load the reward model of an artifact, in eval mode; an adapter is merged into its base.

    Of an ensemble it is the first member; `load_reward_model` loads all.

    Args:
        fresh_head: the folder holds a language model; the caller fills the head.

    Raises:
        ConfigError: the folder has no head, or one that is not a linear layer called `score`.
    """
    return _load(folder, device, fresh_head).eval()


def load_reward_model(folder: Path, device: torch.device | str = "cpu") -> ScalarModel | Ensemble:
    """Load the reward model of an artifact with all its members, in eval mode.

    Raises:
        ConfigError: see `load_scalar`.
    """
    first = load_scalar(folder, device)
    others = sorted((folder / MEMBERS).glob("*"), key=lambda place: int(place.name))
    if not others:
        return first
    return Ensemble([first, *(load_scalar(place, device) for place in others)]).eval()


def classifier_class(config: PreTrainedConfig) -> type[Any]:
    """Return the sequence classifier class for this architecture.

    This is the library's class, or one of align's own if the library has none that fits. The latter
    follows the library's recipe: the architecture's trunk and a linear layer `score`. A folder that
    it saves opens with `AutoModel` (without the head) and with `load_scalar`.

    Raises:
        ConfigError: `transformers` has no trunk of this architecture.
    """
    mapping = AutoModelForSequenceClassification._model_mapping
    if type(config) in mapping:
        found = mapping[type(config)]
        with torch.device("meta"):
            head = getattr(found(copy.deepcopy(config)), "score", None)
        if isinstance(head, torch.nn.Linear):
            return found
    if type(config) not in AutoModel._model_mapping:
        raise ConfigError(
            f"{config.model_type}: transformers has no trunk of it to put a scalar head on"
        )
    trunk = AutoModel._model_mapping[type(config)]
    # The architecture's PreTrainedModel subclass, which defines how its models load.
    base = next(kind for kind in trunk.__mro__ if PreTrainedModel in kind.__bases__)
    name = f"{base.__name__.removesuffix('PreTrainedModel')}ForSequenceClassification"
    # The library inspects a class's module to find the features of the architecture.
    own = {"base_model_prefix": base.base_model_prefix, "__module__": base.__module__}
    return type(name, (GenericForSequenceClassification, base), own)


def _biased(kind: type[Any]) -> type[Any]:
    """Return the same classifier class with a bias in its head.

    Some published reward models have one.
    """

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
        classifier.stored_dtype = torch.float32  # same reason as in `load_model`
        # The base is a language model, which has no `score` head.
        fresh_head = fresh_head or bool(adapter.head)
        merge_adapter(classifier, adapter)
    missing = {
        name for name in loading["missing_keys"] if not (fresh_head and name.startswith("score."))
    }
    if missing:
        raise ConfigError(
            f"{folder.name[:12]}: missing weights: {min(missing)}; a reward model is the trunk of a"
            " language model and one linear layer called score"
        )
    fit_as_recorded(classifier)
    return ScalarModel(classifier.to(device))


def open_classifier(config: PreTrainedConfig, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Load a sequence classifier with its saved head, with or without a bias.

    Args:
        config: with one label.
        given: further arguments of `from_pretrained`.

    Returns:
        The classifier, and the loading info of `from_pretrained`: weights that did not fit.
    """
    kind = classifier_class(config)
    classifier, loading = kind.from_pretrained(config=config, output_loading_info=True, **given)
    if "score.bias" in loading["unexpected_keys"]:
        classifier, loading = _biased(kind).from_pretrained(
            config=config, output_loading_info=True, **given
        )
    return classifier, loading
