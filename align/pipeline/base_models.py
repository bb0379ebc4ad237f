"""Find the base of each model of a plan, and check that PPO's adapters fit their bases.

The base of a whole model is the model itself. Everything is read from steps, manifests and adapter
configs before anything runs. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from align.configs import Dpo, Kto, Ppo, Reward, Sft
from align.configs.rollouts import RolloutConfig
from align.errors import ConfigError
from align.store.artifacts import ArtifactStore, base_name

if TYPE_CHECKING:
    from align.pipeline.plan import Source, Step

Key = tuple[str, str]  # stage and key of an artifact


class Root(NamedTuple):
    """The base of a model.

    Attributes:
        key: stage and key of the base, a whole model.
        name: the name of the base for errors.
        is_adapter: whether the model is an adapter on the base; otherwise it is the base itself.
    """

    key: Key
    name: str
    is_adapter: bool


def check_adapters(step: Step, done: Mapping[str, Step], store: ArtifactStore) -> None:
    """Check that PPO with adapters starts its value model from an adapter on the policy's base.

    Args:
        step: the step to check; other stages than PPO pass.
        done: the steps before it, by name.
        store: the store with the artifacts that exist.

    Raises:
        ConfigError: the value model would start from another model. The message names both models
            and their bases.
    """
    config = step.config
    if not isinstance(config, Ppo) or config.lora.rank is None:
        return
    slot = config.value_start(step.inputs)
    if slot == "policy":
        return
    steps = {(other.stage, other.key): other for other in done.values()}
    policy, start = step.inputs["policy"][0], step.inputs[slot][0]
    ours, theirs = _root(policy, steps, store), _root(start, steps, store)
    if theirs.is_adapter and theirs.key == ours.key:
        return
    trainable = " or ".join(dict.fromkeys((policy.ref, ours.name)))
    raise ConfigError(
        f"steps.{step.name}.inputs.{slot}: with lora.rank the value model starts from an adapter on"
        f" the policy's base; {_described(start, theirs)}, and the policy"
        f" {_described(policy, ours)}. Train {start.ref} with lora.rank from {trainable}, or give"
        " value_from=policy, or lora.rank=null"
    )


def _described(source: Source, root: Root) -> str:
    return (
        f"{source.ref} is an adapter on {root.name}"
        if root.is_adapter
        else f"{source.ref} is a whole model"
    )


def _root(source: Source, steps: Mapping[Key, Step], store: ArtifactStore) -> Root:
    """Return the base of an input, which is in the store or will be made by a step."""
    key = (source.stage, source.key)
    artifact = store.get(*key)
    if artifact is not None:
        base = base_name(artifact.path)
        return Root(base, source.ref if base == key else _name(base, steps, store), base != key)
    step = steps[key]
    if (
        not isinstance(step.config, Sft | Reward | Dpo | Kto | RolloutConfig)
        or step.config.lora.rank is None
        or step.config.lora.merged
    ):
        return Root(key, source.ref, False)
    (start,) = step.inputs["policy" if isinstance(step.config, RolloutConfig) else "model"]
    return _root(start, steps, store)._replace(is_adapter=True)


def _name(key: Key, steps: Mapping[Key, Step], store: ArtifactStore) -> str:
    """Return a step's label, else the artifact's first name, else STAGE@KEY."""
    if key in steps:
        return steps[key].label
    artifact = store.get(*key)
    names = store.names_of(artifact) if artifact is not None else []
    return names[0].partition(":")[0] if names else f"{key[0]}@{key[1][:12]}"
