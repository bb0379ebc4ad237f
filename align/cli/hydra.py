"""Compose a config with Hydra for each run of a command, and call a task with it.

Hydra's own `main` decorator exits with eight lines and code 1 for every error, and it hides what
the members of a sweep returned. So this module uses the `Hydra` object underneath, and converts
Hydra's errors to ours. That object is internal, so hydra-core is pinned below 1.4.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException
from omegaconf.resolvers.oc import select

from align.cli.config_file import (
    GIVEN,
    GROUPS,
    MODE,
    Given,
    Places,
    Written,
    expected_names,
    from_call,
    from_file,
)
from align.cli.overrides import check_grammar, in_quotes, quoted
from align.cli.yaml_file import YamlFile, explain_yaml, nested, read_yaml
from align.configs import STAGES, HardwareConfig, ModelConfig, RunConfig, TrackerConfig
from align.configs.differences import flat
from align.configs.other_names import (
    CUTOFF,
    OURS,
    knobs_of,
    meant_knob,
    no_such_knob,
    other_unit,
)
from align.configs.plugins import plugins
from align.configs.typed import said_of_interpolation
from align.errors import AlignError, ConfigError, did_you_mean, suggestion
from align.pipeline.launch import STOPPED, Launcher, MemberTask, Prepared
from align.runtime.console import Parser
from align.store.artifacts import STORE_VARIABLE, store_folder
from align.store.references import conf_folder, is_outside, is_path
from align.store.references import hint as reference_hint
from align.store.sweep_records import Member, fates

Task = Callable[[DictConfig, Places], int]  # returns an exit code
# Returns True if work is left; raises an AlignError for a config that cannot run.
Check = Callable[[DictConfig, Places], bool]

_ONE_AT_A_TIME = threading.RLock()  # Hydra keeps its state in globals
# The verb that composes a config, if it is not a stage.
_VERB_OF = {"run": "run", "model_sizes": "model"}
# Hydra's options that replace the config that the verb chooses.
_NOT_TAKEN = {
    "config_name": "--config-name: not supported here; give a config file with --config FILE",
    "config_path": (
        "--config-path: not supported here; add a folder of configs with --config-dir FOLDER"
    ),
    "experimental_rerun": "--experimental-rerun: not supported here; give the same command again",
}


def register_schemas() -> None:
    """Register the schemas of stages and settings with Hydra, so that it refuses unknown knobs."""
    repo = ConfigStore.instance().repo
    for name, node in _schemas().items():
        if isinstance(node, dict):
            repo.setdefault(name, {}).update(node)
        else:
            repo[name] = node


@functools.cache
def _schemas() -> dict[str, Any]:
    """Return the content of a Hydra config store that holds only our schemas.

    It is built once. It can be shared, because Hydra copies what it loads.
    """
    store = ConfigStore.instance()
    before, store.repo = store.repo, {}
    try:
        for name, cls in STAGES.items():
            slots = dict.fromkeys([*cls.INPUTS, *cls.OPTIONAL])
            node = OmegaConf.create({"stage": name, **asdict(cls()), "inputs": slots})
            _open_names(node, cls)
            store.store(group="stage", name=name, node=node)
        node = OmegaConf.create({"model": asdict(ModelConfig())})
        _open_names(node.model, ModelConfig)
        store.store(name="model_schema", node=node)
        # Plain values without types, as for the stages. `typed` checks them later; Hydra would
        # convert them, for example 3 to true.
        store.store(
            group="hardware", name="schema", node=OmegaConf.create(asdict(HardwareConfig()))
        )
        store.store(group="tracker", name="schema", node=OmegaConf.create(asdict(TrackerConfig())))
        return store.repo
    finally:
        store.repo = before


def _open_names(node: DictConfig, cls: Any) -> None:
    """Let knobs that hold the user's own names accept any name."""
    for knob in fields(cls):
        if knob.default_factory is dict and knob.name != "inputs":
            OmegaConf.set_struct(node[knob.name], False)
        elif is_dataclass(knob.default_factory):
            _open_names(node[knob.name], knob.default_factory)


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Give a command Hydra's global state for itself; restore the caller's state afterwards."""
    with _ONE_AT_A_TIME:
        Plugins.instance()  # adds the plugins' configs to the store, once per process
        configs, current, shown, job = (
            ConfigStore.instance(),
            GlobalHydra.instance(),
            HydraConfig.instance(),
            JobRuntime.instance(),
        )
        before = configs.repo, current.hydra, shown.cfg, job.conf
        resolvers, full_error = dict(BaseContainer._resolvers), os.environ.get(_FULL_ERROR)
        configs.repo, job.conf = copy.deepcopy(configs.repo), copy.deepcopy(job.conf)
        current.clear()
        os.environ[_FULL_ERROR] = "1"  # Hydra raises errors instead of printing them
        try:
            yield
        finally:
            configs.repo, current.hydra, shown.cfg, job.conf = before
            BaseContainer._resolvers = resolvers
            os.environ.pop(_FULL_ERROR)
            if full_error is not None:
                os.environ[_FULL_ERROR] = full_error


# Hydra's own groups that a sweep uses. A run needs none: it keeps everything in its store.
_PLUGINS = ("hydra/launcher", "hydra/sweeper")
_BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_HYDRAS = "of Hydra's own settings there are hydra.sweep.dir, hydra.launcher.* and hydra.sweeper.*"
_TAKEN = re.compile(r"hydra\.(sweep\.dir|(launcher|sweeper)\..+)")
_OF_A_SWEEP = "of a sweep; give -m (--multirun) too, or leave it out"
_LONGEST_NAME = 200  # characters in the name of a config, which is a file name
_ABSENT = object()
_FULL_ERROR = "HYDRA_FULL_ERROR"


class Sweeps(NamedTuple):
    """What a command does around the members of a sweep.

    Attributes:
        check: called with the config of every member before the first one runs.
        compare: called with the folder of a sweep after its end, if the sweep leaves records.
        records: True if a sweep leaves its records in the store.
    """

    check: Check | None = None
    compare: Callable[[Path], None] | None = None
    records: bool = True


WITHOUT_RECORDS = Sweeps(records=False)


def run(
    config_name: str,
    arguments: list[str],
    task: Task,
    stage: str | None = None,
    sweeps: Sweeps = WITHOUT_RECORDS,
) -> int:
    """Compose `config_name` with `arguments` and call `task`.

    With `--multirun`, do so for each member of a sweep.

    Args:
        config_name: run, stage or model_sizes.
        arguments: the command line after the verb.
        task: called with each composed config.
        stage: the stage that runs on its own, if `config_name` is stage.
        sweeps: what to do around the members of a sweep.

    Returns:
        The exit code; for a sweep, the highest code of its members.

    Raises:
        ConfigError: the config does not compose. Nothing was written.
    """
    with _own_hydra():
        register_schemas()
        options, parser = _options(arguments, stage or _VERB_OF[config_name])
        given = (
            [_read_config(options.config, config_name, stage, options.overrides)]
            if options.config
            else []
        )
        loader = _Loader(options.config_dir)
        options.overrides, places = _overrides(
            config_name, stage, given, options.overrides, options.multirun, loader
        )
        with _explained(config_name, options.overrides, options.config_dir, places):
            if options.cfg or options.info or options.shell_completion or options.hydra_help:
                _run_hydra(options, parser, _nothing, str(conf_folder()), config_name)
                return 0
            placed = functools.partial(_placed, task, places)
            return _run(config_name, options, placed, sweeps, places, loader)


def _placed(task: Task, places: Places, cfg: DictConfig) -> int:
    return task(cfg, places)


def _nothing(cfg: DictConfig) -> int:
    return 0


@contextlib.contextmanager
def composed(
    overrides: Sequence[str],
    stage: str | None = None,
    values: Mapping[str, Any] | None = None,
    config: str | None = None,
    config_dir: str | None = None,
) -> Iterator[tuple[DictConfig, Places]]:
    """Yield the config of one run, without Hydra's own settings, and the places of its knobs.

    Read the whole config inside the block: its interpolations need the resolvers that are
    registered there.

    Args:
        overrides: overrides as on the command line. They override `values`, and `values` override
            the file `config`.
        stage: the stage that runs on its own; None for a pipeline.
        values: knobs, inputs and settings as Python values.
        config: a YAML file, as for `--config`.
        config_dir: a folder of configs, as for `--config-dir`.

    Raises:
        ConfigError: the config does not compose.
    """
    config_name = "run" if stage is None else "stage"
    with _own_hydra():
        register_schemas()
        given: list[tuple[Given, tuple[str, YamlFile] | None]] = []
        if config is not None:
            given.append(_read_config(config, config_name, stage, overrides))
        if values:
            given.append((from_call(values, stage), None))
        loader = _Loader(config_dir)
        words, places = _overrides(config_name, stage, given, overrides, False, loader)
        with _explained(config_name, words, config_dir, places):
            hydra = _hydra(loader)
            whole = hydra.compose_config(
                config_name, words, RunMode.RUN, with_log_configuration=False
            )
            _refuse_hydras(whole, RunMode.RUN, places, loader)
        yield OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), places


def _options(arguments: list[str], verb: str) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the options and overrides of a command line. Return them with their parser.

    Raises:
        ConfigError: an option is unknown, or it is one of Hydra's that does nothing here.
    """
    if "--version" in arguments:
        raise ConfigError("--version: give it alone, as align --version")
    parser = Parser(
        prog=f"align {verb}", parents=[get_args_parser()], add_help=False, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--store", metavar="FOLDER")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: no such option; a knob or an input is given as NAME=VALUE, without"
            f" dashes (align {verb} --help)"
        )
    _refuse_options(options, verb)
    if options.store is not None:
        if any(word.startswith("store=") for word in options.overrides):
            raise ConfigError("--store: store=FOLDER is given too; keep one")
        options.overrides.append(f"store={in_quotes(store_folder(options.store))}")
    return options, parser


