"""From a composed config to steps: every edge checked, every key known, before anything runs.

A step's key is the sha256 of its stage, the stage's version, the knobs that differ from their default, the keys of its
inputs and the digest of its data. What has a key has a place in the store, so the same command does only what is left.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import difflib
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
    Data,
    ImportModel,
    Ppo,
    RunConfig,
    StageConfig,
    stage_class,
)
from align.configs.differences import differences, flat
from align.configs.knobs import READ_AT_START, require
from align.configs.other_names import CUTOFF, did_you_mean, knobs_of, no_such_knob
from align.configs.plugins import plugin_digest
from align.configs.typed import NoSuchKnob, literal, plain, said_of_interpolation, shown, typed
from align.data.cards import load_card, model_kind, resolve, resolve_base, resolve_model, resolve_tokenizer
from align.data.formats import LABELLED
from align.data.records import read_info
from align.errors import ConfigError, StoreError
from align.pipeline.base_models import check_adapters
from align.pipeline.implied_steps import Implied, add_implied_steps, expected_kind, refs_of
from align.pipeline.vocabularies import differ, tokenizer_file
from align.runtime.precision import bf16_is_fast
from align.runtime.user_functions import check_file, source_digests
from align.store.artifacts import Artifact, ArtifactStore, sha256_file
from align.store.provenance import packages
from align.store.references import check_length, expanded, hint, is_path, meant, pinned
from align.store.seals import digest_of

# Of pipelines and steps, as the store takes them: they are names of folders.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_A_NAME = "at most 63 small letters, digits, '.', '_' or '-', the first a letter or digit"
# What is made of a row of a task. 2: its answer context, and whether it only leans to a side. 3: LLM Foundry's rows and
# GPT-3's arithmetic are asked as lm-eval asks them.
_ITEMS = 3


@dataclass(frozen=True)
class Source:
    """What one input of a step is: where it was named, and the artifact that is or will be there."""

    ref: str
    stage: str
    key: str
    kind: str


@dataclass(frozen=True)
class Step:
    """A named use of a stage, with everything resolved."""

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
        """As JSON."""
        return {
            "step": self.label,
            "stage": self.stage,
            "kind": self.config.output,
            "precision": getattr(self.config, "precision", None),
            "key": self.key,
            "cached": self.cached,
            "reason": self.reason,
            "inputs": {slot: [source.ref for source in sources] for slot, sources in self.inputs.items()},
        }


# -- from a composed config to steps -----------------------------------------------------------------------------


def split_config(cfg: DictConfig) -> tuple[RunConfig, dict[str, DictConfig]]:
    """The settings of a run, and its steps' configs by name; a single stage's knobs stand beside the settings."""
    names = {f.name for f in fields(RunConfig)}
    try:
        own = plain(cfg, without=("steps",))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {said_of_interpolation(error)}") from None
    try:
        settings = typed(RunConfig, {name: value for name, value in own.items() if name in names})
    except NoSuchKnob as error:
        near = difflib.get_close_matches(error.name, [*knobs_of(RunConfig)], n=1, cutoff=CUTOFF)
        said = f"no such knob{did_you_mean(near)}; align run --help lists the settings"
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
    """Refuse a name beside `steps` that is neither a setting nor a value that an interpolation reads."""
    own = [str(name) for name in cfg if name not in names and name != "steps"]
    if not own:
        return
    written = str(OmegaConf.to_container(cfg, resolve=False))
    for name in own:
        # By itself, ${NAME}, or as an argument of a resolver, ${oc.select:NAME,DEFAULT}.
        if not re.search(rf"\$\{{(?:[^}}]*[:,]\s*)?\.*{re.escape(name)}(?!\w)", written):
            near = difflib.get_close_matches(name, [*names, "steps"], n=1, cutoff=CUTOFF)
            raise ConfigError(
                f"{name}: no such knob{did_you_mean(near)}; align run --help lists the settings; a step's knob is "
                f"steps.STEP.KNOB"
            )


def _step_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    """The config of each step, each with a stage."""
    steps = cfg.get("steps")
    if not isinstance(steps, DictConfig) or not steps:
        raise ConfigError(f"steps: expected the pipeline's steps by their names, got {_shown(steps)}")
    nodes = {str(name): node for name, node in steps.items()}
    known = [name for name, node in nodes.items() if isinstance(node, DictConfig) and node.get("stage") is not None]
    for name, node in nodes.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"steps.{name}: expected a step's name of {_A_NAME}")
        if not isinstance(node, DictConfig):
            hint = f"; ~steps.{name} leaves the step out" if node is None else ""
            raise ConfigError(f"steps.{name}: expected a step's knobs, as {{KNOB: VALUE}}, got {_shown(node)}{hint}")
        if "stage" in node and node.stage not in STAGES:
            hint = did_you_mean(difflib.get_close_matches(str(node.stage), STAGES, n=1))
            there_are = ", ".join(STAGES)
            raise ConfigError(f"steps.{name}.stage: no such stage: {node.stage}{hint}; stages: {there_are}")
        if "stage" not in node:
            near = did_you_mean(difflib.get_close_matches(name, known, n=1))
            raise ConfigError(
                f"steps.{name}: no such step{near}; declare a new one in the pipeline's defaults, as "
                f"/stage@steps.{name}: STAGE"
            )
    return nodes


def _shown(value: Any) -> str:
    return shown(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def step_config(name: str, node: DictConfig, seed: int) -> StageConfig:
    """The checked config of a step.

    Raises:
        ConfigError: a knob is not what it should be.
    """
    try:
        values = plain(node)
        config = typed(stage_class(str(values.pop("stage"))), values)
        config.inputs = {slot: refs for slot, refs in config.inputs.items() if refs}
        _check_lengths(config)
        if isinstance(config, ImportModel):
            found = _kind_of_source(config)
            if config.kind not in (found, "model"):
                raise ConfigError(f"kind: {config.source} is a {found} by its config.json, got {config.kind!r}")
            config.kind = found
        for slot, refs in refs_of(config):
            require(all(ref and "\0" not in ref for ref in refs), f"inputs.{slot}", refs, "references")
    except NoSuchKnob as error:
        raise ConfigError(no_such_knob(str(node.stage), error.name, f"steps.{name}.")) from None
    except ConfigError as error:
        raise ConfigError(f"steps.{name}.{error}") from None
    except OmegaConfBaseException as error:  # an interpolation; its error has the whole key
        key = f"steps.{name}." + str(error.full_key).removeprefix(f"steps.{name}.")
        raise ConfigError(f"{key}: {said_of_interpolation(error)}") from None
    assert isinstance(config, StageConfig)
    if getattr(config, "seed", 0) is None:
        config.seed = seed  # type: ignore[attr-defined]
    return config


def _check_lengths(config: StageConfig) -> None:
    """Refuse references and paths that no file can have, at their key."""
    outside = [(knob, [getattr(config, knob)]) for knob in config.reads("rows", "model", "base", "tokenizer", "file")]
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
    """Every step in the order it can run, each edge checked and each key computed; what is cached, and why not.

    Raises:
        ConfigError: a knob, an input or a source is not what it should be.
        StoreError: an artifact that is named or cached is gone or damaged.
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
    """Name, in an error about an implied step, what the user wrote: the step's own knobs nobody did."""
    try:
        yield
    except (ConfigError, StoreError) as error:
        if name not in implied:
            raise
        raise type(error)(implied[name].as_written(name, str(error))) from error


