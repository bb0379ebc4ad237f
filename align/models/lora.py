"""Low-rank adapters (LoRA), as folders in peft's layout and as changes of a plain model.

An adapter folder holds `adapter_config.json`, `adapter_model.safetensors`, a tokenizer and the
`config.json` of the whole model. Its base is a whole model in the same store, named STAGE/KEY,
never another adapter. An adapter that was trained on top of another is stored as the composition of
both. Their ranks add up, so the result is one adapter on the base.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from align.errors import ConfigError
from align.store.artifacts import ADAPTER, ADAPTER_WEIGHTS, base_name

_PREFIX = "base_model.model."  # peft's prefix of weight names
_ROWS = ".token_adapter.trainable_tokens_delta"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_HEAD = "score."
_EXPERTS = "align_experts"  # metadata of the weights file: number of experts per matrix


class LowRank(NamedTuple):
    """One adapted matrix: W + scaling * B A.

    For E experts in one tensor, `a` holds the rows of each expert together, and the expert is the
    fastest-changing column index of `b`, as in peft.
    """

    a: torch.Tensor  # [E * rank, inputs]
    b: torch.Tensor  # [outputs, rank * E]
    experts: int = 1

    def a_by_expert(self) -> torch.Tensor:
        """Return A as [E, rank, inputs]."""
        return self.a.reshape(self.experts, -1, self.a.shape[-1])

    def b_by_expert(self) -> torch.Tensor:
        """Return B as [outputs, rank, E]."""
        return self.b.reshape(len(self.b), -1, self.experts)


@dataclass(frozen=True)
class AdapterWeights:
    """The weights of an adapter, independent of any model.

    Attributes:
        base: STAGE/KEY of the whole model that the adapter belongs to.
        targets: the adapted layers, as peft's config names them.
        rank: of each matrix.
        scaling: factor of B A.
        matrices: by layer name.
        multiples: by name pattern, the rank of some matrices as a multiple of `rank`. If a mixture
            of experts keeps two matrices in one tensor, peft trains them as one of twice the rank.
        rows: by name of an embedding layer, rows [N, width] that replace those of the base.
        row_ids: by the same name, the token ids [N] of these rows.
        head: the weights of a reward model's linear layer `score`, as `score.weight`; empty for a
            language model.
    """

    base: str
    targets: dict[str, list[str] | None]
    rank: int
    scaling: float
    matrices: dict[str, LowRank]
    multiples: dict[str, int] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    row_ids: dict[str, list[int]] = field(default_factory=dict)
    head: dict[str, torch.Tensor] = field(default_factory=dict)

    def config(self) -> peft.LoraConfig:
        """Return the peft config to add this adapter to a model."""
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.scaling * self.rank,
            rank_pattern={name: times * self.rank for name, times in self.multiples.items()},
            alpha_pattern={
                name: times * self.rank * self.scaling for name, times in self.multiples.items()
            },
            lora_dropout=0.0,
            target_modules=self.targets["target_modules"],
            target_parameters=self.targets["target_parameters"],
            trainable_token_indices=self.row_ids or None,
            modules_to_save=[_HEAD.rstrip(".")] if self.head else None,
            task_type="SEQ_CLS" if self.head else "CAUSAL_LM",
            base_model_name_or_path=self.base,
        )

    def within(self, model: PreTrainedModel) -> AdapterWeights:
        """Drop the token rows of layers that the model lacks.

        For example, a reward model has no language-model head.
        """
        layers = {name for name, _ in model.named_modules()}
        rows = {name: rows for name, rows in self.rows.items() if name in layers}
        return replace(self, rows=rows, row_ids={name: self.row_ids[name] for name in rows})

    def with_head(self, head: dict[str, torch.Tensor]) -> AdapterWeights:
        """Turn the adapter into a reward model's: `head` is the state dict of its layer `score`."""
        return replace(self, head={_HEAD + name: value for name, value in head.items()})

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights by their names in a model, without the head."""
        state = {}
        for name, pair in self.matrices.items():
            state[name + _A], state[name + _B] = pair.a, pair.b
        return state | {name + _ROWS: rows for name, rows in self.rows.items()}

    def save(self, folder: Path) -> None:
        """Write peft's two files."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {_PREFIX + name: weight for name, weight in {**self.state(), **self.head}.items()}
        experts = {
            name: matrix.experts for name, matrix in self.matrices.items() if matrix.experts > 1
        }
        save_file(
            {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
            folder / ADAPTER_WEIGHTS,
            metadata={"format": "pt", **({_EXPERTS: json.dumps(experts)} if experts else {})},
        )
        config = self.config()
        for name, targets in self.targets.items():
            # peft converts the targets to sets, whose order differs between runs.
            setattr(config, name, targets)
        config.save_pretrained(folder)


def read_adapter(folder: Path) -> AdapterWeights | None:
    """Read the adapter in a folder that this package wrote; None if it holds a whole model.

    Raises:
        StoreError: the adapter's base is not an artifact of a store.
    """
    if not (folder / ADAPTER).is_file():
        return None
    config = peft.LoraConfig.from_pretrained(folder)
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        weights = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        experts = json.loads((file.metadata() or {}).get(_EXPERTS, "{}"))
    return _weights(config, weights, experts, "/".join(base_name(folder)))


def take(model: PreTrainedModel, name: str, base: str) -> AdapterWeights:
    """Return one adapter of a model; its tensors share memory with the model.

    Args:
        base: STAGE/KEY of the base that the model was loaded from.
    """
    state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    experts = {
        place: layer.num_experts
        for place, layer in model.named_modules()
        if getattr(layer, "num_experts", 1) != 1
    }
    return _weights(
        model.peft_config[name],
        {key: value.detach() for key, value in state.items()},
        experts,
        base,
    )


def _weights(
    config: peft.LoraConfig, weights: dict[str, torch.Tensor], experts: dict[str, int], base: str
) -> AdapterWeights:
    layers = [name.removesuffix(_A) for name in weights if name.endswith(_A)]
    return AdapterWeights(
        base=base,
        targets=_targets(config),
        rank=config.r,
        scaling=config.lora_alpha / config.r,
        matrices={
            name: LowRank(weights[name + _A], weights[name + _B], experts.get(name, 1))
            for name in layers
        },
        multiples={
            pattern: rank // config.r for pattern, rank in (config.rank_pattern or {}).items()
        },
        rows={
            name.removesuffix(_ROWS): value
            for name, value in weights.items()
            if name.endswith(_ROWS)
        },
        row_ids=dict(config.trainable_token_indices or {}),
        head={name: value for name, value in weights.items() if name.startswith(_HEAD)},
    )


def _targets(config: peft.LoraConfig) -> dict[str, list[str] | None]:
    """Return the layers that a config adapts, in a fixed order.

    peft rewrites the targets for some mixtures of experts.
    """
    parameters = config.target_parameters
    return {
        "target_modules": sorted(config.target_modules or ()),
        "target_parameters": sorted(parameters) if parameters else None,
    }


def compose(first: AdapterWeights, second: AdapterWeights) -> AdapterWeights:
    """Return one adapter with the effect of `second` on top of `first`.

    A = [A1; A2], B = [s1 B1, s2 B2], scaling 1. Rows and head are those of `second`, or of `first`
    if `second` has none.

    Raises:
        ConfigError: the two adapt different layers.
    """
    if first.matrices.keys() != second.matrices.keys():
        odd = min(first.matrices.keys() ^ second.matrices.keys())
        raise ConfigError(
            f"{first.base}: two adapters on it do not adapt the same layers: only one has {odd}"
        )
    matrices = {}
    for name, one in first.matrices.items():
        two = second.matrices[name]
        a = torch.cat([one.a_by_expert().to(two.a.device), two.a_by_expert()], 1)
        b = torch.cat(
            [
                one.b_by_expert().to(two.b.device) * first.scaling,
                two.b_by_expert() * second.scaling,
            ],
            1,
        )
        matrices[name] = LowRank(a.flatten(0, 1), b.flatten(1, 2), one.experts)
    return replace(
        first,
        rank=first.rank + second.rank,
        scaling=1.0,
        matrices=matrices,
        rows=first.rows | second.rows,
        row_ids=first.row_ids | second.row_ids,
        head=second.head or first.head,
    )


def difference(whole: AdapterWeights, start: AdapterWeights | None) -> AdapterWeights:
    """Return what `whole` adds to a base that has `start` merged in.

    If `whole` was trained on top of `start`, the result is the rest of its ranks. Otherwise it has
    the ranks of both, those of `start` with the opposite sign.
    """
    if start is None:
        return whole
    rows = {
        name: new
        for name, new in whole.rows.items()
        if not _has_rows(start, name, whole.row_ids[name], new)
    }
    row_ids = {name: whole.row_ids[name] for name in rows}
    rest = _without_first(whole, start)
    if rest is None:
        rest = compose(replace(start, scaling=-start.scaling), whole)
    return replace(rest, rows=rows, row_ids=row_ids)


def _has_rows(start: AdapterWeights, name: str, ids: list[int], rows: torch.Tensor) -> bool:
    return start.row_ids.get(name) == ids and torch.equal(start.rows[name], rows)


def _without_first(whole: AdapterWeights, start: AdapterWeights) -> AdapterWeights | None:
    """Return `whole` without its first ranks if these are exactly those of `start`, else None."""
    if (
        whole.rank <= start.rank
        or whole.scaling != 1
        or whole.matrices.keys() != start.matrices.keys()
    ):
        return None
    matrices = {}
    for name, matrix in whole.matrices.items():
        first = start.matrices[name]
        a, b = matrix.a_by_expert(), matrix.b_by_expert()
        first_a, first_b = first.a_by_expert(), first.b_by_expert() * start.scaling
        rank = first_a.shape[1]
        if not torch.equal(a[:, :rank], first_a) or not torch.equal(b[:, :rank], first_b):
            return None
        matrices[name] = LowRank(
            a[:, rank:].flatten(0, 1), b[:, rank:].flatten(1, 2), matrix.experts
        )
    return replace(whole, rank=whole.rank - start.rank, matrices=matrices)


# -- adapters in a model -----------------------------------------------------------------------


def inject(model: PreTrainedModel, name: str, config: peft.LoraConfig) -> None:
    """Add a fresh adapter to a model; it changes nothing until its weights change."""
    with warnings.catch_warnings():
        # Warnings about an existing adapter, and about GPT-2's transposed matrices.
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, model, adapter_name=name)