def _refuse_options(options: argparse.Namespace, verb: str) -> None:
    """Raise `ConfigError` for Hydra's options that do nothing here, or that do not go together."""
    for name, refusal in _NOT_TAKEN.items():
        if getattr(options, name) is not None:
            raise ConfigError(refusal)
    if options.hydra_help and verb != "run":
        raise ConfigError(f"--hydra-help: give it to align run; see align {verb} --help")
    asked = [
        name
        for name in ("run", "multirun", "cfg", "info", "shell_completion")
        if getattr(options, name)
    ]
    if len(asked) > 1:
        raise ConfigError(f"{', '.join(f'--{name}' for name in asked)}: give one of them")
    if (options.resolve or options.package is not None) and not options.cfg:
        raise ConfigError(f"{'--resolve' if options.resolve else '--package'}: only with --cfg job")


def _read_config(
    file: str, config_name: str, stage: str | None, overrides: Sequence[str]
) -> tuple[Given, tuple[str, YamlFile]]:
    """Read a config file. Return its values, and the file with its name."""
    if config_name == "model_sizes":
        raise ConfigError(
            "--config: align model takes none; your own models come with --config-dir FOLDER"
        )
    path = Path(file).expanduser()
    read = read_yaml(path, file)
    places = Places(stage, set(), lambda: [Written(file, "", read)])
    try:
        return from_file(read, stage, path.stem, {_key_of(word) for word in overrides}), (
            file,
            read,
        )
    except ConfigError as error:
        raise ConfigError(places.located(str(error))) from None