def _pin(name: str, config: StageConfig) -> None:
    """Put the commit into the source of a step that reads the Hub, so that its key and manifest hold it."""
    for knob, kind in config.reads("rows", "model", "tokenizer").items():
        try:
            setattr(config, knob, pinned(getattr(config, knob), "dataset" if kind == "rows" else "model"))
        except ConfigError as error:
            raise ConfigError(f"steps.{name}.{knob}: {error}") from None


def _in_order(configs: Mapping[str, StageConfig]) -> list[str]:
    """Names with every step after those it needs; data first: a mistake in it shows before any model is made."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            raise ConfigError(f"steps.{name}.inputs: goes round in a circle: {' -> '.join([*path, name])}")
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
        near = difflib.get_close_matches(target, configs, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"step={target}: no such step{hint}; steps: {', '.join(configs)}")
    needed, queue = set(), [target]
    while queue:
        name = queue.pop()
        needed.add(name)
        queue += [ref for _, refs in refs_of(configs[name]) for ref in refs if ref in configs]
    return [name for name in order if name in needed]


def _resolve_step(
    settings: RunConfig, name: str, config: StageConfig, done: Mapping[str, Step], store: ArtifactStore
) -> Step:
    given = dict(refs_of(config))
    for slot in config.INPUTS:
        if slot not in given:
            raise ConfigError(
                f"steps.{name}.inputs.{slot}: {config.STAGE} needs a {config.INPUTS[slot]} here; give a step of this "
                f"pipeline, PIPELINE/STEP of the store, card:NAME, path:FILE or hf:ORG/NAME@COMMIT"
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
                raise ConfigError(f"{where}: expected {expected}, but {source.ref} is {source.kind}")
        if len(sources) != 1 and expected not in RECORDS and slot not in config.MANY:
            raise ConfigError(f"{where}: expected one {expected}, got {len(sources)}")
    _check_gold(name, config, inputs, done, store)
    digest = data_digest(name, config, settings, store)
    knobs = changed_knobs(config)
    if digest is not None:
        for place in config.reads("rows", "model", "base", "tokenizer"):
            knobs.pop(place, None)  # the digest says what was read; where it lay is no part of the result
    parts: dict[str, Any] = {
        "stage": config.STAGE,
        "version": config.VERSION,
        "knobs": knobs,
        "inputs": {slot: [source.key for source in sources] for slot, sources in inputs.items()},
        "data": digest,
    }
    if (plugin := plugin_digest(type(config))) is not None:
        parts["plugin"] = plugin
    key = digest_of(parts)
    step = Step(settings.name, name, config, inputs, digest, key)
    artifact = store.get(config.STAGE, key)
    reason = _why(step, artifact, store)
    if artifact is None and (note := _ppo_note(step, done, store)):
        reason = f"{reason}; {note}"
    return replace(step, cached=artifact is not None, reason=reason)


def _check_gold(
    name: str,
    config: StageConfig,
    inputs: Mapping[str, Sequence[Source]],
    done: Mapping[str, Step],
    store: ArtifactStore,
) -> None:
    """Refuse prompts that no gold scorer knows where nothing else says what an answer is worth."""
    prompts = inputs.get("prompts", ())
    if not prompts or not (need := config.need_of_gold(inputs)):
        return
    made = {(step.stage, step.key): step.config for step in done.values()}

    def is_known(source: Source) -> bool:
        data = made.get((source.stage, source.key))
        if isinstance(data, Data):
            return data.source.startswith("card:") and bool(load_card(data.source.removeprefix("card:")).generator)
        artifact = store.get(source.stage, source.key)
        return artifact is None or read_info(artifact.path).get("gold") is not None

    if not any(map(is_known, prompts)):
        raise ConfigError(f"steps.{name}.{need}")


def _own_tokenizers(step: Step, slot: str, done: Mapping[str, Step], store: ArtifactStore) -> list[bool | None]:
    """For each model of an input of PPO: does its tokenizer differ from the policy's? None: no file says so yet."""
    steps = {(other.stage, other.key): other for other in done.values()}

    def tokenizer(source: Source) -> Path | tuple[str, str]:
        """The file, or the artifact that will have it."""
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
        parents = [made.inputs[slot][0] for slot in ("model", "policy", "tokenizer") if slot in made.inputs]
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
    """Check that the models of PPO fit together; a note where a reward model is known to have its own tokenizer.

    Raises:
        ConfigError: the value model would have another tokenizer than the policy, or be no adapter on its base.
    """
    if not isinstance(step.config, Ppo):
        return ""
    start = step.config.value_start(step.inputs)
    if start == "value_model" and _own_tokenizers(step, start, done, store)[0]:
        raise ConfigError(
            f"steps.{step.name}.inputs.value_model: expected a model with the policy's tokenizer, "
            f"whose tokens it values, but {step.inputs[start][0].ref} has another"
        )
    own_tokenizers = _own_tokenizers(step, "reward_model", done, store)
    if not (start == "reward_model" and own_tokenizers[0] is not False):  # else it starts from the policy
        check_adapters(step, done, store)
    if True not in own_tokenizers:
        return ""
    value = "; the value model starts from the policy" if start == "reward_model" and own_tokenizers[0] else ""
    return f"the reward model has a tokenizer of its own, so text is encoded for it again{value}"