def put(model: PreTrainedModel, name: str, weights: AdapterWeights) -> None:
    """Add an adapter with its weights to a model.

    Raises:
        ConfigError: it does not fit the model.
    """
    inject(model, name, replace(weights, head={}).config())  # the caller sets the head
    places = {key: value for key, value in model.named_parameters() if adapter_of(key) == name}
    state = {_in_model(key, name): value for key, value in weights.state().items()}
    # peft matches layers by the end of their names, so it may match other layers.
    if odd := places.keys() ^ state.keys():
        raise ConfigError(
            f"{weights.base}: an adapter on it does not fit it: {min(odd)} is in one of them alone"
        )
    with torch.no_grad():
        for key, place in places.items():
            if place.shape != state[key].shape:
                raise ConfigError(
                    f"{weights.base}: {key} of an adapter on it is {list(state[key].shape)},"
                    f" expected {list(place.shape)}"
                )
            place.copy_(state[key])


def adapter_of(key: str) -> str | None:
    """Return the name of the adapter that a parameter belongs to, or None.

    Parameters are named `...q_proj.lora_A.NAME.weight` or `...trainable_tokens_delta.NAME`.
    """
    _, is_row, name = key.rpartition(".trainable_tokens_delta.")
    if is_row:
        return name
    before, _, after = key.rpartition(".lora_")
    return after.split(".")[1] if before else None


