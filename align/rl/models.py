"""The models of PPO: the policy, which trains, and the reference (the initial policy).

A value model trains beside the policy if advantages need one.

With full fine-tuning, each is a separate model. With adapters (LoRA), they share one frozen base:
the policy and the value model are one adapter each, and the reference is the base without an
adapter.
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
from align.models.heads import ScalarModel, load_reward_model, load_scalar
from align.models.load import load_model, save_model
from align.models.lora import adapter_of
from align.models.packed import (
    Scalar,
    head_is_plain,
    response_likelihoods,
    response_logprobs,
    response_values,
)
from align.text.packing import Packed
from align.training.activations import Again

Ids = Sequence[int]


class Actors(Protocol):
    """The models that PPO needs.

    Without a value model, `value_parameters` is empty, and `values` must not be called.

    Log-probs and values are flat, one number per response token; see `align.models.packed`.
    """

    policy_parameters: dict[str, torch.nn.Parameter]
    value_parameters: dict[str, torch.nn.Parameter]

    def policy_likelihoods(
        self, packed: Packed, responses: Sequence[Ids], temperature: float, with_entropy: bool
    ) -> TokenLogprobs:
        """Return log p under the policy, and the entropy if asked for."""

    def ref_logprobs(
        self, packed: Packed, responses: Sequence[Ids], temperature: float
    ) -> torch.Tensor:
        """Return log p under the reference."""

    def values(self, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
        """Return the value of the state before each response token."""

    def reward_model(self, folder: Path) -> Scalar:
        """Load the reward model of the artifact in `folder`, frozen."""

    def limit_activations(self, limit: Callable[[PreTrainedModel, Again | None], None]) -> None:
        """Call `limit` with each model that trains, and with its `again`.

        See `align.training.activations.limit_activations`.
        """

    def policy_model(self) -> contextlib.AbstractContextManager[PreTrainedModel]:
        """Return a context in which the policy is a plain model, to sample from."""

    def num_parameters(self) -> float:
        """Count the parameters of the policy and the value model, frozen ones included.

        A base that they share counts twice.
        """

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Save the policy as a model artifact."""


