"""Data cards and data sources: a built-in generator, the Hub at a pinned commit, or local files.

Planning a pipeline resolves each source to its files and a digest of their content. The `data`
stage resolves the source again and reads the rows. Nothing here imports torch or opens the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from align.configs.plugins import plugins
from align.data.files import suffix_of
from align.data.formats import FORMATS, GROUPED
from align.data.generators import generator
from align.data.model_files import check_files, check_model, read_fields
from align.data.records import SPLITS, source_name
from align.data.split_names import says_split, split_of_file, split_of_name, splits_of_names
from align.errors import PACKAGE, ConfigError, did_you_mean
from align.store.artifacts import ADAPTER, ADAPTER_WEIGHTS, sha256_file, write_json
from align.store.file_kinds import PACKED, SUFFIXES, TEXTS, unusual_kind
from align.store.references import beside, expanded, hint
from align.store.seals import digest_of

_ARTIFACT = re.compile(r"[a-z][a-z0-9_]*/[0-9A-Za-z]+")  # STAGE/KEY
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".npy")
# Vocabulary and merges as published, as file names: GPT-1's release, GPT-2's, and both on the Hub.
VOCABULARIES = (
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
)
# Files that `datasets` and the Hub write next to the files that hold the rows.
_SAVED_BESIDE = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class DataCard:
    """The description of a data set: the front matter of data_cards/<name>.md.

    Attributes:
        format: the format of a raw row, see `align/data/formats.py`; None: detected from the
            columns.
        hub: ORG/NAME@COMMIT on the Hugging Face Hub; without a commit the Hub is never read.
        hub_config, hub_dir, hub_splits: the parts of it to load; an empty `hub_splits` loads every
            split.
        local: glob patterns below the user's `data_root`, for the same data as files.
        local_train, local_validation: patterns of the published training and validation files; all
            other files are the test split. If no file matches `local_train`, rows are split by
            their content.
        generator: the generator that makes the rows instead, see `align/data/generators.py`.
        held_out: fraction of the prompts (or documents) that go to validation; the test split gets
            the same fraction.
    """

    name: str
    licence: str = "unknown"
    personal_data: str = "unknown"
    format: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    hub_dir: str | None = None
    hub_splits: tuple[str, ...] = ("train",)
    local: tuple[str, ...] = ()
    local_train: tuple[str, ...] = ()
    local_validation: tuple[str, ...] = ()
    generator: str | None = None
    held_out: float = 0.05


@dataclass(frozen=True)
class Source:
    """The source of a data step's rows, with its files and a digest."""

    card: DataCard
    root: Path | None  # the folder that `files` are below
    files: tuple[Path, ...]
    digest: str
    left_out: tuple[Path, ...] = ()  # other files of a user's folder
    is_one_file: bool = False  # the user named the file itself, not its folder

    def file_splits(self) -> dict[Path, str | None]:
        """Return the split of each file: as the card publishes it, else by the file's name.

        None means that the rows are split by their content.

        Raises:
            ConfigError: the names of a user's files do not say clearly which splits they are.
        """
        if self.is_local_path:
            assert self.root is not None
            if self.is_one_file:
                return {file: split_of_file(file) for file in self.files}
            return dict(zip(self.files, splits_of_names(self.root, self.files), strict=True))
        if not any(self._matches(file, self.card.local_train) for file in self.files):
            return dict.fromkeys(self.files)
        return {file: self._published_split(file) for file in self.files}

    def named_splits(self) -> dict[str, Path]:
        """Return each split that the files name, with one such file; ignore unclear names."""
        published = {} if self.is_local_path else self.file_splits()
        named: dict[str, Path] = {}
        for path in self.files:
            split = published.get(path)
            if self.is_local_path and self.root is not None:
                with contextlib.suppress(ConfigError):
                    split = split_of_name(path.relative_to(self.root))
            if split is not None:
                named.setdefault(split, path)
        return named

    def _published_split(self, path: Path) -> str:
        if self._matches(path, self.card.local_train):
            return "train"
        return "validation" if self._matches(path, self.card.local_validation) else "test"

    def _matches(self, path: Path, patterns: tuple[str, ...]) -> bool:
        assert self.root is not None
        return any(path.relative_to(self.root).match(pattern) for pattern in patterns)

    @property
    def pretrained(self) -> dict[str, Any]:
        """The arguments of `from_pretrained`, with the commit if the source is on the Hub."""
        name, _, commit = str(self.card.hub).partition("@")
        place = {"pretrained_model_name_or_path": self.root or name, "trust_remote_code": False}
        # Without this, `from_pretrained` asks the Hub for files that the local folder lacks.
        return (
            {**place, "local_files_only": True}
            if self.root is not None
            else {**place, "revision": commit}
        )

    @contextlib.contextmanager
    def alone(self) -> Iterator[Source]:
        """Give the source with its GGUF file alone in a temporary folder.

        Otherwise the library would open a tokenizer in the same folder instead of the GGUF's own.
        """
        if self.gguf is None or self.root is None:
            yield self
            return
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / self.gguf
            link.symlink_to((self.root / self.gguf).resolve())
            yield replace(self, root=Path(folder), files=(link,))

    @property
    def gguf(self) -> str | None:
        """The name of the GGUF file that holds the model; None if there is a config.json."""
        names = [path.name for path in self.files]
        return next(
            (name for name in names if name.endswith(".gguf") and "config.json" not in names), None
        )

    @property
    def is_without_card(self) -> bool:
        """True for a data set of the Hub without a card: its splits are those of the Hub."""
        return self.card.hub is not None and not self.card.hub_splits

    @property
    def is_local_path(self) -> bool:
        """True for a user's own files, where a malformed row is an error, not a statistic."""
        return self.card.licence == "yours"