def _key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _overrides(
    config_name: str,
    stage: str | None,
    given: Sequence[tuple[Given, tuple[str, YamlFile] | None]],
    words: Sequence[str],
    is_sweep: bool,
    loader: _Loader,
) -> tuple[list[str], Places]:
    """Return everything that was given as Hydra overrides, and where its knobs are written.

    Later overrides win: files, then values of a call, then the command line.
    """
    for word in words:
        _check_form(word)
    own = quoted(words, is_sweep)
    check_grammar(own)
    overrides = [*_chosen(stage, [made for made, _ in given]), *own]
    if STORE_VARIABLE in os.environ and not _says_store(own, given):
        overrides.append(f"store={in_quotes(store_folder())}")
    files = [file for _, file in given if file is not None]
    called = {key for made, file in given if file is None for key in flat(made.node)}
    read = functools.partial(_files, config_name, overrides, files, loader)
    places = Places(stage, called.union(map(_key_of, own)), read)
    _refuse_settings(map(_key_of, own), is_sweep)  # without a place: these keys are in no file
    for made, _ in given:
        is_pipeline = made.group == "pipeline"  # it may be run with or without a sweep
        _refuse_settings(flat(made.node), is_sweep or is_pipeline, places.located)
    for word in overrides:
        _check_choice(word, loader.config_dir, is_sweep, places)
    return overrides, places


def _check_form(word: str) -> None:
    """Raise `ConfigError` for a word of the command line that is not `name=value`."""
    if ("=" not in word and not word.startswith("~")) or not _key_of(word).strip():
        raise ConfigError(f"{word}: expected name=value{_word_meant(word)}")
    if _key_of(word) == "hydra.mode":
        raise ConfigError(MODE)


def _chosen(stage: str | None, given: Iterable[Given]) -> list[str]:
    """Return the overrides that select the stage and the values of files and calls.

    This also adds those values to Hydra's config store.
    """
    words = [] if stage is None else [f"stage@_global_={stage}"]
    for made in given:
        node = OmegaConf.create(made.node)
        ConfigStore.instance().store(
            group=made.group, name=made.name, node=node, package="_global_"
        )
        words += made.words
    return words


def _says_store(own: Iterable[str], given: Iterable[tuple[Given, Any]]) -> bool:
    return "store" in map(_key_of, own) or any("store" in made.node for made, _ in given)


def _check_choice(word: str, config_dir: str | None, is_sweep: bool, places: Places) -> None:
    """Raise `ConfigError` for a choice of a config that is not possible, or that needs a sweep."""
    key, value = _key_of(word), word.partition("=")[2]
    if key in GROUPS or "@" in key:
        _check_name(key, value, config_dir, places)
    if key.startswith("hydra/") and key not in _PLUGINS:
        raise ConfigError(places.located(f"{key}: not supported here; {_HYDRAS}"))
    if key == "sweep" and value != "none" and not is_sweep:
        raise ConfigError(
            places.located(f"{word}: a sweep; give -m (--multirun) too, or one run is made")
        )


def _check_name(group: str, value: str, config_dir: str | None, places: Places) -> None:
    """Raise `ConfigError` if a value cannot be the name of a config, as in `hardware=3`.

    A name that no config has is reported by Hydra.
    """
    is_name = value not in ("", "null") and "${" not in value and len(value) < _LONGEST_NAME
    parsed = OmegaConf.from_dotlist([f"value={value}"]).value if is_name else None
    is_of_values = value.startswith(("{", "[")) and "@" not in group
    if not isinstance(parsed, str) and not is_of_values:
        options = _options_of(group.partition("@")[0], config_dir)
        said = (value if len(value) < _LONGEST_NAME else f"{len(value):,} characters") or "nothing"
        raise ConfigError(
            places.located(f"{group}: expected a name, got {said}; there are: {', '.join(options)}")
        )