class FullActors:
    """Separate models. Dropout is off in all: with it, the first ratio would not be 1.

    Args:
        value: the start of the value model; None: there is none.
        precision: of the passes. In bf16, the models that do not train take less memory.
        with_reference: False: there is no reference, and `ref_logprobs` must not be called.
    """

    def __init__(
        self,
        policy: Path,
        value: Path | None,
        device: torch.device,
        precision: str = "fp32",
        with_reference: bool = True,
    ):
        self._in_bf16 = precision == "bf16"
        self.policy = load_model(policy, device)
        self.reference: PreTrainedModel | None = None
        if with_reference:
            self.reference = load_model(policy, device).requires_grad_(False)
        if self._in_bf16 and self.reference is not None:
            head_is_plain(self.reference)  # measures the head once, while weights are still float32
            _hold_products_in_bf16(self.reference)
        self.value: ScalarModel | None = None
        self.value_parameters: dict[str, torch.nn.Parameter] = {}
        if value is not None:
            self.value = load_scalar(value, device, fresh_head=value == policy)
            if value == policy:
                torch.nn.init.zeros_(self.value.classifier.score.weight)
            self.value_parameters = dict(self.value.named_parameters())
        self.policy_parameters = dict(self.policy.named_parameters())

    def policy_likelihoods(
        self, packed: Packed, responses: Sequence[Ids], temperature: float, with_entropy: bool
    ) -> TokenLogprobs:
        return response_likelihoods(self.policy, packed, responses, temperature, with_entropy)

    def ref_logprobs(
        self, packed: Packed, responses: Sequence[Ids], temperature: float
    ) -> torch.Tensor:
        assert self.reference is not None
        return response_logprobs(self.reference, packed, responses, temperature)

    def values(self, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
        assert self.value is not None
        return response_values(self.value, packed, responses)

    def reward_model(self, folder: Path) -> Scalar:
        model = load_reward_model(folder, self.policy.device).requires_grad_(False)
        if self._in_bf16:
            _hold_products_in_bf16(model)
        return model

    def limit_activations(self, limit: Callable[[PreTrainedModel, Again | None], None]) -> None:
        limit(self.policy, None)
        if self.value is not None:
            limit(self.value.classifier, None)

    @contextlib.contextmanager
    def policy_model(self) -> Iterator[PreTrainedModel]:
        yield self.policy

    def num_parameters(self) -> float:
        both = (*self.policy_parameters.values(), *self.value_parameters.values())
        return float(sum(p.numel() for p in both))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        save_model(self.policy, tokenizer, folder)


def _hold_products_in_bf16(model: torch.nn.Module) -> None:
    """Store a frozen model's linear layers in bf16, as every pass would round them anyway.

    Autocast computes the same products from them. Embeddings, gains and heads stay unchanged.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    products = [
        module
        for layer in layers
        for module in layer.modules()
        if type(module) in (torch.nn.Linear, Conv1D)
    ]
    parameters = [parameter for module in products for parameter in module.parameters()]
    # Make all copies before replacing the first weight. If each weight were freed before the next
    # copy is made, copies would fill the freed space and leave gaps too small for a whole weight.
    copies = [parameter.detach().to(torch.bfloat16) for parameter in parameters]
    for parameter, copy in zip(parameters, copies, strict=True):
        parameter.data = copy


class LoraActors:
    """One frozen model with adapters for the policy, the value model and reward models.

    The model is the initial policy, which may itself be an adapter merged into its base. A reward
    model that is an adapter on the same base is loaded as its difference to the initial policy. Any
    other reward model is a separate model.
    """

    def __init__(self, policy: Path, value: Path | None, lora: LoraConfig, device: torch.device):
        self._merged = lora.merged
        self._adapters = Adapters(load_model(policy, device), policy)
        self._adapters.add("policy", lora)
        self._rewards = 0
        self.policy_parameters = self._adapters.parameters("policy")
        self._value: AdapterScalar | None = None
        self.value_parameters: dict[str, torch.nn.Parameter] = {}
        if value is None:
            return
        if value == policy:
            self._adapters.add("value", lora)
            width = self._adapters.base.config.get_text_config(decoder=True).hidden_size
            head = torch.nn.Linear(width, 1, bias=False, device=device)
            torch.nn.init.zeros_(head.weight)
            self._value = AdapterScalar(self._adapters, "value", head)
        else:
            self._value = load_adapter_scalar(self._adapters, "value", value)
        self.value_parameters = self._adapters.parameters("value")
        self.value_parameters["head"] = cast(torch.nn.Parameter, self._value.head.weight)

    def policy_likelihoods(
        self, packed: Packed, responses: Sequence[Ids], temperature: float, with_entropy: bool
    ) -> TokenLogprobs:
        with self._adapters.using("policy") as model:
            return response_likelihoods(model, packed, responses, temperature, with_entropy)

    def ref_logprobs(
        self, packed: Packed, responses: Sequence[Ids], temperature: float
    ) -> torch.Tensor:
        with self._adapters.using(None) as model:
            return response_logprobs(model, packed, responses, temperature)

    def values(self, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
        assert self._value is not None
        return response_values(self._value, packed, responses)

    def reward_model(self, folder: Path) -> Scalar:
        if not self._adapters.fits(folder):
            return load_reward_model(folder, self._adapters.base.device).requires_grad_(False)
        self._rewards += 1
        scalar = load_adapter_scalar(self._adapters, f"reward_{self._rewards}", folder)
        for parameter in (
            *self._adapters.parameters(f"reward_{self._rewards}").values(),
            scalar.head.weight,
        ):
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
        models = (base, base.base_model) if self._value is not None else (base,)
        frozen = [
            p for model in models for key, p in model.named_parameters() if adapter_of(key) is None
        ]
        learning = (*self.policy_parameters.values(), *self.value_parameters.values())
        return float(sum(p.numel() for p in (*frozen, *learning)))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        if self._merged:
            save_model(self._adapters.merged("policy"), tokenizer, folder)
        else:
            self._adapters.save("policy", folder, tokenizer)


def load_actors(
    policy: Path,
    value: Path | None,
    lora: LoraConfig,
    device: torch.device,
    precision: str = "fp32",
    with_reference: bool = True,
) -> Actors:
    """Load PPO's models from the folders of their artifacts.

    Args:
        value: a reward model, or the policy itself for a fresh head; None: no value model.
        with_reference: False: do not load a reference. With adapters, it is the base in any case.

    Raises:
        ConfigError: with adapters, the value model is not an adapter on the policy's base.
    """
    if lora.rank is None:
        return FullActors(policy, value, device, precision, with_reference)
    return LoraActors(policy, value, lora, device)