def data_digest(name: str, config: StageConfig, settings: RunConfig, store: ArtifactStore) -> str | None:
    """The digest of what a step reads from outside the store; None for a step that reads nothing there."""
    for knob, kind in config.reads(*_DIGESTS).items():
        source = getattr(config, knob)
        try:
            return _DIGESTS[kind](config, source, settings, store) if source or kind != "tokenizer" else None
        except ConfigError as error:
            raise ConfigError(f"steps.{name}.{knob}: {error}") from None
    digests = _digests_of_files(name, config)
    return digest_of(digests) if digests else None


def _rows_digest(config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore) -> str:
    found, record = resolve(source, settings.data_root, store.root), config.output
    if record == "demonstrations" and (found.card.format is None or found.card.format in LABELLED):
        return digest_of([found.digest, found.card.name])  # T5 writes the task's name into every row
    return digest_of([found.digest, _ITEMS]) if record == "items" else found.digest


def _tokenizer_digest(config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore) -> str:
    return resolve_tokenizer(source, store.root).digest


def _model_digest(config: StageConfig, source: str, settings: RunConfig, store: ArtifactStore) -> str:
    """Of the model's files, of those of an adapter's base, and of the file of a chat template that was given."""
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


# Of the sources that a whole step is made of: one a step.
_DIGESTS: dict[str, Callable[[StageConfig, str, RunConfig, ArtifactStore], str]] = {
    "rows": _rows_digest,
    "tokenizer": _tokenizer_digest,
    "model": _model_digest,
}


