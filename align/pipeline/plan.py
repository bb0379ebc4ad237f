"""Turn a composed config into steps. Every input is checked and every key computed before a run.

A step's key is the sha256 of its stage, the stage's version, the knobs that differ from their
default, the keys of its inputs and the digest of its data. For a stage of a plugin, the digest of
the plugin is part of it, too. Artifacts are stored under their keys, so the same command runs only
the steps that are left. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.configs import (
    RECORDS,
    STAGES,
    Collect,
    Data,
    ImportModel,
    Ppo,
    RunConfig,
    StageConfig,
    stage_class,
)
from align.configs.differences import differences, flat
from align.configs.evaluate import IFEVAL
from align.configs.knobs import READ_AT_START, require, shown
from align.configs.other_names import CUTOFF, knobs_of, no_such_knob
from align.configs.plugins import plugin_digest
from align.configs.typed import NoSuchKnob, literal, plain, said_of_interpolation, typed
from align.data.cards import (
    load_card,
    model_kind,
    resolve,
    resolve_base,
    resolve_model,
    resolve_tokenizer,
)
from align.data.generators import generator
from align.data.labelled import LABELLED
from align.data.records import read_info
from align.errors import ConfigError, StoreError, did_you_mean
from align.labelling.snapshots import collected
from align.pipeline.base_models import check_adapters
from align.pipeline.implied_steps import Implied, add_implied_steps, expected_kind, refs_of
from align.pipeline.vocabularies import differ, tokenizer_file
from align.runtime.precision import bf16_is_fast
from align.runtime.user_functions import check_file, source_digests
from align.store.artifacts import Artifact, ArtifactStore, sha256_file
from align.store.provenance import packages
from align.store.references import check_length, expanded, hint, is_path, meant, pinned
from align.store.seals import digest_of

# Names of pipelines and steps. They are names of folders in the store.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_A_NAME = "at most 63 small letters, digits, '.', '_' or '-', the first a letter or digit"
# The version of the conversion of tasks' rows to items. It is part of the digest of their data.
# 2: items have an answer context, and `leaning` if they have no right answer
# 3: LLM Foundry's rows and GPT-3's arithmetic have lm-eval's prompts
_ITEMS = 3


@dataclass(frozen=True)
class Source:
    """An input of a step: the reference, and the artifact that exists or that a step will make."""

    ref: str
    stage: str
    key: str
    kind: str


@dataclass(frozen=True)
class Step:
    """A step of a pipeline, with its inputs, digests and key resolved.

    Attributes:
        pipeline, name: the names of the pipeline and of the step.
        config: the checked knobs of its stage.
        inputs: the artifacts of each input.
        data_digest: the digest of what the step reads from outside the store; None if nothing.
        key: the key of its artifact.
        cached: whether the artifact exists.
        reason: why the step runs, and notes for the user.
    """

    pipeline: str
    name: str
    config: StageConfig
    inputs: dict[str, tuple[Source, ...]]
    data_digest: str | None
    key: str
    cached: bool = False
    reason: str = ""

    @property
    def stage(self) -> str:
        return self.config.STAGE

    @property
    def label(self) -> str:
        return f"{self.pipeline}/{self.name}"

    def described(self) -> dict[str, Any]:
        """Return the step as a JSON value."""
        return {
            "step": self.label,
            "stage": self.stage,
            "kind": self.config.output,
            "precision": getattr(self.config, "precision", None),
            "key": self.key,
            "cached": self.cached,
            "reason": self.reason,
            "inputs": {
                slot: [source.ref for source in sources] for slot, sources in self.inputs.items()
            },
        }


# -- from a composed config to steps ---------------------------------------------------------------


def split_config(cfg: DictConfig) -> tuple[RunConfig, dict[str, DictConfig]]:
    """Split a composed config into the settings of a run and the configs of its steps by name.

    In the config of a single stage, the knobs are at the top level beside the settings.

    Raises:
        ConfigError: a setting is unknown or not allowed, or a step or a stage does not exist.
    """
    names = {f.name for f in fields(RunConfig)}
    try:
        own = plain(cfg, without=("steps",))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {said_of_interpolation(error)}") from None
    try:
        settings = typed(RunConfig, {name: value for name, value in own.items() if name in names})
    except NoSuchKnob as error:
        near = did_you_mean(error.name, knobs_of(RunConfig), CUTOFF)
        said = f"no such knob{near}; align run --help lists the settings"
        raise ConfigError(f"{error.name}: {said}") from None
    assert isinstance(settings, RunConfig)
    try:
        expanded(settings.store)
    except ConfigError as error:
        raise ConfigError(f"store: {error}") from None
    is_folder = settings.data_root is None or os.path.isdir(os.path.expanduser(settings.data_root))
    require(is_folder, "data_root", settings.data_root, "a folder that exists")
    if "stage" not in cfg:
        _check_settings(cfg, names)
        if not settings.name:
            raise ConfigError("no pipeline given; say which, as in: align run pipeline=quickstart")
        require(bool(_NAME.fullmatch(settings.name)), "name", settings.name, _A_NAME)
        return settings, _step_nodes(cfg)
    stage = cfg.stage
    pipeline, _, step = (settings.name or f"own/{stage}").partition("/")
    valid = _NAME.fullmatch(pipeline) and _NAME.fullmatch(step)
    require(bool(valid), "name", settings.name, f"PIPELINE/STEP, each {_A_NAME}")
    settings.name = pipeline
    knobs = {name: value for name, value in own.items() if name not in names}
    if any(f.name == "seed" for f in fields(stage_class(stage))):
        knobs["seed"] = settings.seed
    return settings, {step: OmegaConf.create(literal(knobs))}


def _check_settings(cfg: DictConfig, names: Collection[str]) -> None:
    """Refuse a name at the top level that is no setting and that no interpolation reads.

    Raises:
        ConfigError: there is such a name.
    """
    own = [str(name) for name in cfg if name not in names and name != "steps"]
    if not own:
        return
    written = str(OmegaConf.to_container(cfg, resolve=False))
    for name in own:
        # Alone, as ${NAME}, or as an argument of a resolver, as ${oc.select:NAME,DEFAULT}.
        if not re.search(rf"\$\{{(?:[^}}]*[:,]\s*)?\.*{re.escape(name)}(?!\w)", written):
            near = did_you_mean(name, [*names, "steps"], CUTOFF)
            raise ConfigError(
                f"{name}: no such knob{near}; align run --help lists the settings; a"
                " step's knob is steps.STEP.KNOB"
            )


def _step_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the config of each step by name, after a check that each has a stage."""
    steps = cfg.get("steps")
    if not isinstance(steps, DictConfig) or not steps:
        raise ConfigError(
            f"steps: expected the pipeline's steps by their names, got {_shown(steps)}"
        )
    nodes = {str(name): node for name, node in steps.items()}
    known = [
        name
        for name, node in nodes.items()
        if isinstance(node, DictConfig) and node.get("stage") is not None
    ]
    for name, node in nodes.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"steps.{name}: expected a step's name of {_A_NAME}")
        if not isinstance(node, DictConfig):
            hint = f"; ~steps.{name} leaves the step out" if node is None else ""
            raise ConfigError(
                f"steps.{name}: expected a step's knobs, as {{KNOB: VALUE}}, got"
                f" {_shown(node)}{hint}"
            )
        if "stage" in node and node.stage not in STAGES:
            hint = did_you_mean(str(node.stage), STAGES)
            there_are = ", ".join(STAGES)
            raise ConfigError(
                f"steps.{name}.stage: no such stage: {node.stage}{hint}; stages: {there_are}"
            )
        if "stage" not in node:
            near = did_you_mean(name, known)
            raise ConfigError(
                f"steps.{name}: no such step{near}; declare a new one in the pipeline's defaults,"
                f" as /stage@steps.{name}: STAGE"
            )
    return nodes