def _word_meant(word: str) -> str:
    if (conf_folder() / "pipeline" / f"{word}.yaml").exists():
        return f"; did you mean pipeline={word}?"
    if word in STAGES:
        return f"; a stage comes first, as in align {word}, align plan {word}"
    return ""


def _options_of(group: str, config_dir: str | None) -> list[str]:
    names = {
        file.stem
        for folder in _folders(config_dir).values()
        for file in (folder / group).glob("*.yaml")
    }
    return sorted(names) or sorted(STAGES)


def _files(
    config_name: str,
    overrides: Sequence[str],
    given: Sequence[tuple[str, YamlFile]],
    loader: _Loader,
) -> list[Written]:
    """Return the YAML files that a config is composed of, in order: the last one wins.

    If the config does not compose, return those that are known: the pipeline's file and the given
    ones.
    """
    if not loader.parts:  # nothing has been composed yet
        try:
            with _own_hydra():
                GlobalHydra.instance().clear()
                loader.note(
                    loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
                )
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError):
            # This is the error whose place is wanted.
            pipelines = [
                word.partition("=")[2] for word in overrides if word.startswith("pipeline=")
            ]
            loader.parts = [(f"pipeline/{name}", "") for name in pipelines]
    found = []
    for config_path, package in loader.parts:
        for shown, folder in _folders(loader.config_dir).items():
            file = folder / f"{config_path}.yaml"
            if os.path.isfile(file):
                name = os.path.join(shown, f"{config_path}.yaml")
                with contextlib.suppress(ConfigError):  # reported elsewhere
                    found.append(
                        Written(name, package, read_yaml(file, name), folder == conf_folder())
                    )
                break
    return [*found, *(Written(name, "", file) for name, file in given)]


def _search_path(config_dir: str | None) -> Any:
    search_path = create_config_search_path(f"file://{conf_folder()}")
    for folder in _plugin_folders():
        search_path.prepend(provider="plugin", path=f"file://{folder}", anchor="schema")
    if config_dir is not None:
        folder = Path(config_dir).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: no such folder")
        search_path.prepend(provider="command-line", path=f"file://{folder}")
    return search_path


@contextlib.contextmanager
def _explained(
    config_name: str, overrides: Sequence[str], config_dir: str | None, places: Places
) -> Iterator[None]:
    """Convert errors of Hydra to a `ConfigError` of one line."""
    try:
        yield
    except (yaml.YAMLError, UnicodeDecodeError, GrammarParseError) as error:
        raise ConfigError(_no_yaml(error, overrides, config_dir)) from error
    except (HydraException, OmegaConfBaseException) as error:
        _refuse_broken(overrides, config_dir)
        said = _explain(error, config_name, overrides)
        # Hydra's message lacks the key.
        if said.startswith("In '") and (key := places.list_for_names()) is not None:
            said = expected_names(key)
        raise ConfigError(places.located(said)) from error
    except ValueError as error:
        _refuse_broken(overrides, config_dir)
        if not re.search(
            r"Invalid defaults list|Unsupported type in defaults|default item", str(error)
        ):
            raise
        raise ConfigError(
            places.located("defaults: expected a list, as [/stage@steps.sft: sft, _self_]")
        ) from error


def _no_yaml(error: Exception, overrides: Sequence[str], config_dir: str | None) -> str:
    """Return the error line on the first config file that cannot be read.

    The files are read again, because not every error names its file.
    """
    for shown, folder in _folders(config_dir).items():
        chosen = [
            folder / "pipeline" / f"{word.partition('=')[2]}.yaml"
            for word in overrides
            if "pipeline=" in word
        ]
        for file in [*chosen, *sorted(folder.rglob("*.yaml"))]:
            if os.path.isfile(file):
                try:
                    read_yaml(file, os.path.join(shown, file.relative_to(folder)))
                except ConfigError as refusal:
                    return str(refusal)
    return explain_yaml(error, "a config file")


def _refuse_broken(overrides: Sequence[str], config_dir: str | None) -> None:
    """Raise the error of the chosen pipeline's file, if it cannot be read as names with values."""
    for name in [word.partition("=")[2] for word in overrides if word.startswith("pipeline=")]:
        for shown, folder in _folders(config_dir).items():
            if os.path.isfile(file := folder / "pipeline" / f"{name}.yaml"):
                read_yaml(file, os.path.join(shown, "pipeline", file.name))
                break


def _folders(config_dir: str | None) -> dict[str, Path]:
    """Return the folders of configs, by the names shown to users.

    The first one that has a file wins.
    """
    ours = {str(folder): folder for folder in (conf_folder(), *_plugin_folders())}
    return ours if config_dir is None else {config_dir: Path(config_dir).expanduser(), **ours}


