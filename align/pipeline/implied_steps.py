"""Add the steps that a config implies: reading of sources outside the store, and tokenization.

An input such as `path:rows.jsonl` implies a step that reads it. Documents given to a stage that
needs tokens imply a `tokens` step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import NamedTuple

from align.configs import (
    MODELS,
    SPLITS,
    Data,
    Evaluate,
    EvaluateReward,
    ImportModel,
    StageConfig,
    Tokenizer,
    Tokens,
)
from align.data.cards import load_card, model_kind, resolve
from align.errors import ConfigError, StoreError, did_you_mean
from align.store.artifacts import ArtifactStore
from align.store.references import expanded, is_outside


class Implied(NamedTuple):
    """A step that a config implies.

    Attributes:
        made_of: the knob of the step that the plan filled in: `source` or `inputs`.
        written: the place where the user wrote that value, such as `steps.sft.inputs.model`.
        note: what the user should know about the step; "" if nothing.
    """

    made_of: str
    written: str
    note: str = ""

    def as_written(self, name: str, said: str) -> str:
        """Return an error line about step `name` with the place where the user wrote the value."""
        return said.replace(f"steps.{name}.{self.made_of}", self.written, 1)


def refs_of(config: StageConfig) -> Iterable[tuple[str, list[str]]]:
    """Yield each input of a step with the list of its references.

    Raises:
        ConfigError: a value is neither a reference nor a list of references.
    """
    for slot, refs in config.inputs.items():
        found = [refs] if isinstance(refs, str) else refs
        if not isinstance(found, list) or not all(isinstance(ref, str) for ref in found):
            raise ConfigError(
                f"inputs.{slot}: expected a reference, or a list of them, got {refs!r}"
            )
        yield slot, list(found)


def add_implied_steps(
    configs: dict[str, StageConfig], store: ArtifactStore, data_root: str | None = None
) -> dict[str, Implied]:
    """Add a step for each input outside the store, and for documents that need tokenization.

    The steps are added to `configs`, and the inputs then name them.

    Args:
        configs: the steps by name; changed in place.
        store: the store that other references are looked up in.
        data_root: the folder with the files that data cards name.

    Returns:
        The steps that were added, by name.

    Raises:
        ConfigError: an input is unknown, a source cannot be what the input needs, or a tokenizer is
            given beside tokens, which have their own.
    """
    implied: dict[str, Implied] = {}
    for name, config in list(configs.items()):
        implied |= _add_sources(name, config, configs, store, data_root)
    for name, config in list(configs.items()):
        implied |= _add_tokenization(name, config, configs, store)
    return implied


def _add_sources(
    name: str,
    config: StageConfig,
    configs: dict[str, StageConfig],
    store: ArtifactStore,
    data_root: str | None,
) -> dict[str, Implied]:
    """Add a step for each input of one step that is outside the store."""
    implied: dict[str, Implied] = {}
    evaluates = isinstance(config, Evaluate | EvaluateReward)
    learned = _learned_from(config, configs, store) if evaluates else {}
    for slot, refs in refs_of(config):
        kind = expected_kind(name, config, slot)
        for i, ref in enumerate(refs):
            if not is_outside(ref):
                continue
            made = f"{name}.{slot}{_number(i, refs)}"
            written, note = f"steps.{name}.inputs.{slot}", ""
            refs[i] = _add_source(configs, made, ref, kind, written)
            data = configs[made]
            if isinstance(config, Evaluate | EvaluateReward) and isinstance(data, Data):
                # What only an evaluation reads; other steps of the same file keep their keys.
                data.details = data.record == "comparisons"
                note = _evaluate_whole(data, learned, data_root, config.split)
            implied[made] = Implied("source", written, note)
        config.inputs[slot] = refs
    return implied


def _add_tokenization(
    name: str, config: StageConfig, configs: dict[str, StageConfig], store: ArtifactStore
) -> dict[str, Implied]:
    """Add a step for the documents of one step that need tokenization."""
    implied: dict[str, Implied] = {}
    for slot, expected in {**config.INPUTS, **config.OPTIONAL}.items():
        if expected != "tokens" or slot not in config.inputs:
            continue
        refs = config.inputs[slot]
        kinds = [_kind(ref, configs, store) for ref in refs]
        for i, ref in enumerate(refs):
            if kinds[i] == "documents":
                made = f"{name}.tokens{_number(i, refs)}"
                refs[i] = _add_tokens(configs, made, ref, config)
                implied[made] = Implied("inputs", f"steps.{name}.inputs")
        if config.inputs.pop("tokenizer", None) and set(kinds) == {"tokens"}:
            raise ConfigError(
                f"steps.{name}.inputs.tokenizer: the tokens have theirs; leave it out"
            )
    return implied


def _evaluate_whole(
    data: Data, learned: Mapping[str, Data], data_root: str | None, split: str
) -> str:
    """Put all rows of a source into the split that is evaluated. Write the choice into `data`.

    There are two exceptions. A source whose names say several splits keeps them. If a model here
    was trained on the source and its rows were split by hash, they are split in the same way, so
    that only rows are evaluated that the training held out.

    Args:
        data: the implied step that reads the source; changed in place.
        learned: the data that the evaluated models were trained on, by `_place`.
        data_root: the folder with the files that data cards name.
        split: the split that is evaluated.

    Returns:
        A note for the user; "" if none is needed.
    """
    if data.splits != [*SPLITS]:  # the user chose the split: card:NAME/SPLIT
        return ""
    said = _splits_said(data.source, data_root)
    if data.record == "items":
        are_test = not said and split == "test"  # by default, if no name says a split
        data.split = None if len(said) > 1 or are_test else split
        return ""
    before = _learned_of(data.source, learned)
    if before is None:
        data.split = None if len(said) > 1 else split
        return ""
    seen = _splits_in(before, data.source, data_root)
    if None in seen or len(said) > 1:
        data.validation_share = before.validation_share
        return (
            f"a model here was trained on {before.source}, so the {split} split of {data.source}"
            " alone is evaluated"
        )
    data.split = split
    if "train" in seen:
        return f"all of {data.source} is evaluated, and a model here was trained on it"
    return ""


def _learned_of(source: str, learned: Mapping[str, Data]) -> Data | None:
    """Return the training data of a model that shares rows with a source; None if there is none.

    They share rows if both are the same place, or if one is inside the other.
    """
    place = _place(source)
    if place in learned:
        return learned[place]
    return next(
        (
            data
            for other, data in learned.items()
            if _is_within(place, other) or _is_within(other, place)
        ),
        None,
    )


def _is_within(place: str, other: str) -> bool:
    return other.startswith("path:") and PurePath(other) in (
        PurePath(place),
        *PurePath(place).parents,
    )


def _splits_in(before: Data, source: str, data_root: str | None) -> set[str | None]:
    """Return the splits that a source's rows had in a model's training data.

    The set holds None if the rows were split by a hash of their content.
    """
    if before.split is not None:
        return {before.split}
    place = _place(source)
    if before.source.startswith("path:"):
        with contextlib.suppress(ConfigError):  # the files were changed or moved since
            splits = resolve(before.source, data_root, None).file_splits()
            files = {_place(f"path:{file}"): split for file, split in splits.items()}
            both = {split for file, split in files.items() if _is_within(file, place)}
            return both or {None}
    return {None}


def _splits_said(source: str, data_root: str | None) -> set[str]:
    """Return the splits that the names in a source say.

    Empty for the Hub, because only the data step opens a dataset there.
    """
    scheme, _, name = source.partition(":")
    with contextlib.suppress(ConfigError):  # `plan` or the data step reports the error
        if scheme == "card" and load_card(name).generator is not None:
            return {*SPLITS}
        if scheme != "hf":
            return {
                split
                for split in resolve(source, data_root, None).file_splits().values()
                if split is not None
            }
    return set()


def _learned_from(
    config: StageConfig, configs: Mapping[str, StageConfig], store: ArtifactStore
) -> dict[str, Data]:
    """Return the data that the models among a step's inputs were made from, by `_place`."""
    found: dict[str, Data] = {}
    seen: set[str] = set()
    queue = [
        ref
        for slot, refs in refs_of(config)
        for ref in refs
        if expected_kind("", config, slot) in MODELS
    ]
    while queue:
        ref = queue.pop()
        if ref in seen:
            continue
        seen.add(ref)
        before = configs.get(ref)
        if isinstance(before, Data):
            found[_place(before.source)] = before
        elif before is not None:
            queue += [parent for _, parents in refs_of(before) for parent in parents]
        elif is_outside(ref):  # the implied step for it does not exist yet
            source = ref.partition("/")[0] if ref.startswith("card:") else ref
            found.setdefault(_place(source), Data(source=source))
        else:
            with contextlib.suppress(StoreError):  # `plan` reports the error
                found |= {_place(data.source): data for data in _stored_data(ref, store)}
    return found


