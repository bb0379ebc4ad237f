"""The artifact store: immutable results under their keys, and names whose versions point at them.

    objects/<stage>/<key>/                     payload and manifest.json
    names/<pipeline>/<step>/v<N>.json          {stage, key, digest, seal, created, check}: versions,
                                               one per key and name
    names/<pipeline>/<step>/aliases/<alias>    a version; `latest` follows every successful run
    work/<stage>/<key>/                        a step in progress: its lock, notes, checkpoints and
                                               unfinished payload
    cache/                                     digests of data files, and what `artifacts ls` read;
                                               may be deleted
    lock                                       a shared lock for users of artifacts, an exclusive
                                               lock for a removal

An object is complete as soon as its folder exists. All files are first written and fsynced in the
work folder, the manifest last. Then the folder is renamed into place. Manifests, versions and
aliases are sealed (see `seals`), and checked whenever they are read. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeGuard

from align.errors import StoreError, did_you_mean
from align.store.references import import_hint, is_outside, is_path, made_by
from align.store.seals import digest_of, fits, is_checked, seal_of, with_check

MANIFEST = "manifest.json"
# In a work folder: the step's name, inputs and last error; how many steps it will run.
NOTE, STEPS = "step.json", "steps.json"
# The files of an adapter, as peft names them.
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"v(0|[1-9][0-9]{0,8})")
_FOLDER = re.compile(r"\w[\w.-]*")
_USUAL_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_BASE = re.compile(r"([a-z][a-z0-9_]*)/([0-9A-Za-z]+)")
# Files that macOS and NFS create on their own. They are not part of an artifact, and no damage.
_OF_SYSTEM = re.compile(r"\.DS_Store|\._.+|\.nfs[0-9a-f]+")
STORE_VARIABLE = "ALIGN_STORE"


@dataclass(frozen=True)
class Artifact:
    """An immutable result of a stage."""

    stage: str
    key: str
    kind: str
    path: Path

    @property
    def ref(self) -> str:
        """The reference by key, such as `ppo@3f9c1b22a0d4`. It always means this artifact."""
        return f"{self.stage}@{self.key[:12]}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    @property
    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = self.manifest["metrics"]
        return metrics

    @property
    def config(self) -> dict[str, Any]:
        """The knobs and inputs that the stage ran with."""
        config: dict[str, Any] = self.manifest["config"]
        return config

    @property
    def store(self) -> ArtifactStore:
        """The store that holds the artifact."""
        return ArtifactStore(self.path.parents[2])

    def lineage(self) -> list[Artifact]:
        """Return the artifact and all artifacts it was made from, each once, nearest first."""
        return self.store.lineage(self)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of its <name>.jsonl; an empty list if there is no such file."""
        return read_json_lines(self.path / f"{name}.jsonl")

    @property
    def digest(self) -> str:
        """The sha256 over the names and contents of all files."""
        return digest_of({name: file["sha256"] for name, file in self.manifest["files"].items()})

    @property
    def seal(self) -> str:
        """The digest of its result (see `align.store.seals`); "" if it was made by earlier code."""
        return str(self.manifest.get("seal", ""))


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file; an empty list if there is no such file.

    Only a line feed ends a line. `str.splitlines` would also split at other Unicode line breaks,
    which a model's text may contain.
    """
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        return [json.loads(line) for line in lines]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of_file(path: str | os.PathLike[str]) -> int | None:
    """Return the size of a file in bytes; None if there is no such file.

    This makes one system call, because a store has many files.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest in an artifact's folder.

    Raises:
        StoreError: it is missing or damaged, it was changed after it was written, or the system
            cannot read it.
    """
    manifest = read_json(f"{folder}/{MANIFEST}")
    if not isinstance(manifest, dict) or not {"kind", "stage", "key", "files"} <= manifest.keys():
        raise _corrupt(folder, MANIFEST, "is missing or damaged")
    if "seal" in manifest and manifest["seal"] != seal_of(manifest):
        raise _corrupt(folder, MANIFEST, "was changed after it was written: its seal does not fit")
    whole = _LEFT_OUT | manifest
    for field, is_right in _FIELDS.items():
        if not is_right(whole[field]):
            raise _corrupt(folder, f"{MANIFEST}: {field}", "is not what align writes")
    return whole


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number. NaN and infinity are numbers.

    An integer above the range of floats is not, because reports could not draw it.
    """
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _is_time(value: Any) -> bool:
    """Return whether a value is a time in seconds that a calendar can show."""
    return is_number(value) and 0 <= value < 1e11