def _digests_of_files(name: str, config: StageConfig) -> dict[str, Any]:
    """The digests of the user's own functions and files that a config names, by what names them."""
    named: list[tuple[str, str, Callable[[str], dict[str, str]]]] = []
    found: dict[str, Any] = {}
    for knob, kind in config.reads(*READ_AT_START).items():
        value = getattr(config, knob)
        if kind == "functions":
            named += [(knob, reference, source_digests) for reference in value]
        elif kind == "checks":
            named += [(f"{knob}.{check}", reference, _check_digests) for check, reference in value.items()]
        else:
            named += [(knob, task, _task_digests) for task in value if task.endswith(".yaml")]
            found |= {"lm_eval": packages().get("lm_eval")} if value else {}
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


def _source(settings: RunConfig, where: str, ref: str, done: Mapping[str, Step], store: ArtifactStore) -> Source:
    if ref in done:
        step = done[ref]
        return Source(f"{settings.name}/{ref}", step.stage, step.key, step.config.output)
    if "/" not in ref and "@" not in ref and meant(ref) is None:
        near = difflib.get_close_matches(ref, done, n=1)
        alike = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{where}: no step {ref!r} in this pipeline{alike}; for one in the store say PIPELINE/STEP")
    if is_path(ref) or "://" in ref or ("/" not in ref and "@" not in ref):
        raise ConfigError(
            f"{where}: expected PIPELINE/STEP, STAGE@KEY, card:NAME, path:... or hf:..., got {ref!r}{hint(ref)}"
        )
    try:
        artifact = store.find(ref, hint)
        store.base_of(artifact)
    except StoreError as error:
        raise StoreError(f"{where}: {error}") from None
    return Source(ref, artifact.stage, artifact.key, artifact.kind)


def changed_knobs(config: Any, default: Any = None) -> dict[str, Any]:
    """The knobs that differ from their default, nested ones as nested; inputs are not knobs."""
    default = default if default is not None else type(config)()
    changed = {}
    for knob in fields(config):
        value, usual = getattr(config, knob.name), getattr(default, knob.name)
        if knob.name == "inputs" or value == usual or knob.metadata.get("outside_key"):
            continue
        if knob.name == "seed" and value == 0:  # the run's seed is 0 unless it is given
            continue
        if is_dataclass(value) and not isinstance(value, type):
            value = changed_knobs(value, usual)
            if not value:  # what differs is outside the key
                continue
        changed[knob.name] = value
    return changed


def _outside_key(config: Any, prefix: str = "") -> Iterable[str]:
    """The knobs that no key holds, nested ones as `judge.url`."""
    for knob in fields(config):
        if knob.metadata.get("outside_key"):
            yield prefix + knob.name
        elif is_dataclass(getattr(config, knob.name)):
            yield from _outside_key(getattr(config, knob.name), f"{prefix}{knob.name}.")


# -- why a step runs ---------------------------------------------------------------------------------------------


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
    usual = flat(asdict(type(step.config)()))  # of a knob that is younger than the manifest
    outside = ("inputs", *_outside_key(step.config))
    found = [
        f"{knob} {before} -> {after}"
        for knob, before, after in differences(usual | flat(manifest["config"]), asdict(step.config))
        if not knob.startswith(outside)
    ]
    for slot in sorted(step.inputs.keys() | manifest["inputs"].keys()):
        keys = [source.key for source in step.inputs.get(slot, ())]
        if keys != [entry["key"] for entry in manifest["inputs"].get(slot, [])]:
            found.append(f"input {slot} changed")
    if step.data_digest != manifest.get("data"):
        found.append("its data changed")
    return found