def _plugin_folders() -> list[Path]:
    """Return the config folders of plugins: packages that extend align."""
    return [folder for plugin in plugins() for folder in plugin.folders("conf")]


class _Loader(ConfigLoaderImpl):
    """Hydra's loader, which also records the configs of its last composition.

    So nothing is composed again to find the file of a knob.

    Attributes:
        config_dir: the user's folder of configs; None if there is none.
        parts: the path of each config, without its suffix, and the package of its keys, in order;
            empty before the first composition.
    """

    def __init__(self, config_dir: str | None):
        search_path = _search_path(config_dir)
        super().__init__(search_path)
        self.config_dir = config_dir
        self.repository = _Repository(search_path)
        self.parts: list[tuple[str, str]] = []

    def note(self, defaults: Iterable[ResultDefault]) -> None:
        self.parts = [(str(part.config_path), part.package or "") for part in defaults]

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: Any
    ) -> DictConfig:
        self.note(defaults)
        return super()._compose_config_from_defaults_list(defaults, repo)


class _Repository(ConfigRepository):
    """Hydra's repository of configs, with a cheap copy.

    Hydra copies its repository, with all schemas, for each config. That is not needed, because a
    schema is copied when it is read.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Repository:
        copied = _Repository.__new__(_Repository)
        copied.sources = list(self.sources)
        return copied


def _hydra(loader: _Loader) -> Hydra:
    """Return a Hydra whose resolvers refuse a missing key; Hydra's own resolvers return null."""
    hydra = Hydra("align", loader)
    GlobalHydra.instance().initialize(hydra)
    OmegaConf.register_new_resolver("hydra", _setting_of_hydra, replace=True)
    OmegaConf.register_new_resolver("oc.select", _selected, replace=True)
    return hydra


def _setting_of_hydra(key: str) -> Any:
    """Resolve `${hydra:KEY}`."""
    if HydraConfig.instance().cfg is None:
        raise LookupError(
            f"${{hydra:{key}}}: a command has Hydra's settings, and a call from Python has none"
        )
    settings: Any = HydraConfig.get()  # typed as HydraConf, but it is a DictConfig
    value = OmegaConf.select(settings, key, default=_ABSENT)
    if value is _ABSENT:
        raise LookupError(f"${{hydra:{key}}}: Hydra has no setting of that name for this run")
    return value


def _selected(key: str, *default: Any, _parent_: Any) -> Any:
    """Resolve `${oc.select:KEY}` and `${oc.select:KEY,DEFAULT}`."""
    value = select(key, *(default or (_ABSENT,)), _parent_=_parent_)
    if value is _ABSENT:
        raise LookupError(
            f"${{oc.select:{key}}}: there is no {key} in the config; a default goes behind a comma"
        )
    return value


def _refuse_hydras(config: DictConfig, expected: RunMode, places: Places, loader: _Loader) -> None:
    """Raise `ConfigError` for Hydra settings that are not supported, or do not fit the run mode.

    Args:
        expected: the mode that the command asks for.
        loader: the loader that composed `config`.
    """
    if config.hydra.mode not in (None, expected):
        raise ConfigError(places.located(MODE))
    given = {_key_of(word) for kind in ("task", "hydra") for word in _words(config.hydra, kind)}
    # A pipeline's file may choose one for its sweeps, so only given words count.
    for group in given & {"launcher", "hydra/launcher"}:
        if (
            expected is RunMode.RUN
            and (chosen := config.hydra.runtime.choices.get(group)) != "basic"
        ):
            raise ConfigError(places.located(f"{group}={chosen}: {_OF_A_SWEEP}"))
    if loader.config_dir is None or not _names_hydra(loader, loader.config_dir, places):
        return
    for _, package, file, is_ours in places.files():
        if not is_ours:
            keys = flat(nested(file.values))
            _refuse_settings(
                [f"{package}.{key}" if package else key for key in keys], True, places.located
            )


def _names_hydra(loader: _Loader, config_dir: str, places: Places) -> bool:
    """Return True if the user's configs may set something of Hydra's.

    This only searches the text: a closer look needs to parse the files again.
    """
    files = (Path(config_dir).expanduser() / f"{path}.yaml" for path, _ in loader.parts)
    return any("@hydra" in key for key in places.overridden) or any(
        b"hydra" in file.read_bytes() for file in files if os.path.isfile(file)
    )


def _refuse_settings(
    keys: Iterable[str], is_sweep: bool, placed: Callable[[str], str] = str
) -> None:
    """Raise `ConfigError` for keys of Hydra that are not supported, or that only a sweep has."""
    for key in keys:
        if key.partition(".")[0] == "hydra" and not _TAKEN.fullmatch(key):
            raise ConfigError(placed(f"{key}: not supported here; {_HYDRAS}"))
        if key.startswith("hydra.") and not is_sweep:
            raise ConfigError(placed(f"{key}: {_OF_A_SWEEP}"))


