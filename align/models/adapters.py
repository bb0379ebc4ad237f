"""Low-rank adapters (LoRA) side by side on one frozen model, by `peft`; with none on, it is the model it was."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from align.configs import LoraConfig
from align.errors import ConfigError
from align.models.heads import load_scalar

FOLDER = "adapter"  # in an artifact, beside the merged weights
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of the names in peft's own files, so that `PeftModel.from_pretrained` opens ours


class Adapters:
    """Named adapters on the linear layers of one model.

    Args:
        base: frozen by this.
        name: what the base is, as STAGE/KEY; an adapter that was trained on another is refused.
    """

    def __init__(self, base: PreTrainedModel, name: str):
        self.base, self._name = base.requires_grad_(False), name
        self._targets = sorted(linear_names(base))
        self._configs: dict[str, peft.LoraConfig] = {}
        self._on: str | None = None

    def add(self, name: str, lora: LoraConfig) -> None:
        """A fresh one: the model is unchanged until it is trained."""
        kind = "SEQ_CLS" if "SequenceClassification" in type(self.base).__name__ else "CAUSAL_LM"
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=self._targets,
            task_type=kind,
            base_model_name_or_path=self._name,
        )
        self._inject(name, config)

    def load(self, name: str, artifact: Path) -> None:
        """One that was saved by `save`.

        Raises:
            ConfigError: it was trained on another base, or peft cannot read it back.
        """
        config = peft.LoraConfig.from_pretrained(artifact / FOLDER)
        if not self.fits(artifact):
            raise ConfigError(
                f"{artifact.name[:12]}: an adapter on {config.base_model_name_or_path}, the policy is {self._name}; "
                f"train the reward model on this policy, or give lora.rank=null"
            )
        self._inject(name, config)
        weights = load_file(artifact / FOLDER / _WEIGHTS, device=str(self.base.device))
        found = peft.set_peft_model_state_dict(
            self.base, {key.removeprefix(_PREFIX): value for key, value in weights.items()}, adapter_name=name
        )
        if found.unexpected_keys:
            raise ConfigError(
                f"{self.base.config.model_type}: peft has no place for {min(found.unexpected_keys)} of a saved "
                f"adapter; give lora.rank=null"
            )

    def fits(self, artifact: Path) -> bool:
        """True where the artifact has an adapter, and it was trained on this base."""
        if not (artifact / FOLDER).is_dir():
            return False
        return peft.LoraConfig.from_pretrained(artifact / FOLDER).base_model_name_or_path == self._name

    def save(self, name: str, folder: Path) -> None:
        """As `folder`/adapter, in peft's own layout."""
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)  # of a process that was killed here
        weights = peft.get_peft_model_state_dict(self.base, adapter_name=name, save_embedding_layers=False)
        save_file(
            {_PREFIX + key: value.detach().cpu().contiguous() for key, value in weights.items()}, place / _WEIGHTS
        )
        self._configs[name].save_pretrained(place)

    def parameters(self, name: str) -> dict[str, torch.nn.Parameter]:
        return {key: value for key, value in self.base.named_parameters() if _adapter_of(key) == name}

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model with one adapter on, or none; afterwards, the one that was on before."""
        before, self._on = self._on, name
        self._switch(name)
        try:
            yield self.base
        finally:
            self._on = before
            self._switch(before)

    def merged(self, name: str) -> PreTrainedModel:
        """A copy of the model with one adapter in its weights, as if there had never been any."""
        model = copy.deepcopy(self.base)
        layers = {place: layer for place, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
        for place, layer in layers.items():
            layer.merge(adapter_names=[name])
            parent, _, attribute = place.rpartition(".")
            if parent in layers:
                continue  # the experts of a mixture are wrapped once for each of their matrices: the outermost goes
            while isinstance(layer, BaseTunerLayer):
                layer = layer.get_base_layer()  # noqa: PLW2901
            setattr(model.get_submodule(parent), attribute, layer)
        return model

    def _inject(self, name: str, config: peft.LoraConfig) -> None:
        frozen = {key for key, value in self.base.named_parameters() if not value.requires_grad}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an adapter that is there already, and of GPT-2's transposed matrices
            peft.inject_adapter_in_model(config, self.base, adapter_name=name)
        for key, value in self.base.named_parameters():
            value.requires_grad_(key not in frozen and "lora_" in key)
        self._configs[name] = config
        self.base.eval()
        self._switch(None)

    def turn_on(self, name: str) -> None:
        """Leave one adapter on, to train it by itself."""
        self._on = name
        self._switch(name)

    def _switch(self, name: str | None) -> None:
        before = [(value, value.requires_grad) for value in self.base.parameters()]
        for layer in self.base.modules():
            if isinstance(layer, BaseTunerLayer):
                if name is not None:
                    layer.set_adapter([name])
                layer.enable_adapters(name is not None)
        for value, trained in before:
            value.requires_grad_(trained)  # peft freezes what it switches off: a graph not yet gone back would lose it


def fresh_adapter(base: PreTrainedModel, folder: Path, lora: LoraConfig, name: str) -> Adapters:
    """One adapter on the model of the artifact `folder`, to be trained by itself: all else of the model is frozen."""
    adapters = Adapters(base, f"{folder.parent.name}/{folder.name}")
    adapters.add(name, lora)
    adapters.turn_on(name)
    return adapters


def linear_names(model: PreTrainedModel) -> set[str]:
    """What the linear layers of the trunk are called; the head is not among them."""
    names = set()
    for path, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and _gives_a_tensor(module):
            parent, _, name = path.rpartition(".")
            # A number is a place in a list, and would name the layers of the model, too.
            names.add(f"{parent.rpartition('.')[2]}.{name}" if name.isdigit() else name)
    return names


@torch.no_grad()
def _gives_a_tensor(module: torch.nn.Module) -> bool:
    """False for the router of PhiMoE, a linear layer whose forward gives several: an adapter cannot be added to it."""
    if type(module).forward in (torch.nn.Linear.forward, Conv1D.forward):
        return True
    weight = module.get_parameter("weight")
    return isinstance(module(weight.new_zeros(1, weight.shape[1])), torch.Tensor)


def _adapter_of(key: str) -> str | None:
    """Whose parameter it is: `...q_proj.lora_A.NAME.weight`."""
    before, _, after = key.rpartition(".lora_")
    return after.split(".")[1] if before else None


class AdapterScalar:
    """A scalar on every token, as `ScalarModel`, from an adapter and a head."""

    def __init__(self, adapters: Adapters, name: str, head: torch.nn.Linear, shift: float = 0.0):
        self._adapters, self._name, self.head, self._shift = adapters, name, head, shift

    def __call__(self, input_ids: torch.Tensor, position_ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        with self._adapters.using(self._name) as model:
            where = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
            hidden = model.base_model(**where).last_hidden_state[0, at]
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())[:, 0] - self._shift


def load_adapter_scalar(adapters: Adapters, name: str, artifact: Path) -> AdapterScalar:
    """A reward model that was trained as an adapter on this very base."""
    adapters.load(name, artifact)
    whole = load_scalar(artifact)
    return AdapterScalar(adapters, name, whole.classifier.score.to(adapters.base.device), whole.shift)