def cards_folders() -> list[Path]:
    """Return the folders of cards: the user's own, those shipped with align, those of plugins."""
    shipped = [PACKAGE / "data_cards", PACKAGE.parent / "data_cards"]
    of_plugins = [folder for plugin in plugins() for folder in plugin.folders("data_cards")]
    return [folder for folder in (Path("data_cards"), *shipped, *of_plugins) if folder.is_dir()]


def load_card(name: str) -> DataCard:
    for folder in cards_folders():
        path = folder / f"{name}.md"
        if os.path.isfile(path):
            return _read_card(path)
    known = sorted({p.stem for folder in cards_folders() for p in folder.glob("*.md")})
    card, _, split = name.partition("/")
    if card in known:
        meant = (
            f"{split} is not one of its splits"
            if split not in SPLITS
            else f"splits='[{split}]' keeps one split of it"
        )
        raise ConfigError(f"card:{name}: here a whole card is named: card:{card}; {meant}")
    hint = did_you_mean(card, known)
    raise ConfigError(f"card:{name}: no such data card{hint}; cards: {', '.join(known)}")


def _read_card(path: Path) -> DataCard:
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}: its front matter is not YAML ({error})".replace("\n", " ")
        ) from None
    if not isinstance(front, dict):
        raise ConfigError(f"{path}: expected YAML front matter between two lines of ---")
    known = {f.name for f in fields(DataCard)}
    for field in front.keys() - known:
        raise ConfigError(f"{path}: unknown field {field!r}; fields: {', '.join(sorted(known))}")
    if front.get("format") not in [None, *FORMATS, *GROUPED]:
        names = ", ".join([*FORMATS, *GROUPED])
        raise ConfigError(f"{path}: format: expected one of {names}, got {front['format']!r}")
    for name, value in front.items():
        _check_field(path, name, value)
    front = {k: tuple(v) if isinstance(v, list) else v for k, v in front.items()}
    return DataCard(**{**front, "name": path.stem})


def _check_field(path: Path, name: str, value: Any) -> None:
    if name in ("local", "local_train", "local_validation", "hub_splits"):
        good, what = (
            isinstance(value, list) and all(isinstance(x, str) for x in value),
            "a list of text",
        )
        if good and name != "hub_splits":
            good, what = all(x and not x.startswith("/") for x in value), "patterns below data_root"
    elif name == "held_out":
        good, what = isinstance(value, float) and 0 < value < 0.5, "a share between 0 and 0.5"
    else:
        good, what = value is None or isinstance(value, str), "text"
    if not good:
        raise ConfigError(f"{path}: {name}: expected {what}, got {value!r}")