def _words(hydra: DictConfig, kind: str = "task") -> list[str]:
    """Return the overrides of a command as they were given.

    They are not resolved. To read one through the config would resolve its interpolations.

    Args:
        hydra: Hydra's own config.
        kind: task or hydra: the overrides of our settings, or of Hydra's.
    """
    words: Any = OmegaConf.to_container(hydra.overrides[kind], resolve=False)
    return words


def _run(
    config_name: str,
    options: Any,
    task: Callable[[DictConfig], int],
    sweeps: Sweeps,
    places: Places,
    loader: _Loader,
) -> int:
    GlobalHydra.instance().clear()  # Hydra composes once per process; we may be called again
    hydra = _hydra(loader)
    if not options.multirun:
        config = hydra.compose_config(config_name, options.overrides, RunMode.RUN)
        _refuse_hydras(config, RunMode.RUN, places, loader)
        config.hydra.mode = RunMode.RUN
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        returned = run_job(
            hydra_context=context,
            task_function=task,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
        )
        return int(returned.return_value)
    config = hydra.compose_config(config_name, options.overrides, RunMode.MULTIRUN)
    _refuse_hydras(config, RunMode.MULTIRUN, places, loader)
    if "store" in config:
        # Resolve it now: else its errors would name the sweep's folder, which is in the store.
        _ = config.store
    if not sweeps.records:  # a plan: all members run in this process, one by one
        config.hydra.launcher = {"_target_": _BASIC_LAUNCHER}
    with _sweep_folder(config, sweeps.records) as folder:
        config.hydra.sweep.dir = str(folder)
        quoted = str(folder).replace("'", "\\'")
        # Members are composed again, so they need the folder as an override.
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        codes = []
        try:
            codes = _sweep(hydra, config, MemberTask(task, folder), sweeps.check, places)
        finally:
            if sweeps.records:
                _tidy(folder, keep=bool(codes or fates(folder)))
        if sweeps.records:
            _tell_ends(folder, codes)
            if sweeps.compare is not None and codes:
                sweeps.compare(folder)
    return max(codes, default=0)


@contextlib.contextmanager
def _sweep_folder(config: DictConfig, records: bool) -> Iterator[Path]:
    """Yield the folder of a sweep in the store.

    A plan leaves nothing in the store, so it gets a temporary folder.
    """
    if records:
        yield _own_folder(Path(config.hydra.sweep.dir))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _sweep(
    hydra: Hydra, config: DictConfig, task: MemberTask, check: Check | None, places: Places
) -> list[int]:
    """Run Hydra's multirun with its launcher inside ours; return each member's exit code."""
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    sweeper: Any = Plugins.instance().instantiate_sweeper(
        hydra_context=context, task_function=task, config=config
    )

    def prepare() -> dict[int, Prepared]:
        members = [list(member) for batch in sweeper.overrides for member in batch]
        varied = [i for i, column in enumerate(zip(*members, strict=True)) if len(set(column)) > 1]
        return {
            number: _checked(
                hydra,
                config,
                member,
                check,
                places,
                f"member {number} ({' '.join(member[i] for i in varied)})",
            )
            for number, member in enumerate(members)
        }

    sweeper.launcher = Launcher(sweeper.launcher, config.hydra.launcher, task, prepare)
    # Every batch is checked before the first one runs.
    sweeper.validate_batch_is_legal = lambda batch: None
    batches = sweeper.sweep(arguments=_words(config.hydra))
    return [int(member.return_value) for batch in batches for member in batch]


def _checked(
    hydra: Hydra,
    config: DictConfig,
    overrides: list[str],
    check: Check | None,
    places: Places,
    name: str,
) -> Prepared:
    try:
        composed = hydra.config_loader.load_sweep_config(config, overrides)
        own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        to_do = check is None or check(own, places)
        return Prepared(composed.hardware.threads, composed.hardware.num_processes, to_do)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{name}: {_explain(error, str(config.hydra.job.config_name), overrides)}; no member"
            " was run"
        ) from error
    except AlignError as error:
        raise type(error)(f"{name}: {error}; no member was run") from error


def _own_folder(folder: Path) -> Path:
    """Create `folder` and return it.

    If another sweep, begun in the same second, has that folder, create one beside it.
    """
    for number in range(1, 1000):
        own = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        own.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            own.mkdir()
            return own
    raise ConfigError(f"hydra.sweep.dir={folder}: exists already; give another")


def _tell_ends(folder: Path, codes: list[int]) -> None:
    """Print one line for each member that is not done, with the reason, and where to read more."""
    known = fates(folder)
    for number, code in enumerate(codes):
        fate = known.get(number)
        if code and fate is not None:
            log = f"; what it printed: {fate.log}" if fate.log else ""
            print(
                f"-- {number}: {': '.join(filter(None, (fate.state, fate.error)))}{log}",
                file=sys.stderr,
            )
    again = "" if max(codes, default=0) == 0 else "; the same command does what is left"
    done = f"{codes.count(0)} of {len(codes)} members done"
    print(f"-- {done}{again}; align sweep show {folder}", file=sys.stderr, flush=True)