def _are_files(value: Any) -> bool:
    try:
        return all(
            type(file["sha256"]) is str and type(file["size"]) is int for file in value.values()
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _are_inputs(value: Any) -> bool:
    return _is_dict(value) and all(
        isinstance(group, list) and all(map(_is_input, group)) for group in value.values()
    )


def _is_input(value: Any) -> bool:
    named = _is_dict(value) and all(
        _is_text(value.get(field)) for field in ("ref", "stage", "key", "digest")
    )
    return named and all(_FOLDER.fullmatch(value[field]) for field in ("stage", "key"))


# A check for each field of a manifest. The seal does not cover all fields, and earlier code has no
# seal.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("kind", "stage", "key"), _is_text),
    **dict.fromkeys(("config", "code", "packages", "hardware"), _is_dict),
    **dict.fromkeys(("created", "seconds"), _is_time),
    "data": lambda value: value is None or _is_text(value),
    "metrics": lambda value: _is_dict(value) and all(map(is_number, value.values())),
    "files": _are_files,
    "inputs": _are_inputs,
}
_LEFT_OUT: dict[str, Any] = {  # the values of fields that a manifest lacks
    **{field: {} for field in ("config", "code", "packages", "hardware", "inputs", "metrics")},
    **{"created": 0.0, "seconds": 0.0, "data": None},
}