def _shown(value: Any) -> str:
    return shown(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def step_config(name: str, node: DictConfig, seed: int) -> StageConfig:
    """Return the checked config of a step.

    Args:
        name: the step's name.
        node: its config.
        seed: the run's seed, for a step without its own.

    Raises:
        ConfigError: a knob is unknown or its value is not allowed.
    """
    try:
        values = plain(node)
        config = typed(stage_class(str(values.pop("stage"))), values)
        config.inputs = {slot: refs for slot, refs in config.inputs.items() if refs}
        _check_lengths(config)
        if isinstance(config, ImportModel):
            found = _kind_of_source(config)
            if config.kind not in (found, "model"):
                raise ConfigError(
                    f"kind: {config.source} is a {found} by its config.json, got {config.kind!r}"
                )
            config.kind = found
        for slot, refs in refs_of(config):
            require(
                all(ref and "\0" not in ref for ref in refs), f"inputs.{slot}", refs, "references"
            )
    except NoSuchKnob as error:
        raise ConfigError(no_such_knob(str(node.stage), error.name, f"steps.{name}.")) from None
    except ConfigError as error:
        raise ConfigError(f"steps.{name}.{error}") from None
    except OmegaConfBaseException as error:  # from an interpolation; the error has the full key
        key = f"steps.{name}." + str(error.full_key).removeprefix(f"steps.{name}.")
        raise ConfigError(f"{key}: {said_of_interpolation(error)}") from None
    assert isinstance(config, StageConfig)
    if getattr(config, "seed", 0) is None:
        config.seed = seed  # type: ignore[attr-defined]
    return config


def _check_lengths(config: StageConfig) -> None:
    """Raise `ConfigError`, with the key, if a reference or path is too long for a file name."""
    outside = [
        (knob, [getattr(config, knob)])
        for knob in config.reads("rows", "model", "base", "tokenizer", "file")
    ]
    for key, refs in [*outside, *((f"inputs.{slot}", refs) for slot, refs in refs_of(config))]:
        try:
            for ref in refs:
                check_length(ref)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None


def _kind_of_source(config: ImportModel) -> str:
    try:
        return model_kind(config.source) or config.kind
    except ConfigError as error:
        raise ConfigError(f"source: {error}") from None


def plan(settings: RunConfig, nodes: Mapping[str, DictConfig], store: ArtifactStore) -> list[Step]:
    """Return the steps in an order in which they can run, with keys, cached or not, and why.

    Args:
        settings: the settings of the run.
        nodes: the config of each step by name.
        store: the store.

    Raises:
        ConfigError: a knob, an input or a source is unknown or not allowed.
        StoreError: an artifact that is named or cached is missing or damaged.
    """
    configs = {name: step_config(name, node, settings.seed) for name, node in nodes.items()}
    implied = add_implied_steps(configs, store, settings.data_root)
    for name, config in configs.items():
        with _as_written(name, implied):
            _pin(name, config)
        config.fill_in(bf16_is_fast(settings.hardware.device))
    order = _in_order(configs)
    if settings.step is not None:
        order = _needed(settings.step, order, configs)
    steps: dict[str, Step] = {}
    for name in order:
        with _as_written(name, implied):
            step = _resolve_step(settings, name, configs[name], steps, store)
        note = implied[name].note if name in implied else ""
        steps[name] = replace(step, reason="; ".join(filter(None, (step.reason, note))))
    return list(steps.values())


@contextlib.contextmanager
def _as_written(name: str, implied: Mapping[str, Implied]) -> Iterator[None]:
    """Name the input that the user wrote in errors about an implied step, not the step's knobs."""
    try:
        yield
    except (ConfigError, StoreError) as error:
        if name not in implied:
            raise
        raise type(error)(implied[name].as_written(name, str(error))) from error


def _pin(name: str, config: StageConfig) -> None:
    """Add the commit to a source on the Hub, so that the step's key and manifest hold it."""
    for knob, kind in config.reads("rows", "model", "tokenizer").items():
        try:
            setattr(
                config,
                knob,
                pinned(getattr(config, knob), "dataset" if kind == "rows" else "model"),
            )
        except ConfigError as error:
            raise ConfigError(f"steps.{name}.{knob}: {error}") from None


def _in_order(configs: Mapping[str, StageConfig]) -> list[str]:
    """Return the steps' names, each after the steps that it needs.

    Data steps come first, so that a mistake in the data shows before a model is trained.

    Raises:
        ConfigError: steps need each other in a circle.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            raise ConfigError(
                f"steps.{name}.inputs: the steps form a cycle: {' -> '.join([*path, name])}"
            )
        path.append(name)
        for _, refs in refs_of(configs[name]):
            for ref in refs:
                if ref in configs:
                    visit(ref)
        order.append(path.pop())

    for name in sorted(configs, key=lambda name: not isinstance(configs[name], Data)):
        visit(name)
    return order


def _needed(target: str, order: list[str], configs: Mapping[str, StageConfig]) -> list[str]:
    if target not in configs:
        hint = did_you_mean(target, configs)
        raise ConfigError(f"step={target}: no such step{hint}; steps: {', '.join(configs)}")
    needed, queue = set(), [target]
    while queue:
        name = queue.pop()
        needed.add(name)
        queue += [ref for _, refs in refs_of(configs[name]) for ref in refs if ref in configs]
    return [name for name in order if name in needed]


def _resolve_step(
    settings: RunConfig,
    name: str,
    config: StageConfig,
    done: Mapping[str, Step],
    store: ArtifactStore,
) -> Step:
    inputs = _sources_of(settings, name, config, done, store)
    _check_gold(name, config, inputs, done, store)
    digest = data_digest(name, config, settings, store)
    key = _key(config, inputs, digest)
    step = Step(settings.name, name, config, inputs, digest, key)
    artifact = store.get(config.STAGE, key)
    reason = _why(step, artifact, store)
    if artifact is None and (note := _ppo_note(step, done, store)):
        reason = f"{reason}; {note}"
    return replace(step, cached=artifact is not None, reason=reason)


def _key(config: StageConfig, inputs: Mapping[str, Sequence[Source]], digest: str | None) -> str:
    """Return the key of a step: the digest of all that its result depends on."""
    knobs = changed_knobs(config)
    if digest is not None:
        for place in config.reads("rows", "model", "base", "tokenizer"):
            knobs.pop(place, None)  # the digest covers the content; the path changes no result
    parts: dict[str, Any] = {
        "stage": config.STAGE,
        "version": config.VERSION,
        "knobs": knobs,
        "inputs": {slot: [source.key for source in sources] for slot, sources in inputs.items()},
        "data": digest,
    }
    if (plugin := plugin_digest(type(config))) is not None:
        parts["plugin"] = plugin
    return digest_of(parts)


def _sources_of(
    settings: RunConfig,
    name: str,
    config: StageConfig,
    done: Mapping[str, Step],
    store: ArtifactStore,
) -> dict[str, tuple[Source, ...]]:
    """Return the sources of each input of a step.

    Raises:
        ConfigError: an input is missing, or its kind or its number of artifacts is wrong.
    """
    given = dict(refs_of(config))
    for slot in config.INPUTS:
        if slot not in given:
            raise ConfigError(
                f"steps.{name}.inputs.{slot}: {config.STAGE} needs a {config.INPUTS[slot]} here;"
                " give a step of this pipeline, PIPELINE/STEP of the store, card:NAME, path:FILE"
                " or hf:ORG/NAME@COMMIT"
            )
    try:
        config.check_inputs()
    except ConfigError as error:
        raise ConfigError(f"steps.{name}.{error}") from None
    inputs = {}
    for slot, refs in given.items():
        where, expected = f"steps.{name}.inputs.{slot}", expected_kind(name, config, slot)
        inputs[slot] = sources = tuple(_source(settings, where, ref, done, store) for ref in refs)
        for source in sources:
            if source.kind != expected:
                raise ConfigError(
                    f"{where}: expected {expected}, but {source.ref} is {source.kind}"
                )
        if len(sources) != 1 and expected not in RECORDS and slot not in config.MANY:
            raise ConfigError(f"{where}: expected one {expected}, got {len(sources)}")
    return inputs


def _check_gold(
    name: str,
    config: StageConfig,
    inputs: Mapping[str, Sequence[Source]],
    done: Mapping[str, Step],
    store: ArtifactStore,
) -> None:
    """Raise `ConfigError` if a step needs a gold scorer and none knows its prompts."""
    prompts = inputs.get("prompts", ())
    if not prompts or not (need := config.need_of_gold(inputs)):
        return
    made = {(step.stage, step.key): step.config for step in done.values()}

    def is_known(source: Source) -> bool:
        data = made.get((source.stage, source.key))
        if isinstance(data, Data):
            made_by = (
                load_card(data.source.removeprefix("card:")).generator
                if data.source.startswith("card:")
                else None
            )
            return made_by is not None and "gold" in generator(made_by).info(data.options)
        artifact = store.get(source.stage, source.key)
        return artifact is None or read_info(artifact.path).get("gold") is not None

    if not any(map(is_known, prompts)):
        raise ConfigError(f"steps.{name}.{need}")


def _own_tokenizers(
    step: Step, slot: str, done: Mapping[str, Step], store: ArtifactStore
) -> list[bool | None]:
    """Return for each model of an input of PPO whether its tokenizer differs from the policy's.

    None if that is not known yet: a step still has to make one of the files.
    """
    steps = {(other.stage, other.key): other for other in done.values()}

    def tokenizer(source: Source) -> Path | tuple[str, str]:
        """Return the tokenizer's file, or stage and key of the artifact that will have it."""
        artifact = store.get(source.stage, source.key)
        file = tokenizer_file(artifact.path) if artifact is not None else None
        if file is not None:
            return file
        made = steps.get((source.stage, source.key))
        if made is None:
            return source.stage, source.key
        if isinstance(made.config, ImportModel):
            scheme, _, folder = made.config.source.partition(":")
            file = tokenizer_file(expanded(folder)) if scheme == "path" else None
            return file or (source.stage, source.key)
        parents = [
            made.inputs[slot][0] for slot in ("model", "policy", "tokenizer") if slot in made.inputs
        ]
        return tokenizer(parents[0]) if parents else (source.stage, source.key)

    policy = tokenizer(step.inputs["policy"][0])
    found: list[bool | None] = []
    for source in step.inputs.get(slot, ()):
        other = tokenizer(source)
        if isinstance(policy, Path) and isinstance(other, Path):
            found.append(differ(policy, other))
        else:
            found.append(False if policy == other else None)
    return found


def _ppo_note(step: Step, done: Mapping[str, Step], store: ArtifactStore) -> str:
    """Check that the models of PPO fit together.

    Returns:
        A note if a reward model is known to have its own tokenizer, else "".

    Raises:
        ConfigError: the value model would have another tokenizer than the policy, or with adapters
            it would not be an adapter on the policy's base.
    """
    if not isinstance(step.config, Ppo):
        return ""
    has_value = step.config.has_value_model
    start = step.config.value_start(step.inputs) if has_value else ""
    if start == "value_model" and _own_tokenizers(step, start, done, store)[0]:
        raise ConfigError(
            f"steps.{step.name}.inputs.value_model: expected a model with the policy's tokenizer, "
            f"whose tokens it values, but {step.inputs[start][0].ref} has another"
        )
    own_tokenizers = _own_tokenizers(step, "reward_model", done, store)
    # A reward model with its own tokenizer is replaced by the policy, which needs no check.
    if has_value and not (start == "reward_model" and own_tokenizers[0] is not False):
        check_adapters(step, done, store)
    if True not in own_tokenizers:
        return ""
    value = (
        "; the value model starts from the policy"
        if start == "reward_model" and own_tokenizers[0]
        else ""
    )
    return f"the reward model has a tokenizer of its own, so text is encoded for it again{value}"


def data_digest(
    name: str, config: StageConfig, settings: RunConfig, store: ArtifactStore
) -> str | None:
    """Return the digest of what a step reads from outside the store; None if it reads nothing.

    Raises:
        ConfigError: a source, a function or a file does not exist.
    """
    for knob, kind in config.reads(*_DIGESTS).items():
        source = getattr(config, knob)
        try:
            digest = (
                _DIGESTS[kind](config, source, settings, store)
                if source or kind != "tokenizer"
                else None
            )
        except ConfigError as error:
            raise ConfigError(f"steps.{name}.{knob}: {error}") from None
        if isinstance(config, Data):
            _check_generated(name, config)
        return digest
    digests = _digests_of_files(name, config)
    return digest_of(digests) if digests else None


def _check_generated(name: str, config: Data) -> None:
    """Raise `ConfigError` if a card generates its rows and has no such option."""
    scheme, _, card = config.source.partition(":")
    if scheme != "card" or not card or (made_by := load_card(card).generator) is None:
        return
    try:
        generator(made_by).rows(config.record, (), {}, config.options)
    except ConfigError as error:
        raise ConfigError(f"steps.{name}.{error}") from None


def _rows_digest(
    config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore
) -> str:
    found, record = resolve(source, settings.data_root, store.root), config.output
    if record == "demonstrations" and (found.card.format is None or found.card.format in LABELLED):
        # The card's name is part of the rows: T5's text format writes the task's name into each.
        return digest_of([found.digest, found.card.name])
    return digest_of([found.digest, _ITEMS]) if record == "items" else found.digest


def _votes_digest(
    config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore
) -> str:
    """Return the digest of the rows that a step takes, or of none while it waits for them."""
    assert isinstance(config, Collect)
    rows = collected(store.root, source, config.record, config.num_rows)
    return digest_of(["waiting", source] if rows is None else rows)


def _tokenizer_digest(
    config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore
) -> str:
    return resolve_tokenizer(source, store.root).digest


def _model_digest(
    config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore
) -> str:
    """Return the digest of the model's files, of an adapter's base and of a given chat template."""
    assert isinstance(config, ImportModel)
    digest = resolve_model(source, store.root).digest
    base = resolve_base(source, config.base, store.root)
    if base is not None:
        digest = digest_of([digest, base.digest])
    if not config.chat_template.startswith("path:"):
        return digest
    template = expanded(config.chat_template.removeprefix("path:"))
    if not template.is_file():
        raise ConfigError(f"chat_template={config.chat_template}: no such file")
    return digest_of([digest, sha256_file(template)])


# The digest of the source that a step reads. A step has at most one knob of these kinds.
_DIGESTS: dict[str, Callable[[StageConfig, str, RunConfig, ArtifactStore], str]] = {
    "rows": _rows_digest,
    "tokenizer": _tokenizer_digest,
    "model": _model_digest,
    "votes": _votes_digest,
}


def _digests_of_files(name: str, config: StageConfig) -> dict[str, Any]:
    """Return the digests of the user's functions and files that a config names, by reference."""
    named: list[tuple[str, str, Callable[[str], dict[str, str]]]] = []
    found: dict[str, Any] = {}
    for knob, kind in config.reads(*READ_AT_START).items():
        value = getattr(config, knob)
        if kind == "functions":
            named += [(knob, reference, source_digests) for reference in value]
        elif kind == "checks":
            named += [
                (f"{knob}.{check}", reference, _check_digests) for check, reference in value.items()
            ]
        else:
            named += [(knob, task, _task_digests) for task in value if task.endswith(".yaml")]
            named += [(knob, task, source_digests) for task in value if task == IFEVAL]
            others = any(task != IFEVAL for task in value)
            found |= {"lm_eval": packages().get("lm_eval")} if others else {}
    for place, reference, digests in named:
        try:
            found[reference] = digests(reference)
        except ConfigError as error:
            raise ConfigError(f"steps.{name}.{place}: {error}") from None
    return found


def _check_digests(reference: str) -> dict[str, str]:
    kind, path = check_file(reference)
    if kind == "function":
        return source_digests(reference)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: sha256_file(file) for file in files if file.is_file()}


