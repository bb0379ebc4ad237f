"""PPO's models: a policy and a value model that learn, and the reference, which is the policy as it came.

In full, each is a model of its own. As adapters (LoRA), they are one frozen base with small matrices beside its own:
policy and value model are an adapter each, and the reference is the base with none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from align.configs import LoraConfig
from align.losses.lm import TokenLogprobs
from align.models.adapters import Adapters, AdapterScalar, load_adapter_scalar
from align.models.heads import ScalarModel, load_scalar
from align.models.load import load_model, save_model
from align.models.lora import adapter_of
from align.models.packed import Scalar, head_is_plain, response_likelihoods, response_logprobs, response_values
from align.text.packing import Packed
from align.training.activations import Again

Ids = Sequence[int]


class Actors(Protocol):
    """What PPO needs of its models. Log-probs and values are flat, a number a response token (see `packed.py`)."""

    policy_parameters: dict[str, torch.nn.Parameter]
    value_parameters: dict[str, torch.nn.Parameter]

    def policy_likelihoods(
        self, packed: Packed, responses: Sequence[Ids], temperature: float, with_entropy: bool
    ) -> TokenLogprobs:
        """log p, and entropy where it is asked for, under the policy."""

    def ref_logprobs(self, packed: Packed, responses: Sequence[Ids], temperature: float) -> torch.Tensor:
        """log p under the reference."""

    def values(self, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
        """The value of the state before each response token."""

    def reward_model(self, folder: Path) -> Scalar:
        """A frozen reward model, of the artifact in `folder`."""

    def limit_activations(self, limit: Callable[[PreTrainedModel, Again | None], None]) -> None:
        """Call `limit` with each model that learns, as it learns; see `align.training.activations`."""

    def policy_model(self) -> contextlib.AbstractContextManager[PreTrainedModel]:
        """The policy as a plain model, for as long as the context lasts: to sample from."""

    def num_parameters(self) -> float:
        """Parameters of the policy and the value model, frozen ones too; a base that they share counts twice."""

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """The policy as the artifact of a model."""


class FullActors:
    """Three models; dropout is off in all (with it, the first ratio would not be 1).

    Args:
        precision: of the passes; in bf16 the models that do not learn take less memory.
    """

    def __init__(self, policy: Path, value: Path, device: torch.device, precision: str = "fp32"):
        self._in_bf16 = precision == "bf16"
        self.policy, self.reference = load_model(policy, device), load_model(policy, device).requires_grad_(False)
        if self._in_bf16:
            head_is_plain(self.reference)  # asks the model in float32, once
            _hold_products_in_bf16(self.reference)
        self.value: ScalarModel = load_scalar(value, device, fresh_head=value == policy)
        if value == policy:
            torch.nn.init.zeros_(self.value.classifier.score.weight)
        self.policy_parameters = dict(self.policy.named_parameters())
        self.value_parameters = dict(self.value.named_parameters())

    def policy_likelihoods(
        self, packed: Packed, responses: Sequence[Ids], temperature: float, with_entropy: bool
    ) -> TokenLogprobs:
        return response_likelihoods(self.policy, packed, responses, temperature, with_entropy)

    def ref_logprobs(self, packed: Packed, responses: Sequence[Ids], temperature: float) -> torch.Tensor:
        return response_logprobs(self.reference, packed, responses, temperature)

    def values(self, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
        return response_values(self.value, packed, responses)

    def reward_model(self, folder: Path) -> Scalar:
        model = load_scalar(folder, self.policy.device).requires_grad_(False)
        if self._in_bf16:
            _hold_products_in_bf16(model.classifier)
        return model

    def limit_activations(self, limit: Callable[[PreTrainedModel, Again | None], None]) -> None:
        for model in (self.policy, self.value.classifier):
            limit(model, None)

    @contextlib.contextmanager
    def policy_model(self) -> Iterator[PreTrainedModel]:
        yield self.policy

    def num_parameters(self) -> float:
        return float(sum(p.numel() for p in (*self.policy.parameters(), *self.value.parameters())))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        save_model(self.policy, tokenizer, folder)


def _hold_products_in_bf16(model: PreTrainedModel) -> None:
    """Keep the weights of a frozen model's layers that are multiplied with in bf16, as every pass would round them.

    Autocast makes the same products of them. Embeddings, gains and heads stay as they are.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    products = [module for layer in layers for module in layer.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    parameters = [parameter for module in products for parameter in module.parameters()]
    # All copies before the first is put in place: one after the other they would settle in what is freed between them,
    # and leave gaps that hold no whole weight.
    copies = [parameter.detach().to(torch.bfloat16) for parameter in parameters]
    for parameter, copy in zip(parameters, copies, strict=True):
        parameter.data = copy


class LoraActors:
    """One frozen model with an adapter for the policy, one for the value model, and one for each reward model.

    The model is the policy as it came, which may be an adapter merged into its base. A reward model that is an adapter
    on the same base comes as what it adds to that.
    """

    def __init__(self, policy: Path, value: Path, lora: LoraConfig, device: torch.device):
        self._merged = lora.merged
        self._adapters = Adapters(load_model(policy, device), policy)
        self._adapters.add("policy", lora)
        if value == policy:
            self._adapters.add("value", lora)
            width = self._adapters.base.config.get_text_config(decoder=True).hidden_size
            head = torch.nn.Linear(width, 1, bias=False, device=device)
            torch.nn.init.zeros_(head.weight)
            self._value = AdapterScalar(self._adapters, "value", head)
        else:
            self._value = load_adapter_scalar(self._adapters, "value", value)
        self._rewards = 0
        self.policy_parameters = self._adapters.parameters("policy")
        self.value_parameters = self._adapters.parameters("value")
        self.value_parameters["head"] = cast(torch.nn.Parameter, self._value.head.weight)

    def policy_likelihoods(
        self, packed: Packed, responses: Sequence[Ids], temperature: float, with_entropy: bool
    ) -> TokenLogprobs:
        with self._adapters.using("policy") as model:
            return response_likelihoods(model, packed, responses, temperature, with_entropy)

    def ref_logprobs(self, packed: Packed, responses: Sequence[Ids], temperature: float) -> torch.Tensor:
        with self._adapters.using(None) as model:
            return response_logprobs(model, packed, responses, temperature)

    def values(self, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
        return response_values(self._value, packed, responses)

    def reward_model(self, folder: Path) -> Scalar:
        if not self._adapters.fits(folder):
            return load_scalar(folder, self._adapters.base.device).requires_grad_(False)
        self._rewards += 1
        scalar = load_adapter_scalar(self._adapters, f"reward_{self._rewards}", folder)
        for parameter in (*self._adapters.parameters(f"reward_{self._rewards}").values(), scalar.head.weight):
            parameter.requires_grad_(False)
        return scalar

    def limit_activations(self, limit: Callable[[PreTrainedModel, Again | None], None]) -> None:
        with self._adapters.using("policy") as model:
            limit(model, self._adapters.as_now)

    @contextlib.contextmanager
    def policy_model(self) -> Iterator[PreTrainedModel]:
        with self._adapters.using("policy") as model:
            yield model

    def num_parameters(self) -> float:
        base = self._adapters.base
        frozen = [
            p for model in (base, base.base_model) for key, p in model.named_parameters() if adapter_of(key) is None
        ]
        learning = (*self.policy_parameters.values(), *self.value_parameters.values())
        return float(sum(p.numel() for p in (*frozen, *learning)))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        if self._merged:
            save_model(self._adapters.merged("policy"), tokenizer, folder)
        else:
            self._adapters.save("policy", folder, tokenizer)


def load_actors(policy: Path, value: Path, lora: LoraConfig, device: torch.device, precision: str = "fp32") -> Actors:
    """PPO's models from the folders of their artifacts; `value` is a reward model, or the policy for a fresh head.

    Raises:
        ConfigError: with adapters, the value model is not an adapter on the policy's base.
    """
    if lora.rank is None:
        return FullActors(policy, value, device, precision)
    return LoraActors(policy, value, lora, device)