def sweep_member() -> Member | None:
    """Return the member of a sweep that runs now, and print its overrides; None outside a sweep."""
    hydra: Any = HydraConfig.get()  # typed as HydraConf, but it is a DictConfig
    if OmegaConf.is_missing(hydra.job, "num"):
        return None
    overrides = [word for word in _words(hydra) if not word.startswith(("stage@", f"+{GIVEN}"))]
    print(f"-- {hydra.job.num}: {' '.join(overrides)}", file=sys.stderr, flush=True)
    log = hydra.launcher.get("submitit_folder")
    log = str(log).replace("%j", str(hydra.job.id)) if log else None
    return Member(Path(hydra.sweep.dir), hydra.job.num, overrides, log)


def chosen(group: str) -> tuple[str, bool]:
    """Return the config chosen from a group in the current run, and if it is unchanged.

    It is unchanged if none of its knobs was overridden.
    """
    hydra: Any = HydraConfig.get()
    return str(hydra.runtime.choices[group]), not any(
        w.startswith(f"{group}.") for w in _words(hydra)
    )


def _tidy(folder: Path, keep: bool) -> None:
    """Remove lock files, and the empty folders that Hydra makes for the members of a sweep.

    Args:
        keep: False: no member ran, so Hydra's record of the sweep is removed, too.
    """
    for done_with in (*folder.glob("members/*.lock"), folder / STOPPED):
        done_with.unlink(missing_ok=True)
    if not keep:
        (folder / "multirun.yaml").unlink(missing_ok=True)
    for path in (
        *folder.glob("*/%j"),
        *folder.glob("*"),
        folder,
        folder.parent,
        folder.parent.parent,
    ):
        with contextlib.suppress(OSError):
            path.rmdir()  # fails if the folder is not empty


# -- Hydra's errors, in one line -------------------------------------------------------------------


def _explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key}: {said_of_interpolation(error)}"
    text = f"{error}\n{error.__cause__ or ''}"
    said = (
        _no_override(text)
        or _unknown_knob(text, config_name, overrides)
        or _unknown_option(text, config_name, overrides)
        or _several_values(text)
        or _no_choice(text)
        or _wrong_type(text)
    )
    if said:
        return said
    # An error in a YAML file; Hydra does not give its place.
    text = text.replace(
        "Cannot merge DictConfig with ListConfig",
        "a list is given where names with values are expected",
    )
    return (
        " ".join(text.split())
        .replace(" full_key:", ", at")
        .partition(" object_type=")[0]
        .removesuffix(", at")
    )


# Each of these returns the error line if Hydra's text is of its kind, else None.


def _no_override(text: str) -> str | None:
    """Explain why an `override` in a defaults list has nothing to override."""
    found = re.search(r"In '[^']+': Could not override '([^']+)'", text)
    if found is None:
        return None
    group = found[1]
    if group == "sweep":
        return (
            "defaults: override /sweep: a sweep changes the steps of a pipeline, so it is chosen by"
            " sweep=NAME alone"
        )
    near = did_you_mean(group, ("hardware", "tracker", "launcher"))
    return f"defaults: override /{group}: no config before it chooses that{near}"


def _unknown_knob(text: str, config_name: str, overrides: Sequence[str]) -> str | None:
    found = re.search(
        r"Could not override '([^']+)'|Key '([^']+)' is not in struct|Key '([^']+)' not in '", text
    )
    if found is None:
        return None
    full = re.search(r"full_key: (\S+)", text)
    knob = full[1] if full else next(filter(None, found.groups()))
    return _no_such_knob(knob, config_name, overrides)


def _unknown_option(text: str, config_name: str, overrides: Sequence[str]) -> str | None:
    found = re.search(
        r"Could not find '([^']+)/([^'/]+)'.*?Available options in '[^']+':(.*?)(?:Config"
        r" search|$)",
        text,
        re.DOTALL,
    )
    if found:
        return _no_such_option(found[1], found[2], found[3], config_name, overrides)
    absent = re.search(r"In '[^']+': Could not (?:load|find) '([^']+)'", text)
    if absent:
        return (
            f"defaults: {absent[1]}: no such config; a step is declared as /stage@steps.NAME: STAGE"
        )
    return None


def _several_values(text: str) -> str | None:
    """Explain `KEY=A,B`, which may be a list, a sweep, or a path with a comma in it."""
    if several := re.search(r"Sweep parameters '([^'=]+)=.*' requires --multirun", text):
        return f"{several[1]}: several values are a sweep; give -m (--multirun) too"
    found = re.search(
        r"Ambiguous value for argument '([^'=]+)=(.*?)'\s+1\. To use it as a list", text, re.DOTALL
    )
    if found is None:
        return None
    key, value = found.groups()
    if all(map(is_outside, value.split(","))):
        return f"{key}: several are a list: '{key}=[{value}]'"
    if is_path(value):
        return (
            f"{key}: a path with a comma in it is taken for several values{reference_hint(value)}"
        )
    return (
        f"{key}={value}: several values are a list, {key}=[{value}], or a sweep over them, with"
        " --multirun"
    )