def _in_model(key: str, name: str) -> str:
    """Return the name of a weight in a model, which may have several adapters."""
    return (
        f"{key}.{name}" if key.endswith(_ROWS) else f"{key.removesuffix('.weight')}.{name}.weight"
    )


def switch(model: PreTrainedModel, name: str | None) -> None:
    """Activate one adapter of a model, or none, without changing any `requires_grad`.

    peft freezes the adapters that it deactivates. Then a graph whose backward pass has not run yet
    would lose its gradient, so this function restores `requires_grad`.
    """
    before = [(value, value.requires_grad) for value in model.parameters()]
    for layer in model.modules():
        if isinstance(layer, AuxiliaryTrainingWrapper):
            on = name is not None and name in layer.token_adapter.token_indices
            if on:
                layer.set_adapter([name])
            layer.enable_adapters(on)
        elif isinstance(layer, BaseTunerLayer) and not hasattr(layer, "token_indices"):
            if name is not None:
                layer.set_adapter([name])
            layer.enable_adapters(name is not None)
    for value, learns in before:
        value.requires_grad_(learns)


def merge(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Merge one adapter into a model's weights, in place, and remove all adapters.

    Returns:
        The plain model.
    """
    layers = {
        place: layer for place, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)
    }
    wrappers = {
        place: layer
        for place, layer in model.named_modules()
        if isinstance(layer, AuxiliaryTrainingWrapper)
    }
    for place, layer in layers.items():
        if hasattr(layer, "token_indices"):
            continue
        layer.merge(adapter_names=[name])
        parent, _, attribute = place.rpartition(".")
        if parent in layers:
            # Experts have one wrapper per matrix. Replace only the outermost wrapper.
            continue
        while isinstance(layer, BaseTunerLayer):
            layer = layer.get_base_layer()  # noqa: PLW2901
        setattr(model.get_submodule(parent), attribute, layer)
    for place, wrapper in wrappers.items():
        adapter, plain = wrapper.token_adapter, wrapper.original_module
        if name in adapter.token_indices and adapter.tied_adapter is None:
            with torch.no_grad():
                plain.weight[adapter.token_indices[name]] = adapter.trainable_tokens_delta[name].to(
                    plain.weight
                )
        parent, _, attribute = place.rpartition(".")
        setattr(model.get_submodule(parent), attribute, plain)
    del model.peft_config
    return model


def merge_adapter(model: PreTrainedModel, adapter: AdapterWeights) -> None:
    """Merge an adapter into the weights of its base, in place.

    For a reward model, also set the head.
    """
    put(model, "merged", adapter.within(model))
    merge(model, "merged")
    if adapter.head and hasattr(model, "score"):
        model.score.load_state_dict(
            {name.removeprefix(_HEAD): value for name, value in adapter.head.items()}
        )
    model.requires_grad_(True)