def resolve(source: str, data_root: str | None, store: Path | None) -> Source:
    """Resolve `card:NAME`, `path:FILE_OR_FOLDER` or `hf:ORG/NAME@COMMIT` to files and a digest.

    Args:
        source: the source, in one of these forms.
        data_root: the folder with the files that cards name.
        store: the store that caches the sha256 of each file; None: file contents are not hashed,
            for callers that need only the files.

    Raises:
        ConfigError: the source has none of these forms, its files are missing, or it is not pinned.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "card" and rest:
        card = load_card(rest)
        if card.generator:
            return Source(card, None, (), _generator_digest(card.generator))
        if data_root is not None:
            return _local(card, source, expanded(data_root), store)
        _require_pinned(card.hub, source)
        return Source(
            card, None, (), digest_of([card.hub, card.hub_config, card.hub_dir, _reading(card)])
        )
    if scheme == "hf" and rest:
        return _on_hub(rest, source)
    if scheme == "path" and rest:
        return _users(source, expanded(rest), store)
    is_card = (
        any(os.path.isfile(folder / f"{source}.md") for folder in cards_folders())
        and "/" not in source
    )
    meant = f"; did you mean card:{source}?" if is_card else hint(source)
    raise ConfigError(
        f"{source!r}: expected card:NAME, path:FILE_OR_FOLDER or hf:ORG/NAME@COMMIT{meant}"
    )


def resolve_model(source: str, store: Path | None) -> Source:
    """Resolve a model's source to its files and a digest.

    The source is `hf:ORG/NAME@COMMIT`, `path:FOLDER` or `path:FILE.gguf`. A folder holds a model as
    `transformers` saves it, an adapter as `peft` saves it (see `resolve_base`), one GGUF file, or
    GPT-1's parameters as OpenAI published them.
    """
    known = {"config.json", "params_shapes.json", ADAPTER}
    found = _resolve_folder(
        source,
        store,
        lambda names: bool(known & names) or any(n.endswith(".gguf") for n in names),
        "a model's config.json or a .gguf file in it (or params_shapes.json, of GPT-1's released"
        " parameters)",
        check_model,
    )
    several = [path.name for path in found.files if path.suffix == ".gguf"]
    if found.gguf and len(several) > 1:
        raise ConfigError(
            f"{source}: it holds several GGUF files ({', '.join(several)}); name one of them"
        )
    return found


def resolve_base(source: str, given: str, store: Path | None) -> Source | None:
    """Find the base model of the adapter in `source`; return None if `source` holds no adapter.

    For a source on the Hub, the base is `given`, else None: only its files could tell.

    The adapter's config names the base: a local folder, an artifact STAGE/KEY (in the store that
    holds the adapter, or in `store`), or a repository of the Hub with a full commit hash.

    Args:
        source: the source of the adapter.
        given: the source of a model to use as the base instead; "" for none.
        store: as for `resolve`.

    Raises:
        ConfigError: the adapter is not a LoRA or lacks its weights; its base is not found or is an
            adapter itself; or `given` names a base although `source` is a folder without an
            adapter.
    """
    scheme, _, rest = source.partition(":")
    folder = expanded(rest)
    if scheme == "path" and not _is_adapter(folder):
        if given:
            raise ConfigError(
                f"base={given}: {source} holds no adapter ({ADAPTER}), so it has no base; leave"
                " base out"
            )
        return None
    named, revision = _recorded_base(source, folder) if scheme == "path" else ("", "")
    places = [expanded(named), folder / named] if named else []
    if _ARTIFACT.fullmatch(named):
        objects = [*folder.absolute().parents[1:3], *([store / "objects"] if store else [])]
        places += [place / named for place in objects]
    if given:
        base = given
    elif found := next((place for place in places if (place / "config.json").is_file()), None):
        base = f"path:{found}"
    elif scheme == "path" and _COMMIT.fullmatch(revision):
        base = f"hf:{named}@{revision}"
    elif scheme == "path":
        raise ConfigError(
            f"{source}: an adapter on {named or 'a model that it does not name'}, which is not"
            " here; give its base too: base=path:FOLDER or base=hf:ORG/NAME@COMMIT"
        )
    else:
        return None
    if base.startswith("path:") and _is_adapter(expanded(base.removeprefix("path:"))):
        raise ConfigError(
            f"base={base}: it is an adapter itself; give the whole model that both are on"
        )
    return resolve_model(base, store)


def _is_adapter(folder: Path) -> bool:
    """True for a folder with an adapter and no weights of a whole model."""
    whole = any(
        path.name.startswith(("model", "pytorch_model")) and path.suffix in _WEIGHTS
        for path in folder.glob("*")
    )
    return (folder / ADAPTER).is_file() and not whole


def _recorded_base(source: str, folder: Path) -> tuple[str, str]:
    """Return the base that an adapter's config names, as (name or path, commit)."""
    try:
        read = read_fields(folder / ADAPTER)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    kind, named, revision = (
        read.get("peft_type"),
        read.get("base_model_name_or_path"),
        read.get("revision"),
    )
    if kind != "LORA":
        raise ConfigError(
            f"{source}: an adapter of the kind {kind}; expected LORA; merge it into its base first "
            "(peft: model.merge_and_unload().save_pretrained(FOLDER)), then import that folder"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"{source}: an adapter without its weights ({ADAPTER_WEIGHTS})")
    return str(named or ""), str(revision or "")


