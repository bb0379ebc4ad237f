"""Low-rank adapters (LoRA) as folders in peft's own layout, and as changes of a plain model.

An adapter folder holds `adapter_config.json`, `adapter_model.safetensors`, a tokenizer and the `config.json` of the
whole model. Its base is a whole model in the same store, named STAGE/KEY, never another adapter. An adapter that was
trained on top of another is stored as the composition of both: ranks add up, so it is one adapter on the base.
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

_PREFIX = "base_model.model."  # what peft puts before the name of each weight
_ROWS = ".token_adapter.trainable_tokens_delta"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_HEAD = "score."
_EXPERTS = "align_experts"  # in the metadata of the file of weights: how many a matrix is for


class LowRank(NamedTuple):
    """One adapted matrix: W + scaling * B A.

    For E experts in one tensor, `a` holds each expert's rows together, and `b` has the expert as its fastest column
    index, as peft stores them.
    """

    a: torch.Tensor  # [E * rank, inputs]
    b: torch.Tensor  # [outputs, rank * E]
    experts: int = 1

    def a_by_expert(self) -> torch.Tensor:
        """[E, rank, inputs]."""
        return self.a.reshape(self.experts, -1, self.a.shape[-1])

    def b_by_expert(self) -> torch.Tensor:
        """[outputs, rank, E]."""
        return self.b.reshape(len(self.b), -1, self.experts)


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter, apart from any model.

    Attributes:
        base: the whole model that it is trained on, STAGE/KEY.
        targets: which layers have matrices, as peft's config names them.
        rank: of a matrix.
        scaling: factor of B A.
        multiples: by a pattern of names, how many times `rank` some matrices have: peft trains two matrices that a
            mixture of experts keeps in one tensor as one of twice the rank.
        matrices: by the name of the layer.
        rows: by the name of an embedding layer, rows [N, width] that replace those of the base.
        row_ids: by the same name, the ids [N] of these tokens.
        head: the weights of a reward model's linear layer `score`, as `score.weight`; none for a language model.
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
        """What peft needs to put it into a model."""
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.scaling * self.rank,
            rank_pattern={name: times * self.rank for name, times in self.multiples.items()},
            alpha_pattern={name: times * self.rank * self.scaling for name, times in self.multiples.items()},
            lora_dropout=0.0,
            target_modules=self.targets["target_modules"],
            target_parameters=self.targets["target_parameters"],
            trainable_token_indices=self.row_ids or None,
            modules_to_save=[_HEAD.rstrip(".")] if self.head else None,
            task_type="SEQ_CLS" if self.head else "CAUSAL_LM",
            base_model_name_or_path=self.base,
        )

    def within(self, model: PreTrainedModel) -> AdapterWeights:
        """Without rows of a layer that the model does not have: a reward model has no head for tokens."""
        layers = {name for name, _ in model.named_modules()}
        rows = {name: rows for name, rows in self.rows.items() if name in layers}
        return replace(self, rows=rows, row_ids={name: self.row_ids[name] for name in rows})

    def with_head(self, head: dict[str, torch.Tensor]) -> AdapterWeights:
        """As a reward model: `head` is the state of its layer `score`."""
        return replace(self, head={_HEAD + name: value for name, value in head.items()})

    def state(self) -> dict[str, torch.Tensor]:
        """Its weights under the names that they have in a model, without the head."""
        state = {}
        for name, pair in self.matrices.items():
            state[name + _A], state[name + _B] = pair.a, pair.b
        return state | {name + _ROWS: rows for name, rows in self.rows.items()}

    def save(self, folder: Path) -> None:
        """Write peft's two files."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {_PREFIX + name: weight for name, weight in {**self.state(), **self.head}.items()}
        experts = {name: matrix.experts for name, matrix in self.matrices.items() if matrix.experts > 1}
        save_file(
            {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
            folder / ADAPTER_WEIGHTS,
            metadata={"format": "pt", **({_EXPERTS: json.dumps(experts)} if experts else {})},
        )
        config = self.config()
        for name, targets in self.targets.items():
            setattr(config, name, targets)  # peft made sets of them, whose order differs from run to run
        config.save_pretrained(folder)


def read_adapter(folder: Path) -> AdapterWeights | None:
    """The adapter in a folder that this package wrote; None where the folder holds a whole model.

    Raises:
        ConfigError: the folder cannot be read, or was written by something else.
    """
    if not (folder / ADAPTER).is_file():
        return None
    config = peft.LoraConfig.from_pretrained(folder)
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        weights = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        experts = json.loads((file.metadata() or {}).get(_EXPERTS, "{}"))
    return _weights(config, weights, experts, "/".join(base_name(folder)))


def take(model: PreTrainedModel, name: str, base: str) -> AdapterWeights:
    """One adapter of a model that stands for `base`, STAGE/KEY; its tensors are those of the model."""
    state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    experts = {
        place: layer.num_experts for place, layer in model.named_modules() if getattr(layer, "num_experts", 1) != 1
    }
    return _weights(model.peft_config[name], {key: value.detach() for key, value in state.items()}, experts, base)


def _weights(
    config: peft.LoraConfig, weights: dict[str, torch.Tensor], experts: dict[str, int], base: str
) -> AdapterWeights:
    layers = [name.removesuffix(_A) for name in weights if name.endswith(_A)]
    return AdapterWeights(
        base=base,
        targets=_targets(config),
        rank=config.r,
        scaling=config.lora_alpha / config.r,
        matrices={name: LowRank(weights[name + _A], weights[name + _B], experts.get(name, 1)) for name in layers},
        multiples={pattern: rank // config.r for pattern, rank in (config.rank_pattern or {}).items()},
        rows={name.removesuffix(_ROWS): value for name, value in weights.items() if name.endswith(_ROWS)},
        row_ids=dict(config.trainable_token_indices or {}),
        head={name: value for name, value in weights.items() if name.startswith(_HEAD)},
    )


def _targets(config: peft.LoraConfig) -> dict[str, list[str] | None]:
    """The layers that a config adapts, in one order; peft rewrites them for some mixtures of experts."""
    parameters = config.target_parameters
    return {
        "target_modules": sorted(config.target_modules or ()),
        "target_parameters": sorted(parameters) if parameters else None,
    }


def compose(first: AdapterWeights, second: AdapterWeights) -> AdapterWeights:
    """One adapter that does what `second` does on top of `first`: A = [A1; A2], B = [s1 B1, s2 B2], scaling 1.

    Rows and head are those of `second`, or of `first` where `second` has none.
    """
    if first.matrices.keys() != second.matrices.keys():
        odd = min(first.matrices.keys() ^ second.matrices.keys())
        raise ConfigError(f"{first.base}: two adapters on it do not adapt the same layers: only one has {odd}")
    matrices = {}
    for name, one in first.matrices.items():
        two = second.matrices[name]
        a = torch.cat([one.a_by_expert().to(two.a.device), two.a_by_expert()], 1)
        b = torch.cat(
            [one.b_by_expert().to(two.b.device) * first.scaling, two.b_by_expert() * second.scaling],
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
    """What `whole` adds to a base that has `start` merged in.

    Where `whole` was trained on top of `start`, that is the rest of its ranks. Otherwise the ranks of both are needed,
    those of `start` with the opposite sign.
    """
    if start is None:
        return whole
    rows = {name: new for name, new in whole.rows.items() if not _has_rows(start, name, whole.row_ids[name], new)}
    row_ids = {name: whole.row_ids[name] for name in rows}
    rest = _without_first(whole, start)
    if rest is None:
        rest = compose(replace(start, scaling=-start.scaling), whole)
    return replace(rest, rows=rows, row_ids=row_ids)


def _has_rows(start: AdapterWeights, name: str, ids: list[int], rows: torch.Tensor) -> bool:
    return start.row_ids.get(name) == ids and torch.equal(start.rows[name], rows)


def _without_first(whole: AdapterWeights, start: AdapterWeights) -> AdapterWeights | None:
    """`whole` without its first ranks, where these are exactly those of `start`; None where they are not."""
    if whole.rank <= start.rank or whole.scaling != 1 or whole.matrices.keys() != start.matrices.keys():
        return None
    matrices = {}
    for name, matrix in whole.matrices.items():
        first = start.matrices[name]
        a, b = matrix.a_by_expert(), matrix.b_by_expert()
        first_a, first_b = first.a_by_expert(), first.b_by_expert() * start.scaling
        rank = first_a.shape[1]
        if not torch.equal(a[:, :rank], first_a) or not torch.equal(b[:, :rank], first_b):
            return None
        matrices[name] = LowRank(a[:, rank:].flatten(0, 1), b[:, rank:].flatten(1, 2), matrix.experts)
    return replace(whole, rank=whole.rank - start.rank, matrices=matrices)


# -- in a model ----------------------------------------------------------------------------------------------------


def inject(model: PreTrainedModel, name: str, config: peft.LoraConfig) -> None:
    """Put a fresh adapter into a model; it changes nothing until its weights are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an adapter that is there already, and GPT-2's transposed matrices
        peft.inject_adapter_in_model(config, model, adapter_name=name)


def put(model: PreTrainedModel, name: str, weights: AdapterWeights) -> None:
    """Put an adapter with its weights into a model.

    Raises:
        ConfigError: it does not fit the model.
    """
    inject(model, name, replace(weights, head={}).config())  # the head is the caller's
    places = {key: value for key, value in model.named_parameters() if adapter_of(key) == name}
    state = {_in_model(key, name): value for key, value in weights.state().items()}
    if odd := places.keys() ^ state.keys():  # peft finds layers by the end of their names, and may find others
        raise ConfigError(f"{weights.base}: an adapter on it does not fit it: {min(odd)} is in one of them alone")
    with torch.no_grad():
        for key, place in places.items():
            if place.shape != state[key].shape:
                raise ConfigError(
                    f"{weights.base}: {key} of an adapter on it is {list(state[key].shape)}, expected "
                    f"{list(place.shape)}"
                )
            place.copy_(state[key])


def adapter_of(key: str) -> str | None:
    """Whose parameter it is: `...q_proj.lora_A.NAME.weight` or `...trainable_tokens_delta.NAME`."""
    _, is_row, name = key.rpartition(".trainable_tokens_delta.")
    if is_row:
        return name
    before, _, after = key.rpartition(".lora_")
    return after.split(".")[1] if before else None


def _in_model(key: str, name: str) -> str:
    """What a weight is called in a model, which may have several adapters."""
    return f"{key}.{name}" if key.endswith(_ROWS) else f"{key.removesuffix('.weight')}.{name}.weight"


def switch(model: PreTrainedModel, name: str | None) -> None:
    """Turn on one adapter of a model, or none. What learns and what does not stays so.

    peft freezes what it switches off, and a graph that has not been differentiated yet would lose its gradient.
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
    """Add one adapter to a model's weights, in place, and take out all adapters; gives the plain model."""
    layers = {place: layer for place, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    wrappers = {place: layer for place, layer in model.named_modules() if isinstance(layer, AuxiliaryTrainingWrapper)}
    for place, layer in layers.items():
        if hasattr(layer, "token_indices"):
            continue
        layer.merge(adapter_names=[name])
        parent, _, attribute = place.rpartition(".")
        if parent in layers:
            continue  # the experts of a mixture are wrapped once for each of their matrices: the outermost goes
        while isinstance(layer, BaseTunerLayer):
            layer = layer.get_base_layer()  # noqa: PLW2901
        setattr(model.get_submodule(parent), attribute, layer)
    for place, wrapper in wrappers.items():
        adapter, plain = wrapper.token_adapter, wrapper.original_module
        if name in adapter.token_indices and adapter.tied_adapter is None:
            with torch.no_grad():
                plain.weight[adapter.token_indices[name]] = adapter.trainable_tokens_delta[name].to(plain.weight)
        parent, _, attribute = place.rpartition(".")
        setattr(model.get_submodule(parent), attribute, plain)
    del model.peft_config
    return model


def merge_adapter(model: PreTrainedModel, adapter: AdapterWeights) -> None:
    """Add an adapter to the weights of its base, in place; a reward model's head is set, too."""
    put(model, "merged", adapter.within(model))
    merge(model, "merged")
    if adapter.head and hasattr(model, "score"):
        model.score.load_state_dict({name.removeprefix(_HEAD): value for name, value in adapter.head.items()})
    model.requires_grad_(True)
