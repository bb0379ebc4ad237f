"""Steps that a config implies without naming them: data for a source outside the store, tokens for documents."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from align.artifacts import ArtifactStore
from align.configs import MODELS, Data, ImportModel, StageConfig, Tokenizer, Tokens
from align.data.cards import model_kind
from align.errors import ConfigError, StoreError


def refs_of(config: StageConfig) -> Iterable[tuple[str, list[str]]]:
    """Each input of a step, and what it names."""
    for slot, refs in config.inputs.items():
        found = [refs] if isinstance(refs, str) else refs
        if not isinstance(found, list) or not all(isinstance(ref, str) for ref in found):
            raise ConfigError(f"inputs.{slot}: expected a reference, or a list of them, got {refs!r}")
        yield slot, list(found)


def add_implied_steps(configs: dict[str, StageConfig], store: ArtifactStore) -> None:
    """Make a step of every input that names data or a model outside the store, and of documents to be tokenised."""
    for name, config in list(configs.items()):
        for slot, refs in refs_of(config):
            kind = expected_kind(name, config, slot)
            for i, ref in enumerate(refs):
                if ref.partition(":")[0] in ("card", "path", "hf"):
                    refs[i] = _add_source(
                        configs, f"{name}.{slot}{_number(i, refs)}", ref, kind, f"{name}.inputs.{slot}"
                    )
            config.inputs[slot] = refs
    for name, config in list(configs.items()):
        kinds = {**config.INPUTS, **config.OPTIONAL}
        for slot in [slot for slot, kind in kinds.items() if kind == "tokens" and slot in config.inputs]:
            refs = config.inputs[slot]
            found = [_kind(ref, configs, store) for ref in refs]
            for i, ref in enumerate(refs):
                if found[i] == "documents":
                    refs[i] = _add_tokens(configs, f"{name}.tokens{_number(i, refs)}", ref, config)
            if config.inputs.pop("tokenizer", None) and set(found) == {"tokens"}:
                raise ConfigError(f"steps.{name}.inputs.tokenizer: the tokens have theirs; leave it out")


def _number(i: int, refs: list[str]) -> str:
    return f".{i}" if len(refs) > 1 else ""


def _add_source(configs: dict[str, StageConfig], made: str, ref: str, kind: str, where: str) -> str:
    if kind in MODELS:
        configs[made] = ImportModel(source=ref, kind=model_kind(ref) or kind)
    elif kind == "tokenizer":
        configs[made] = Tokenizer(source=ref)
    elif kind == "evaluation":
        raise ConfigError(f"steps.{where}: expected an artifact of kind {kind}, got {ref}")
    else:
        source, _, split = ref.partition("/") if ref.startswith("card:") else (ref, "", "")
        data = configs[made] = Data(source=source, record="documents" if kind == "tokens" else kind)
        data.splits = [split] if split else data.splits
    return made


def _kind(ref: str, configs: dict[str, StageConfig], store: ArtifactStore) -> str | None:
    """The kind of artifact that `ref` stands for; None where there is none, which is told later and better."""
    if ref in configs:
        return configs[ref].output
    try:
        return store.find(ref).kind
    except StoreError:
        return None


def _add_tokens(configs: dict[str, StageConfig], made: str, documents: str, config: StageConfig) -> str:
    kinds = {**config.INPUTS, **config.OPTIONAL}
    takes = {kind: slot for slot, kind in Tokens.OPTIONAL.items()}  # whatever has a tokenizer
    given = {takes[kinds[slot]]: refs for slot, refs in config.inputs.items() if kinds[slot] in takes and refs}
    configs[made] = Tokens(inputs={"data": [documents], **given})
    return made


def expected_kind(name: str, config: StageConfig, slot: str) -> str:
    """The kind of artifact that an input of a step takes, or a `ConfigError` that suggests the input meant."""
    slots = {**config.INPUTS, **config.OPTIONAL}
    if slot not in slots:
        near = difflib.get_close_matches(slot, slots, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"steps.{name}.inputs.{slot}: unknown input{hint}; inputs: {', '.join(slots) or 'none'}")
    return slots[slot]