def read_json(file: str | os.PathLike[str]) -> Any:
    """Return the JSON value in a file; None if there is no such file, or no valid JSON in it.

    Raises:
        StoreError: the system cannot read the file. It may not be damaged, so do not remove it.
    """
    try:
        return json.loads(read_bytes(file).decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def read_bytes(file: str | os.PathLike[str]) -> bytes:
    """Return the content of a file; empty if there is no such file.

    Raises:
        StoreError: the system cannot read the file.
    """
    try:
        # With O_NONBLOCK a pipe without a writer reads as empty. Otherwise the read would wait.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            return opened.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise StoreError(f"{os.fspath(file)}: cannot be read: {error.strerror}") from None


def base_name(folder: Path) -> tuple[str, str]:
    """Return stage and key of an artifact, or of its base if it is an adapter.

    Args:
        folder: the artifact's folder.

    Raises:
        StoreError: it is an adapter whose base is not an artifact.
    """
    if not (folder / ADAPTER).is_file():
        return folder.parent.name, folder.name
    try:
        named = read_json(folder / ADAPTER)["base_model_name_or_path"]
    except (KeyError, TypeError):
        raise _corrupt(folder, ADAPTER, "is damaged") from None
    found = _BASE.fullmatch(str(named))
    if found is None:
        raise StoreError(
            f"{folder}: an adapter on {named}, which is not an artifact of a store; import it with"
            " path:FOLDER"
        )
    return found[1], found[2]


def base_folder(folder: Path) -> Path:
    """Return an artifact's folder, or the folder of its base in the same store if it is an adapter.

    Raises:
        StoreError: the base is missing.
    """
    if not (folder / ADAPTER).is_file():
        return folder
    stage, key = base_name(folder)
    for objects in folder.absolute().parents[1:4]:  # `folder` is STAGE/KEY, or a folder in it
        if (objects / stage / key).is_dir():
            return objects / stage / key
    raise _base_is_gone(folder.name[:12], f"{stage}@{key[:12]}")


def _base_is_gone(adapter: str, base: str) -> StoreError:
    return StoreError(
        f"{adapter}: an adapter on {base}, which is gone from the store; run the step that makes"
        f" {base} again"
    )


def _corrupt(folder: Path, file: str, what: str) -> StoreError:
    return StoreError(
        f"{folder}: {file} {what}; remove that folder and run the step that makes it again"
    )


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: yield a temporary path beside it, then fsync and rename it."""
    # Not named by the process id: processes in different containers may have the same one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and fsync the folder that each is made in.

    Without this a crash could lose a new folder, and with it the files that were fsynced inside.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(path: Path) -> None:
    """Give a file the permissions that the umask allows.

    This is needed because safetensors makes files that only their owner can read. A file of another
    user keeps its permissions, because only its owner can change them. Such files exist in a step
    that another user began.
    """
    umask = os.umask(0o022)
    os.umask(umask)
    if path.stat().st_uid == os.geteuid():
        path.chmod(0o666 & ~umask)


def store_folder(given: str | os.PathLike[str] | None = None) -> str:
    """Return the store's folder: the given one, else ALIGN_STORE (environment), else `artifacts`.

    Raises:
        StoreError: the given name is empty.
    """
    if given is None:
        given = os.environ.get(STORE_VARIABLE) or "artifacts"
    if not os.fspath(given):
        raise StoreError("store: expected a folder, got an empty name")
    return os.path.expanduser(given)


def existing_store(given: str | os.PathLike[str] | None = None) -> ArtifactStore:
    """Return the store in `store_folder(given)`.

    Raises:
        StoreError: there is no such folder.
    """
    store = ArtifactStore(store_folder(given))
    if not store.root.is_dir():
        raise StoreError(
            f"{store.root}: no artifacts here yet; run a pipeline, or say where with --store FOLDER"
            f" or {STORE_VARIABLE}"
        )
    return store


class ArtifactStore:
    """The artifacts below one folder. The folder is created when it is first needed."""

    def __init__(self, root: Path | str):
        self.root = Path(root).absolute()

    # -- objects -----------------------------------------------------------------------------------

    def object_path(self, stage: str, key: str) -> Path:
        return self.root.joinpath("objects", stage, key)

    def get(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact of a key, or None if there is none.

        The manifest and the sizes of all files are checked, but not the hashes of the files.

        Raises:
            StoreError: the artifact is damaged.
        """
        path = self.object_path(stage, key)
        if not os.path.isdir(path):
            return None
        manifest = read_manifest(path)
        if (manifest["stage"], manifest["key"]) != (stage, key):
            raise _corrupt(path, MANIFEST, "is another artifact's")
        folder = str(path)
        for name, file in manifest["files"].items():
            size = size_of_file(f"{folder}/{_safe(path, name)}")
            if size is None:
                raise _corrupt(path, name, "is missing")
            if size != file["size"]:
                raise _corrupt(path, name, f"has {size} bytes, its manifest says {file['size']}")
        artifact = Artifact(stage, key, manifest["kind"], path)
        artifact.__dict__["manifest"] = manifest  # fills the cached property: no second read
        return artifact

    def base_of(self, artifact: Artifact) -> Artifact | None:
        """Return the base of an adapter; None if the artifact is not an adapter.

        Raises:
            StoreError: the base is missing.
        """
        stage, key = base_name(artifact.path)
        if (stage, key) == (artifact.stage, artifact.key):
            return None
        base = self.get(stage, key)
        if base is None:
            names = self._names_of_key(key)
            raise _base_is_gone(
                artifact.ref,
                " ".join([f"{stage}@{key[:12]}", *(f"({name})" for name in names[:1])]),
            )
        return base

    def verify(self, *artifacts: Artifact) -> None:
        """Read every file of artifacts and of their adapters' bases once, and compare its sha256.

        Raises:
            StoreError: a file differs, or an adapter's base is missing. The message names the first
                such file.
        """
        bases = [self.base_of(artifact) for artifact in artifacts]
        for artifact in dict.fromkeys([*artifacts, *(base for base in bases if base is not None)]):
            self.verify_files(artifact)

    def verify_files(self, artifact: Artifact) -> None:
        """Read every file of an artifact, and compare its sha256. An adapter's base is not read.

        Raises:
            StoreError: a file differs, is missing or is not in the manifest.
        """
        expected = artifact.manifest["files"]
        found = {path.relative_to(artifact.path).as_posix() for path in _plain_files(artifact.path)}
        for name in sorted(found - {*expected, MANIFEST}):
            if not _is_of_system(name):
                raise _corrupt(artifact.path, name, "is not in the manifest")
        for name, file in expected.items():
            if _safe(artifact.path, name) not in found:
                raise _corrupt(artifact.path, name, "is missing")
            digest = sha256_file(artifact.path / name)
            if digest != file["sha256"]:
                raise _corrupt(
                    artifact.path,
                    name,
                    f"has sha256 {digest[:12]}, its manifest says {file['sha256'][:12]}",
                )

    @contextlib.contextmanager
    def claim(self, stage: str, key: str, waiting: str = "") -> Iterator[Path]:
        """Hold the lock on making `key`, and yield its work folder. Other processes wait for it.

        The lock ends with its process, however that ends. The work folder stays for the next
        process, unless the artifact was committed or the folder is empty.

        Args:
            stage: the stage.
            key: the key of its artifact.
            waiting: a line to print if another process holds the lock.
        """
        folder = self.root / "work" / stage / key
        with _locked(folder, waiting):
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):  # the folder is gone
                    if self.object_path(stage, key).is_dir() or os.listdir(folder) == ["lock"]:
                        self._remove_work(folder)

    def clear_work(self, stage: str, key: str) -> None:
        """Remove the work folder of a finished step.

        A process leaves one if it is killed right after its commit. If a process still holds the
        lock (its upload to W&B may take minutes), it removes the folder itself. This method does
        not wait for that.
        """
        folder = self.root / "work" / stage / key
        if folder.exists():
            with held_if_free(folder) as is_free:
                if is_free:
                    self._remove_work(folder)

    def _remove_work(self, folder: Path) -> None:
        """Remove a step's work folder whose lock is held, and empty folders above it."""
        with contextlib.suppress(OSError):  # not empty: the next process already uses it
            shutil.rmtree(folder)
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
            if os.listdir(self.root) == ["lock"]:
                (self.root / "lock").unlink()
            self.root.rmdir()

    def commit(self, stage: str, key: str, payload: Path, manifest: dict[str, Any]) -> Artifact:
        """Turn the folder `payload` into the artifact of `key`.

        Args:
            stage: the stage.
            key: the key.
            payload: the folder with the artifact's files; it is moved into the store.
            manifest: the manifest, which must have `kind`. `stage`, `key`, `files` and `seal` are
                added.

        Returns:
            The artifact.
        """
        for left in payload.glob(f"*{MANIFEST}*"):  # from a commit that did not reach its rename
            left.unlink()
        files = {}
        for path in _plain_files(payload):
            name = _safe(payload, path.relative_to(payload).as_posix())
            if _is_of_system(name):
                continue
            follow_umask(path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            files[name] = {"sha256": sha256_file(path), "size": path.stat().st_size}
        for folder in [p for p in payload.rglob("*") if p.is_dir()]:
            fsync_folder(folder)
        # Through JSON, so that the seal is over the values as they are read later.
        whole = json.loads(json.dumps({**manifest, "stage": stage, "key": key, "files": files}))
        write_json(payload / MANIFEST, {**whole, "seal": seal_of(whole)})  # fsyncs the folder, too
        target = self.object_path(stage, key)
        make_folder(target.parent)
        self._renew_versions(stage, key, payload)
        payload.rename(target)
        fsync_folder(target.parent)
        return Artifact(stage, key, manifest["kind"], target)

    def _renew_versions(self, stage: str, key: str, payload: Path) -> None:
        """Update existing versions of `key` to the digest and seal of the new artifact.

        The old artifact was removed. The new one differs from it, because logs contain times.
        """
        again = Artifact(stage, key, "", payload)
        for name, numbers in self.numbers().items():
            for number, record in self._versions_of_key(name, numbers, key):
                if isinstance(record, dict):
                    self._write_version(
                        name, number, {**record, "digest": again.digest, "seal": again.seal}
                    )

    # -- names -------------------------------------------------------------------------------------

    def publish(self, name: str, artifact: Artifact) -> int:
        """Give an artifact a version under `name`, unless it has one, and point `latest` at it.

        Args:
            name: PIPELINE/STEP.
            artifact: the artifact.

        Returns:
            The number of the version.

        Raises:
            StoreError: the artifact does not match the version that it has: it was changed after it
                was written.
        """
        folder = self._name_folder(name)
        with _locked(folder):
            numbers = self._numbers(name)
            number, known = next(self._versions_of_key(name, numbers, artifact.key), (None, None))
            if isinstance(known, StoreError):
                raise known
            if number is None or known is None:
                number = max(numbers, default=-1) + 1
                record = {"stage": artifact.stage, "key": artifact.key, "created": time.time()}
                self._write_version(
                    name, number, {**record, "digest": artifact.digest, "seal": artifact.seal}
                )
            else:
                require_fit(artifact, known, f"{name}:v{number}")
            if self.alias(name, "latest") != number:
                self.tag(name, number, "latest")
        return number

    def published(self, name: str, artifact: Artifact) -> int | None:
        """Return the artifact's version if `publish` would change nothing, else None.

        Raises:
            StoreError: the artifact does not match its version.
        """
        number = self.alias(name, "latest")
        if number is None or number not in self._numbers(name):
            return None
        record = self.version(name, number)
        if record["key"] != artifact.key:
            return None
        require_fit(artifact, record, f"{name}:v{number}")
        return number

    def _write_version(self, name: str, number: int, record: Mapping[str, Any]) -> None:
        plain = {field: record[field] for field in ("stage", "key", "digest", "seal", "created")}
        write_json(self._name_folder(name) / f"v{number}.json", with_check(plain, name, number))

    def versions(self, name: str) -> dict[int, dict[str, Any]]:
        """Return {number: {stage, key, digest, seal, created}}, oldest first."""
        return {number: self.version(name, number) for number in self._numbers(name)}

    def _numbers(self, name: str) -> list[int]:
        return _versions_in(self._name_folder(name))

    def _versions_of_key(
        self, name: str, numbers: list[int], key: str
    ) -> Iterator[tuple[int, dict[str, Any] | StoreError]]:
        """Yield (number, record) for each version of a key, with an error for a damaged record.

        A name may have thousands of versions. So only files that contain the key as text are parsed
        as JSON.
        """
        folder, wanted = self._name_folder(name), key.encode()
        for number in numbers:
            try:
                if wanted not in read_bytes(os.path.join(folder, f"v{number}.json")):
                    continue
                record = self.version(name, number)
            except StoreError as error:
                yield number, error
                continue
            if record["key"] == key:
                yield number, record

    def version(self, name: str, number: int) -> dict[str, Any]:
        """Return {stage, key, digest, seal, created} of a version.

        Raises:
            StoreError: it is missing or damaged, or it was changed after it was written.
        """
        path = os.path.join(self._name_folder(name), f"v{number}.json")
        record = read_json(path)
        if not isinstance(record, dict) or not _is_time(record.get("created")):
            raise _bad_name(path, "is damaged")
        if not all(_is_text(record.get(field)) for field in ("stage", "key", "digest")):
            raise _bad_name(path, "is damaged")
        if ("seal" in record or is_checked(record)) and not fits(record, name, number):
            raise _bad_name(path, "was changed after it was written")
        return record

    def tag(self, name: str, version: int, alias: str) -> None:
        """Point an alias at a version.

        Raises:
            StoreError: the alias is not allowed, or the version does not exist.
        """
        if not _NAME.fullmatch(alias) or re.fullmatch(r"v\d+", alias):
            raise StoreError(
                f"alias {alias!r}: expected small letters, digits, '.', '_' or '-', and not"
                " v<number>"
            )
        if version not in self._numbers(name):
            raise StoreError(f"{name}: has no version v{version}")
        folder = self._name_folder(name) / "aliases"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / alias, with_check({"version": version}, name, alias))

    def aliases(self, name: str) -> dict[str, int]:
        """Return {alias: number of its version}.

        Raises:
            StoreError: an alias is damaged.
        """
        found = {}
        for alias, number in self.each_alias(name):
            if isinstance(number, StoreError):
                raise number
            found[alias] = number
        return found

    def each_alias(self, name: str) -> Iterator[tuple[str, int | StoreError]]:
        """Yield (alias, number of its version) for a name, with an error for a damaged alias."""
        try:
            found = sorted(os.listdir(self._name_folder(name) / "aliases"))
        except (FileNotFoundError, NotADirectoryError):
            return
        for alias in found:
            try:
                number = self.alias(name, alias)
            except StoreError as error:
                yield alias, error
            else:
                if number is not None:
                    yield alias, number

    def alias(self, name: str, alias: str) -> int | None:
        """Return the number of an alias's version; None if there is no such alias.

        Raises:
            StoreError: the alias is damaged or was changed after it was written.
        """
        path = self._name_folder(name) / "aliases" / alias
        if not _NAME.fullmatch(alias) or not os.path.lexists(path):
            return None
        value = read_json(path)
        if type(value) is int:  # from earlier code, whose versions have no seal either
            record = self.version(name, value) if value in self._numbers(name) else {}
            if not is_checked(record):
                return value
        elif (
            isinstance(value, dict)
            and type(value.get("version")) is int
            and fits(value, name, alias)
        ):
            return int(value["version"])
        raise _bad_name(path, "is damaged or was changed after it was written")

    def names(self) -> list[str]:
        return list(self.numbers())

    def numbers(self) -> dict[str, list[int]]:
        """Return {name: numbers of its versions}, sorted by name. No version is read."""
        found = {}
        for pipeline in _folders_in(self.root / "names"):
            for step in _folders_in(pipeline.path):
                if numbers := _versions_in(step.path):
                    found[f"{pipeline.name}/{step.name}"] = numbers
        return dict(sorted(found.items()))

    def each_version(self) -> Iterator[tuple[str, int, dict[str, Any] | StoreError]]:
        """Yield (name, number, record) for every version, with an error for a damaged record."""
        for name, numbers in self.numbers().items():
            for number in numbers:
                try:
                    yield name, number, self.version(name, number)
                except StoreError as error:
                    yield name, number, error

    def find(self, ref: str, hint: Callable[[str], str] = import_hint) -> Artifact:
        """Return the artifact that a reference names.

        Args:
            ref: `PIPELINE/STEP`, `PIPELINE/STEP:v3`, `PIPELINE/STEP:alias` or `STAGE@KEY`. KEY may
                be the beginning of a key.
            hint: a function from a reference to the end of an error, with a suggestion.

        Raises:
            StoreError: there is no such artifact, or it is damaged.
        """
        if is_outside(ref) or is_path(ref) or "://" in ref:
            raise StoreError(f"{ref}: expected PIPELINE/STEP[:version] or STAGE@KEY{hint(ref)}")
        if "@" in ref:
            stage, _, prefix = ref.partition("@")
            keys = self._keys(stage, prefix)
            if len(keys) != 1:
                meant = "" if keys else hint(ref)
                raise StoreError(
                    f"{ref}: {len(keys)} artifacts of {self.root} have that key, expected"
                    f" one{meant}"
                )
            artifact = self.get(stage, keys[0])
        else:
            name, _, which = ref.partition(":")
            record = self._version(ref, name, which or "latest", hint)
            artifact = self.get(record["stage"], record["key"])
            if artifact is not None:
                require_fit(artifact, record, ref)
        if artifact is None:
            raise StoreError(
                f"{ref}: its files are gone from {self.root}; run the step that makes it"
            )
        return artifact

    def _keys(self, stage: str, prefix: str) -> list[str]:
        """Return the keys of a stage that begin with `prefix`."""
        try:
            keys = os.listdir(self.root / "objects" / stage) if prefix.isalnum() else []
        # `ValueError`: the name has a NUL character.
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []
        return [key for key in keys if key.startswith(prefix)]

    def _version(
        self, ref: str, name: str, which: str, hint: Callable[[str], str]
    ) -> dict[str, Any]:
        try:
            self._name_folder(name)
        except StoreError as error:
            raise StoreError(f"{error}{hint(ref)}") from None
        numbers = self._numbers(name)
        if not numbers:
            names = self.names()
            near = did_you_mean(name, names)
            meant = near or ("" if os.path.exists(ref) else made_by(name)) or hint(ref)
            known = "" if near else f"; names: {', '.join(names) or 'none yet'}"
            raise StoreError(f"{ref}: no artifact of that name in {self.root}{meant}{known}")
        number = int(which[1:]) if _VERSION.fullmatch(which) else self.alias(name, which)
        if number is None or number not in numbers:
            known = ", ".join(
                [f"v{n}" for n in numbers] + [alias for alias, _ in self.each_alias(name)]
            )
            raise StoreError(f"{ref}: no such version; {name} has {known}")
        return self.version(name, number)

    def _name_folder(self, name: str) -> Path:
        parts = name.split("/")
        if len(parts) != 2 or not all(_NAME.fullmatch(part) for part in parts):
            raise StoreError(
                f"{name!r}: expected PIPELINE/STEP in small letters, digits, '.', '_' or '-'"
            )
        return self.root.joinpath("names", *parts)

    def names_of(self, artifact: Artifact) -> list[str]:
        """Return every `PIPELINE/STEP:vN` of an artifact."""
        return self._names_of_key(artifact.key)

    def name_of(
        self, artifact: Artifact, given: Container[str] = (), pipeline: str | None = None
    ) -> str:
        """Return the `PIPELINE/STEP:vN` to show for an artifact; STAGE@KEY if it has no name.

        Args:
            artifact: the artifact.
            given: references without version that the user gave. A name among them is preferred.
            pipeline: a pipeline whose names are preferred to all others.
        """
        names = self.names_of(artifact) or [artifact.ref]
        own = [
            name for name in names if pipeline is not None and name.startswith(f"{pipeline}/")
        ] or names
        return next((name for name in own if name.partition(":")[0] in given), own[0])

    def _names_of_key(self, key: str) -> list[str]:
        return [
            f"{name}:v{number}"
            for name, numbers in self.numbers().items()
            for number, record in self._versions_of_key(name, numbers, key)
            if isinstance(record, dict)
        ]

    def work_folders(self) -> list[Path]:
        """Return the work folders of unfinished steps, except those that end during the call."""
        found, stages = [], []
        with contextlib.suppress(FileNotFoundError):
            stages = [entry.path for entry in os.scandir(self.root / "work")]
        for stage in stages:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found += [Path(entry.path) for entry in os.scandir(stage) if entry.is_dir()]
        return sorted(found)

    # -- the whole store ---------------------------------------------------------------------------

    def objects(self) -> Iterator[Artifact | StoreError]:
        """Yield every artifact, with an error for a damaged one."""
        for path in sorted(self.root.glob("objects/*/*")):
            if _is_of_system(path.name):
                continue
            try:
                artifact = self.get(path.parent.name, path.name)
            except StoreError as error:
                yield error
            else:
                yield artifact or StoreError(f"{path}: is not an artifact's folder; remove it")

    def lineage(self, artifact: Artifact) -> list[Artifact]:
        """Return the artifact and all artifacts it was made from, each once, nearest first.

        Raises:
            StoreError: an artifact that it was made from is missing or damaged.
        """
        order, seen, queue = [], set(), [artifact]
        while queue:
            current = queue.pop(0)
            if current.key in seen:
                continue
            seen.add(current.key)
            order.append(current)
            for entries in current.manifest["inputs"].values():
                for entry in entries:
                    parent = self.get(entry["stage"], entry["key"])
                    if parent is None:
                        raise StoreError(
                            f"{current.ref}: its input {entry['stage']}@{entry['key'][:12]} is gone"
                        )
                    queue.append(parent)
        return order

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Block removals while an artifact is looked up and its use is written down."""
        with _locked(self.root, shared=True):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Block everything that takes `in_use`, to remove unused artifacts."""
        with _locked(self.root):
            yield