def resolve_tokenizer(source: str, store: Path | None) -> Source:
    """Resolve a tokenizer's source to its files and a digest.

    The source is `hf:ORG/NAME@COMMIT` or `path:FOLDER`.
    """
    pairs = ", ".join(" and ".join(pair) for pair in VOCABULARIES)
    return _resolve_folder(
        source,
        store,
        lambda names: (
            bool(names & {*_TOKENIZERS}) or any(names.issuperset(pair) for pair in VOCABULARIES)
        ),
        f"a tokenizer in it: {pairs}, or {' or '.join(_TOKENIZERS)}",
        check_files,
        without=_WEIGHTS,
    )


def model_kind(source: str) -> str | None:
    """Return the artifact kind that a model's source becomes; None if only the Hub can tell."""
    scheme, _, rest = source.partition(":")
    if scheme != "path":
        return None
    folder = expanded(rest)
    if (folder / "params_shapes.json").is_file():
        return "model"
    config = folder / "config.json"
    if _is_adapter(folder) and not config.is_file():
        # `peft` writes "SEQ_CLS" for a sequence classifier.
        return "reward_model" if b'"SEQ_CLS"' in (folder / ADAPTER).read_bytes() else None
    if not config.is_file():
        return None
    try:
        read = read_fields(config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return kind_of(read.get("architectures"), bool(read.get("is_encoder_decoder")))


def kind_of(architectures: list[str] | None, is_encoder_decoder: bool) -> str:
    """Return the artifact kind of a model, from two fields of its config."""
    if str((architectures or [""])[0]).endswith("ForSequenceClassification"):
        return "reward_model"
    return "seq2seq_model" if is_encoder_decoder else "model"


def _resolve_folder(
    source: str,
    store: Path | None,
    fits: Callable[[set[str]], bool],
    wanted: str,
    check: Callable[[Path, list[Path]], None],
    without: tuple[str, ...] = (),
) -> Source:
    """Resolve a pinned repository of the Hub, or a folder whose file names satisfy `fits`.

    Files with a suffix in `without` are ignored. `check` raises `ValueError` if no library should
    open the files.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "hf" and rest:
        return _on_hub(rest, source)
    folder = expanded(rest)
    known = scheme == "path" and rest and folder.is_dir()
    files = (
        sorted(p for p in folder.iterdir() if not p.is_dir() and p.suffix not in without)
        if known
        else []
    )
    if scheme == "path" and folder.suffix == ".gguf" and folder.is_file():
        folder, files = folder.parent, [folder]
    if not fits({p.name for p in files}):
        missing = scheme == "path" and rest and not folder.exists()
        more = f"; no such file or folder{beside(folder)}" if missing else hint(source)
        raise ConfigError(
            f"{source!r}: expected hf:ORG/NAME@COMMIT or path:FOLDER with {wanted}{more}"
        )
    try:
        # A file that the user named may itself be a link to another folder.
        check(files[0].resolve().parent if files[0] == expanded(rest) else folder, files)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    digests = file_digests(files, store)
    return Source(
        DataCard(name=folder.name, licence="yours"),
        folder,
        tuple(files),
        digest_of([[p.name, digest] for p, digest in zip(files, digests, strict=True)]),
    )


def _require_pinned(hub: str | None, source: str) -> None:
    if hub is None or not _COMMIT.fullmatch(hub.partition("@")[2]):
        known = f" of {hub}" if hub else ""
        raise ConfigError(
            f"{source}: the Hub is read at a full commit hash only, and none is known{known}; "
            "use hf:ORG/NAME@COMMIT, or give the files with data_root=FOLDER"
        )


def _on_hub(rest: str, source: str) -> Source:
    _require_pinned(rest, source)
    return Source(
        DataCard(name=source_name(source), hub=rest, hub_splits=()), None, (), digest_of(rest)
    )


def _local(card: DataCard, source: str, root: Path, store: Path | None) -> Source:
    found = {path for pattern in card.local for path in root.glob(pattern)}
    for path in sorted(found):
        _refuse_broken_link(source, path)
        if not path.is_dir():
            _refuse_unusual(source, path)
    files = sorted(path for path in found if path.is_file())
    if not files:
        patterns = ", ".join(card.local) or "no files"
        pinned = card.hub is not None and _COMMIT.fullmatch(card.hub.partition("@")[2])
        hub = (
            "; leave data_root out to use the Hub"
            if pinned
            else f"; data_cards/{card.name}.md says which set it is"
        )
        raise ConfigError(f"{source}: nothing in data_root={root} matches {patterns}{hub}")
    digests = file_digests(files, store)
    names = [path.relative_to(root).as_posix() for path in files]
    return Source(
        card, root, tuple(files), digest_of([_reading(card), *zip(names, digests, strict=True)])
    )


def _users(source: str, path: Path, store: Path | None) -> Source:
    left_out: list[Path] = []
    _refuse_broken_link(source, path)
    if path.is_dir():
        files, left_out = _rows_and_others(_files_below(source, path))
        for file in files:
            _refuse_unusual(source, file)
    else:
        _refuse_unusual(source, path)
        files = [path] if path.is_file() else []
    if not files:
        what = (
            f"holds no {', '.join(SUFFIXES)} file"
            if path.is_dir()
            else f"no such file or folder{beside(path)}"
        )
        raise ConfigError(f"{source}: {what}")
    if suffix_of(files[0]) not in SUFFIXES:
        raise ConfigError(
            f"{source}: expected a file ending in {', '.join(SUFFIXES)} (or that and"
            f" {', '.join(PACKED)})"
        )
    root = path if path.is_dir() else path.parent
    names = [p.relative_to(root).as_posix() for p in files]
    digests = file_digests(files, store)
    card = DataCard(name=source_name(source), licence="yours")
    # The folder's name may decide the split of its rows, so it belongs to the digest.
    named = [root.name] if says_split(root.name) else []
    digest = digest_of([*named, *zip(names, digests, strict=True)])
    return Source(card, root, tuple(files), digest, tuple(left_out), is_one_file=not path.is_dir())


def _files_below(source: str, folder: Path) -> list[Path]:
    """Return all files below a folder, also through links; skip names that begin with a dot."""
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above itself: do not walk in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    for path in sorted(files):
        _refuse_broken_link(source, path)
    return sorted(files)


def _refuse_broken_link(source: str, path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{source}: {path} is a broken symbolic link, to {os.readlink(path)}; bring back what"
            " it points to, or remove the link"
        )


def _refuse_unusual(source: str, path: Path) -> None:
    """Refuse what is not an ordinary file: a pipe waits for a writer, a device may never end."""
    if (kind := unusual_kind(path)) is not None:
        raise ConfigError(f"{source}: {path}: expected an ordinary file, got {kind}")


def _rows_and_others(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Split a folder's files into those that hold rows and the others.

    Text files next to tables are read-mes, not rows.
    """
    readable = [path for path in paths if suffix_of(path) in SUFFIXES and not _is_cache(path)]
    tables = [path for path in readable if suffix_of(path) not in TEXTS]
    data = [path for path in tables if path.name not in _SAVED_BESIDE]
    rows = data or tables or readable
    is_row = set(rows)
    return rows, [path for path in paths if path not in is_row]


def _is_cache(path: Path) -> bool:
    """True for files that `datasets` computes from the rows next to them.

    `map` writes the rows again, `shuffle` writes their order.
    """
    return path.match("cache-*.arrow") and path.with_name("state.json").exists()


def _reading(card: DataCard) -> list[Any]:
    """Return the fields of a card that decide which rows the same bytes give."""
    published = [
        list(patterns) for patterns in (card.local_train, card.local_validation) if patterns
    ]
    return [card.format, card.held_out, list(card.hub_splits), *published]


def _generator_digest(name: str) -> str:
    """Return a digest of the generator's version, which changes with its rows or gold scores."""
    return digest_of([name, generator(name).VERSION])


def file_digests(files: list[Path], store: Path | None) -> list[str]:
    """Return the sha256 of each file; without a store, return empty texts.

    The store caches each digest by the file's path, size, modification time and inode.
    """
    if store is None:
        return [""] * len(files)
    cache_path = store / "cache" / "digests.json"
    try:
        cache = dict(json.loads(cache_path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        cache = {}
    fresh: dict[str, list[Any]] = {}
    for path in files:
        stat = path.stat()
        tag = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = cache.get(str(path.absolute()))
        fresh[str(path.absolute())] = (
            known if known and known[:3] == tag else [*tag, sha256_file(path)]
        )
    if store.is_dir() and any(cache.get(name) != known for name, known in fresh.items()):
        cache_path.parent.mkdir(exist_ok=True)
        write_json(cache_path, {**cache, **fresh})
    return [fresh[str(path.absolute())][3] for path in files]