def _stored_data(ref: str, store: ArtifactStore) -> Iterator[Data]:
    for artifact in store.lineage(store.find(ref)):
        if artifact.stage == Data.STAGE:
            known = {knob.name for knob in fields(Data)}
            yield Data(
                **{
                    name: value
                    for name, value in artifact.manifest["config"].items()
                    if name in known
                }
            )


def _place(source: str) -> str:
    """Return a source in a form to compare: a path in full, a repository without its commit."""
    scheme, _, rest = source.partition(":")
    if scheme == "path":
        return f"path:{expanded(rest).resolve()}"
    return f"hf:{rest.partition('@')[0]}" if scheme == "hf" else source


def _number(i: int, refs: list[str]) -> str:
    return f".{i}" if len(refs) > 1 else ""


def _add_source(configs: dict[str, StageConfig], made: str, ref: str, kind: str, where: str) -> str:
    if kind in MODELS:
        try:
            configs[made] = ImportModel(source=ref, kind=model_kind(ref) or kind)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    elif kind == "tokenizer":
        configs[made] = Tokenizer(source=ref)
    elif kind == "evaluation":
        raise ConfigError(f"{where}: expected an artifact of kind {kind}, got {ref}")
    else:
        source, _, split = ref.partition("/") if ref.startswith("card:") else (ref, "", "")
        if split and split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise ConfigError(f"{where}: {ref}: no such split{hint}; splits: {', '.join(SPLITS)}")
        data = configs[made] = Data(source=source, record="documents" if kind == "tokens" else kind)
        data.splits = [split] if split else data.splits
    return made