def _no_choice(text: str) -> str | None:
    """Explain that a group needs a choice, such as `pipeline=NAME`."""
    found = re.search(r"You must specify '([^']+)'.*?Available options:\s*(.*)", text, re.DOTALL)
    if found is None:
        return None
    group, names = found[1].partition("@")[0], found[2].split()
    first = "quickstart" if "quickstart" in names else names[0]
    return f"{group}: say which, as in {group}={first}; there are: {', '.join(names)}"


def _wrong_type(text: str) -> str | None:
    """Explain a list or null where names with values, or a value, are expected."""
    at = re.search(r"full_key: (\S+)", text)
    if at is None:
        return None
    if "Cannot merge DictConfig with ListConfig" in text:
        return expected_names(at[1])
    if re.search(r"not Optional|Incompatible value 'None'", text):
        return f"{at[1]}: expected a value, got null; leave it out for the default"
    return None


def _no_such_option(
    group: str, name: str, listed: str, config_name: str, overrides: Sequence[str]
) -> str:
    """Return the error line on a config that its group does not have.

    Args:
        listed: the names that the group has, from Hydra's message, separated by spaces.
    """
    options = [option for option in listed.split() if option != "schema"]
    first, slash, rest = group.partition("/")
    if slash and first in GROUPS:  # the name has a slash: for a model, it is an artifact's
        group, name = first, f"{rest}/{name}"
    if group == "model" and config_name == "stage":
        stage = _stage_given(overrides)
        if not any(knob.startswith("model.") for knob in knobs_of(STAGES[stage])):
            # Hydra knows the group, but this stage has no model.
            return no_such_knob(stage, "model")
    if group == "hydra/launcher":
        return (
            f"launcher: hydra's {name} launcher is not installed; pip install -e '.[sweep]', or use"
            " launcher=basic"
        )
    hint = did_you_mean(name, options)
    own = "; your own come with --config-dir FOLDER" if group == "pipeline" else ""
    own += (
        f"; one that was trained is given as inputs.model={name}"
        if group == "model" and "/" in name
        else ""
    )
    return f"{group}={name}: no such {group}{hint}; there are: {', '.join(options)}{own}"


def _no_such_knob(key: str, config_name: str, overrides: Sequence[str]) -> str:
    """Return the error line on an unknown knob, with the knob that was probably meant."""
    if config_name == "model_sizes":
        near = did_you_mean(key.rpartition(".")[2], [knob.name for knob in fields(ModelConfig)])
        return f"{key}: no such knob{near}; align model --help lists them"
    if config_name == "stage":
        return no_such_knob(_stage_given(overrides), key)
    stages = _stages_of_steps(overrides)
    head, _, rest = key.removeprefix("steps.").partition(".")
    if not key.startswith("steps."):
        having = [step for step, stage in stages.items() if key in knobs_of(STAGES[stage])]
        if having:
            return (
                f"{key}: no such setting; a step's knob is steps.STEP.{key}, of {', '.join(having)}"
            )
        ours = next((name for name in OURS.get(key, ()) if name in knobs_of(RunConfig)), None)
        in_steps = [] if ours else _of_steps(stages, key)
        if in_steps:
            there_is = (
                "a step's knob is steps.STEP.KNOB"
                if in_steps[0].startswith("steps.")
                else "there is"
            )
            return f"{key}: no such setting; {there_is}: {', '.join(in_steps)}"
        near = suggestion(ours) if ours else did_you_mean(key, knobs_of(RunConfig), CUTOFF)
        return (
            f"{key}: no such knob{near}; align run --help lists the settings, align"
            " STAGE --help knobs"
        )
    if rest and head in stages:
        return no_such_knob(stages[head], rest, f"steps.{head}.")
    near = did_you_mean(head, stages)
    return f"steps.{head}: no such step{near}; steps: {', '.join(stages)}"


def _stage_given(overrides: Sequence[str]) -> str:
    return next(word.partition("=")[2] for word in overrides if word.startswith("stage@"))


def _of_steps(stages: Mapping[str, str], name: str) -> list[str]:
    """Return the knobs of steps that other libraries call `name`, with the unit if it differs."""
    found = []
    for step, stage in stages.items():
        other = other_unit(STAGES[stage], name)
        if name in OURS and (meant := meant_knob(STAGES[stage], name)) is not None:
            found.append(f"steps.{step}.{meant}")
        elif other is not None:
            own = other[0] if other[0] in knobs_of(RunConfig) else f"steps.{step}.{other[0]}"
            found.append(f"{own} (counts {other[1]})")
    return [*dict.fromkeys(found)]  # a setting of the run is found for every step


def _stages_of_steps(overrides: Sequence[str]) -> dict[str, str]:
    """Return the stage of each step of the chosen pipeline; empty if that does not compose."""
    chosen_ones = [word for word in overrides if word.startswith("pipeline=")]
    hydra = GlobalHydra.instance().hydra
    try:
        assert hydra is not None
        config = hydra.compose_config("run", chosen_ones, RunMode.RUN, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException):
        return {}
    return {str(name): str(step.stage) for name, step in config.get("steps", {}).items()}
