"""Low-rank adapters (LoRA) side by side on one frozen model.

With no adapter active, the model gives its original output.

The model may be an adapter's base with that adapter merged in. An adapter that is trained on it is
saved as the composition of both, on the base. So all adapters of a base can be used together, no
matter which adapter a run started from.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from align.configs import LoraConfig
from align.errors import ConfigError
from align.models import lora as low_rank
from align.models.heads import SHIFT
from align.models.lora import AdapterWeights, adapter_of, compose, difference, read_adapter
from align.models.vocabulary import DRAWN
from align.store.artifacts import base_name


class Adapters:
    """Named adapters on the linear layers of one model.

    Args:
        model: as returned by `load_model` or `scalar_from_lm`; it is frozen.
        folder: the folder of the artifact that `model` was loaded from, a whole model or an
            adapter.
    """

    def __init__(self, model: PreTrainedModel, folder: Path):
        self.base = model.requires_grad_(False)
        self._root = "/".join(base_name(folder))
        start = read_adapter(folder)
        self._start = None if start is None else start.within(model)
        self._targets = sorted(linear_names(model))
        self._on: str | None = None

    def add(self, name: str, lora: LoraConfig) -> None:
        """Add a fresh adapter, which changes nothing until it is trained.

        Import draws the embedding rows of new tokens at random. Rows that are still untrained are
        trained in full, because otherwise they stay noise.
        """
        drawn = getattr(self.base.config, DRAWN, None)
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=self._targets,
            trainable_token_indices={layer: list(drawn) for layer in token_layers(self.base)}
            if drawn
            else None,
        )
        with self._learning(name):
            low_rank.inject(self.base, name, config)

    def load(self, name: str, folder: Path) -> AdapterWeights:
        """Add a saved adapter of the same base and return its weights.

        Its parameters require gradients. The caller trains or freezes them.

        Raises:
            ConfigError: the artifact is a whole model or an adapter on another base, or the adapter
                does not fit the model's layers.
        """
        weights = read_adapter(folder)
        if weights is None or not self.fits(folder):
            named = "a whole model" if weights is None else f"an adapter on {weights.base}"
            raise ConfigError(f"{folder.name[:12]}: {named}; expected an adapter on {self._root}")
        with self._learning(name):
            low_rank.put(self.base, name, difference(weights.within(self.base), self._start))
        return weights

    def fits(self, folder: Path) -> bool:
        """Return True if the artifact is an adapter on the same base."""
        return read_adapter(folder) is not None and "/".join(base_name(folder)) == self._root

    def save(
        self,
        name: str,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        head: torch.nn.Linear | None = None,
    ) -> None:
        """Write one adapter as a model artifact, in peft's layout.

        Args:
            folder: gets the adapter on the base, the config of the whole model, and the tokenizer.
            head: the linear layer of a reward model.
        """
        weights = self.weights(name)
        if head is not None:
            weights = weights.with_head(
                {key: value.detach() for key, value in head.state_dict().items()}
            )
        weights.save(folder)
        config = copy.deepcopy(self.base.config)
        config.architectures = [type(self.base).__name__]
        config.dtype = getattr(self.base, "stored_dtype", torch.float32)
        _forget_drawn(config, weights)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def weights(self, name: str) -> AdapterWeights:
        """Return one adapter relative to the base in the store.

        It combines the adapter that the model started from, if any, with the training on top of it.
        """
        own = low_rank.take(self.base, name, self._root)
        return own if self._start is None else compose(self._start, own)

    def parameters(self, name: str) -> dict[str, torch.nn.Parameter]:
        """Return the parameters of one adapter by name."""
        return {
            key: value for key, value in self.base.named_parameters() if adapter_of(key) == name
        }

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[PreTrainedModel]:
        """Yield the model with one adapter active, or none.

        On exit, activate again the adapter that was active before.
        """
        before, self._on = self._on, name
        low_rank.switch(self.base, name)
        try:
            yield self.base
        finally:
            self._on = before
            low_rank.switch(self.base, before)

    def as_now(self) -> contextlib.AbstractContextManager[PreTrainedModel]:
        """Return a context manager that activates the adapter that is active now.

        It does so no matter which adapter is active when the context is entered.
        """
        return self.using(self._on)

    def turn_on(self, name: str) -> None:
        """Activate one adapter permanently, to train it on its own."""
        self._on = name
        low_rank.switch(self.base, name)

    def merged(self, name: str) -> PreTrainedModel:
        """Return a copy of the model with one adapter merged into its weights, as a plain model."""
        model = low_rank.merge(copy.deepcopy(self.base), name)
        # Rounding to 16 bits could remove the small changes of the adapter.
        model.stored_dtype = torch.float32
        _forget_drawn(model.config, self.weights(name))
        return model

    @contextlib.contextmanager
    def _learning(self, name: str) -> Iterator[None]:
        """Make the adapter that is added inside this context trainable, and nothing else.

        Other parameters keep their `requires_grad`.
        """
        before = {id(parameter): parameter.requires_grad for parameter in self.base.parameters()}
        try:
            yield
        finally:
            for key, parameter in self.base.named_parameters():
                parameter.requires_grad_(before.get(id(parameter), adapter_of(key) == name))
            self.base.eval()
            low_rank.switch(self.base, self._on)


def fresh_adapter(model: PreTrainedModel, folder: Path, lora: LoraConfig, name: str) -> Adapters:
    """Add one adapter to the model of the artifact `folder`, to be trained on its own.

    All other parameters of the model are frozen.
    """
    adapters = Adapters(model, folder)
    adapters.add(name, lora)
    adapters.turn_on(name)
    return adapters


def linear_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the linear layers of the trunk; the head is not included."""
    names = set()
    for path, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and _gives_a_tensor(module):
            parent, _, name = path.rpartition(".")
            # A number is an index into a ModuleList. Alone, it would match the model's layers, too.
            names.add(f"{parent.rpartition('.')[2]}.{name}" if name.isdigit() else name)
    return names