def _kind(ref: str, configs: dict[str, StageConfig], store: ArtifactStore) -> str | None:
    """Return the kind of artifact that `ref` names; None if missing, which `plan` reports later."""
    if ref in configs:
        return configs[ref].output
    try:
        return store.find(ref).kind
    except StoreError:
        return None


def _add_tokens(
    configs: dict[str, StageConfig], made: str, documents: str, config: StageConfig
) -> str:
    kinds = {**config.INPUTS, **config.OPTIONAL}
    takes = {kind: slot for slot, kind in Tokens.OPTIONAL.items()}  # kinds that have a tokenizer
    given = {
        takes[kinds[slot]]: refs
        for slot, refs in config.inputs.items()
        if kinds[slot] in takes and refs
    }
    configs[made] = Tokens(inputs={"data": [documents], **given})
    return made


def expected_kind(name: str, config: StageConfig, slot: str) -> str:
    """Return the kind of artifact that an input of a step takes.

    Raises:
        ConfigError: the stage has no such input. The message suggests the most similar one.
    """
    slots = {**config.INPUTS, **config.OPTIONAL}
    if slot not in slots:
        hint = did_you_mean(slot, slots)
        raise ConfigError(
            f"steps.{name}.inputs.{slot}: unknown input{hint}; inputs: {', '.join(slots) or 'none'}"
        )
    return slots[slot]