def _task_digests(task: str) -> dict[str, str]:
    path = expanded(task.partition(":")[2])
    if not path.is_file():
        raise ConfigError(f"{task}: no such file")
    return {path.name: sha256_file(path)}


def _source(
    settings: RunConfig, where: str, ref: str, done: Mapping[str, Step], store: ArtifactStore
) -> Source:
    if ref in done:
        step = done[ref]
        return Source(f"{settings.name}/{ref}", step.stage, step.key, step.config.output)
    if "/" not in ref and "@" not in ref and meant(ref) is None:
        alike = did_you_mean(ref, done)
        raise ConfigError(
            f"{where}: no step {ref!r} in this pipeline{alike}; for one in the store say"
            " PIPELINE/STEP"
        )
    if is_path(ref) or "://" in ref or ("/" not in ref and "@" not in ref):
        raise ConfigError(
            f"{where}: expected PIPELINE/STEP, STAGE@KEY, card:NAME, path:... or hf:..., got"
            f" {ref!r}{hint(ref)}"
        )
    try:
        artifact = store.find(ref, hint)
        store.base_of(artifact)
    except StoreError as error:
        raise StoreError(f"{where}: {error}") from None
    return Source(ref, artifact.stage, artifact.key, artifact.kind)


def changed_knobs(config: Any, default: Any = None) -> dict[str, Any]:
    """Return the knobs that differ from their default, without inputs and knobs outside the key.

    Nested knobs stay nested.

    Args:
        config: a config object.
        default: the object to compare it with; None: one with all defaults.
    """
    default = default if default is not None else type(config)()
    changed = {}
    for knob in fields(config):
        value, usual = getattr(config, knob.name), getattr(default, knob.name)
        if knob.name == "inputs" or value == usual or knob.metadata.get("outside_key"):
            continue
        if knob.name == "seed" and value == 0:  # the run's default seed, which fills in None
            continue
        if is_dataclass(value) and not isinstance(value, type):
            value = changed_knobs(value, usual)
            if not value:  # only knobs outside the key differ
                continue
        changed[knob.name] = value
    return changed