@torch.no_grad()
def _gives_a_tensor(module: torch.nn.Module) -> bool:
    """Return True if the module's forward returns a single tensor.

    False for the router of PhiMoE: it is a linear layer whose forward returns several tensors, so
    an adapter cannot be added to its output.
    """
    if type(module).forward in (torch.nn.Linear.forward, Conv1D.forward):
        return True
    weight = module.get_parameter("weight")
    return isinstance(module(weight.new_zeros(1, weight.shape[1])), torch.Tensor)


def token_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of layers with one row per token: the embeddings and an untied head.

    A head with a bias is left out, because peft cannot train its rows.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(embeddings)]]
    if (
        isinstance(head, torch.nn.Linear)
        and head.bias is None
        and head.weight is not embeddings.weight
    ):
        found.append(names[id(head)])
    return found


def _forget_drawn(config: PreTrainedConfig, weights: AdapterWeights) -> None:
    """Delete the config's list of untrained token rows if the adapter trains them."""
    if weights.rows and hasattr(config, DRAWN):
        delattr(config, DRAWN)


class AdapterScalar:
    """A scalar on every token, like `ScalarModel`, computed by an adapter and a head."""

    def __init__(self, adapters: Adapters, name: str, head: torch.nn.Linear, shift: float = 0.0):
        self._adapters, self._name, self.head, self._shift = adapters, name, head, shift

    def __call__(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        with self._adapters.using(self._name) as model:
            where = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
            hidden = model.base_model(**where).last_hidden_state[0, at]
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())[:, 0] - self._shift


def load_adapter_scalar(adapters: Adapters, name: str, folder: Path) -> AdapterScalar:
    """Load a reward model that is an adapter on the same base.

    Only the adapter, its head and its reward shift are read from the artifact.
    """
    weights = adapters.load(name, folder)
    width = weights.head["score.weight"].shape[1]
    head = torch.nn.Linear(width, 1, bias="score.bias" in weights.head, device=adapters.base.device)
    head.load_state_dict({key.removeprefix("score."): value for key, value in weights.head.items()})
    shift = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(SHIFT, 0.0)
    return AdapterScalar(adapters, name, head, shift)