def require_fit(artifact: Artifact, record: Mapping[str, Any], ref: str) -> None:
    """Raise `StoreError` if an artifact does not match the version that names it."""
    if (artifact.digest, artifact.seal) != (record["digest"], record.get("seal", "")):
        raise _corrupt(
            artifact.path, MANIFEST, f"does not fit {ref}: it was changed after it was written"
        )


def _folders_in(path: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return the subfolders whose names are allowed in an artifact's name; empty if no folder."""
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _versions_in(folder: str | os.PathLike[str]) -> list[int]:
    """Return the sorted numbers of the versions in a name's folder."""
    try:
        files = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = [file.removesuffix(".json") for file in files if file.endswith(".json")]
    return sorted(int(stem[1:]) for stem in stems if _VERSION.fullmatch(stem))


def _safe(folder: Path, name: str) -> str:
    """Return a manifest's file name, if it stays below its folder on every system.

    Raises:
        StoreError: it does not.
    """
    if _USUAL_FILE.fullmatch(name):
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        name.startswith("/")
        or ".." in parts
        or "\\" in name
        or "\0" in name
        or ":" in name
        or not parts
    ):
        raise _corrupt(folder, repr(name), "is not a safe file name")
    return name


def _is_of_system(name: str) -> bool:
    return _OF_SYSTEM.fullmatch(name.rpartition("/")[2]) is not None