def _outside_key(config: Any, prefix: str = "") -> Iterable[str]:
    """Yield the knobs that are in no key, and nested ones as `judge.url`."""
    for knob in fields(config):
        if knob.metadata.get("outside_key"):
            yield prefix + knob.name
        elif is_dataclass(getattr(config, knob.name)):
            yield from _outside_key(getattr(config, knob.name), f"{prefix}{knob.name}.")


# -- why a step runs -------------------------------------------------------------------------------


def _why(step: Step, artifact: Artifact | None, store: ArtifactStore) -> str:
    if artifact is not None:
        stale = [
            f"{name} {version} -> {packages()[name]}"
            for name, version in artifact.manifest["packages"].items()
            if name in packages() and packages()[name] != version
        ]
        return "made under other versions: " + ", ".join(stale) if stale else ""
    versions = store.versions(step.label)
    if not versions:
        return "not made yet"
    last = versions[max(versions)]
    before = store.get(last["stage"], last["key"])
    if before is None:
        return f"v{max(versions)} is gone"
    what = "version" if plugin_digest(type(step.config)) is None else "code"
    return "; ".join(_differences(step, before.manifest)) or f"{step.stage} changed its {what}"


def _differences(step: Step, manifest: dict[str, Any]) -> list[str]:
    if manifest["stage"] != step.stage:
        return [f"stage {manifest['stage']} -> {step.stage}"]
    usual = flat(asdict(type(step.config)()))  # for knobs that are newer than the manifest
    outside = ("inputs", *_outside_key(step.config))
    found = [
        f"{knob} {before} -> {after}"
        for knob, before, after in differences(
            usual | flat(manifest["config"]), asdict(step.config)
        )
        if not knob.startswith(outside)
    ]
    for slot in sorted(step.inputs.keys() | manifest["inputs"].keys()):
        keys = [source.key for source in step.inputs.get(slot, ())]
        if keys != [entry["key"] for entry in manifest["inputs"].get(slot, [])]:
            found.append(f"input {slot} changed")
    if step.data_digest != manifest.get("data"):
        found.append("its data or code changed")
    return found