def _plain_files(folder: Path) -> list[Path]:
    """Return all files below a folder.

    Raises:
        StoreError: there is a link, a pipe or the like, which could lead outside the folder.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _corrupt(
                folder, path.relative_to(folder).as_posix(), "is a link, or not a plain file"
            )
        if path.is_file():
            found.append(path)
    return found


def _bad_name(path: str | os.PathLike[str], what: str) -> StoreError:
    return StoreError(
        f"{os.fspath(path)}: {what}; remove it and give the command that makes the artifact again"
    )


def is_locked(folder: Path) -> bool:
    """Return whether some process holds `folder`/lock."""
    with held_if_free(folder) as is_free:
        return not is_free


@contextlib.contextmanager
def held_if_free(folder: Path) -> Iterator[bool]:
    """Hold `folder`/lock and yield True, or yield False if another process holds it.

    Without a lock file, yield True and hold nothing.
    """
    file = folder / "lock"
    try:
        opened = file.open("a" if os.access(file, os.W_OK) else "r")
    except (FileNotFoundError, NotADirectoryError):
        yield True
        return
    with opened as lock:
        try:
            _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _flock(lock: IO[Any], how: int) -> None:
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise StoreError(
            f"{lock.name}: this file system gives no lock (flock: {error.strerror}); put the store"
            " on one that does"
        ) from None


@contextlib.contextmanager
def _locked(folder: Path, waiting: str = "", shared: bool = False) -> Iterator[None]:
    """Hold `folder`/lock.

    A process that waited may get the lock of a folder that was removed in the meantime. Then it
    tries again.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            make_folder(folder)
            opened = (folder / "lock").open("w")
        except (FileNotFoundError, FileExistsError):  # the holder of the lock removed the folder
            for path in (folder, *folder.parents):
                # A file in the way, or a link to a disk that is not mounted: do not try again.
                if path.is_file() or (path.is_symlink() and not path.exists()):
                    raise FileExistsError(
                        errno.EEXIST, "is not a folder, or a link to nothing", str(path)
                    ) from None
            continue
        with opened as lock:
            try:
                _flock(lock, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    print(waiting, file=sys.stderr, flush=True)
                _flock(lock, how)
            try:
                same = os.fstat(lock.fileno()).st_ino == (folder / "lock").stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield
                return
