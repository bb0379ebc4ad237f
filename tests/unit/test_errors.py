"""Faults of the machine are one line with exit code 3; a fault of align is never called one, nor the other way."""

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import mostly_slow

import align
from align.cli.main import main
from align.errors import ConfigError, StoreError, naming_the_world

SYSTEMS = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOLCK EMFILE ENFILE ENOTDIR EISDIR ELOOP ESTALE ENODEV"


@contextlib.contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def _full_disk(here: Path) -> None:
    Path("/dev/full").write_text("x")


def _long_file(here: Path) -> None:
    with limited(resource.RLIMIT_FSIZE, 1000):
        (here / "long").write_bytes(b"x" * 5000)


def _long_weights(here: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with limited(resource.RLIMIT_FSIZE, 1000):
        save_file({"weight": torch.zeros(5000)}, here / "weights.safetensors")


def _long_table(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with limited(resource.RLIMIT_FSIZE, 1000):
        pq.write_table(pa.table({"number": list(range(50_000))}), here / "rows.parquet")


def _open_files(here: Path) -> None:
    (here / "one").touch()
    with limited(resource.RLIMIT_NOFILE, 4):
        (here / "one").open()


def _folder_for_file(here: Path) -> None:
    here.read_text()


def _long_name(here: Path) -> None:
    (here / ("x" * 300)).read_text()


def _gone(here: Path) -> None:
    (here / "gone").read_text()


def _wrapped(here: Path) -> None:
    try:
        _gone(here)
    except OSError as error:
        raise ValueError("a library's own words") from error


WORLD: dict[str, tuple[Callable[[Path], None], str]] = {
    "full disk": (_full_disk, "THE STORE: No space left on device; free some space"),
    "long file": (_long_file, "THE STORE: File too large; the limit on the size of a file"),
    "long weights": (_long_weights, "THE STORE: File too large; the limit on the size of a file"),
    "long table": (_long_table, "File too large; the limit on the size of a file"),
    "open files": (_open_files, "one: Too many open files; the limit on open files"),
    "folder for file": (_folder_for_file, "Is a directory"),
    "gone": (_gone, "gone: No such file or directory"),
    "wrapped": (_wrapped, "gone: No such file or directory"),
}


@pytest.mark.parametrize("case", WORLD)
def test_what_the_machine_refuses_is_one_line(case: str, tmp_path: Path) -> None:
    act, said = WORLD[case]
    with pytest.raises(StoreError) as caught, naming_the_world("THE STORE"):
        act(tmp_path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_name_that_no_file_can_have_is_the_one_s_who_wrote_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^.*/x+: .* longer than the file system takes"), naming_the_world():
        _long_name(tmp_path)


@pytest.mark.parametrize("name", SYSTEMS.split())
def test_every_error_of_the_system_has_its_file_and_reason(name: str) -> None:
    number = getattr(errno, name)
    with pytest.raises(StoreError, match=f"^/some/file: {os.strerror(number)}(; .+)?$"), naming_the_world():
        raise OSError(number, os.strerror(number), "/some/file")


def _numpy() -> None:
    import numpy as np

    np.zeros(2**58, dtype=np.uint8)


def _torch() -> None:
    import torch

    torch.empty(2**50)


def _torch_on_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize("act", [_numpy, _torch, _torch_on_a_gpu, lambda: bytearray(2**61)])
def test_too_little_memory_says_what_to_lower(act: Callable[[], None]) -> None:
    with pytest.raises(StoreError) as caught, naming_the_world():
        act()
    (line,) = str(caught.value).splitlines()
    assert line.startswith("out of memory: ")
    assert all(knob in line for knob in ("micro_batch_tokens", "batch size", "activation_checkpointing"))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError("a library's own words, without a number"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
        OSError(errno.EINVAL, os.strerror(errno.EINVAL)),
        FileNotFoundError(errno.ENOENT, "No such file or directory", str(Path(align.__file__).parent / "gone.yaml")),
        BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
        ConfigError("knob: wrong"),
    ],
    ids=repr,
)
def test_a_defect_and_an_error_of_ours_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_the_world():
        raise error
    assert caught.value is error


VERBS = {
    "report": ["report", "p/s"],
    "sample": ["sample", "p/s", "x"],
    "chat": ["chat", "p/s"],
    "sweep": ["sweep", "ls"],
    "artifacts": ["artifacts", "ls"],
    "plan": ["plan", "pipeline=quickstart"],
    "run": ["run", "pipeline=quickstart"],
    "stage": ["data", "source=card:smallworld"],
    "model": ["model", "model=gpt2"],
    "show": ["data", "source=card:smallworld", "--show", "1"],
}
DOORS = {  # what each verb asks first of the code behind it
    **dict.fromkeys(("report", "sample", "chat"), "align.store.artifacts.ArtifactStore.find"),
    "artifacts": "align.store.artifacts.ArtifactStore.numbers",
    "sweep": "align.cli.sweep.sweeps",
    "plan": "align.pipeline.plan.plan",
    "run": "align.pipeline.plan.plan",
    "stage": "align.pipeline.plan.plan",
    "model": "align.cli.model.show",
    "show": "align.cli.show.show_source",
}


@pytest.mark.parametrize(
    ("verb", "debug"),
    mostly_slow(
        [(verb, debug) for verb in VERBS for debug in (False, True)], [("report", True), *((v, False) for v in VERBS)]
    ),
)
def test_no_verb_ends_in_a_bare_traceback(
    verb: str, debug: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A defect is one line that says so and how to see more; a full disk is the machine's at every door."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts" / "names").mkdir(parents=True)
    for error, code, said in (
        (KeyError("lost"), 1, "error: KeyError: 'lost' (a bug in align, not in your input; debug=true shows where)"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 3, "error: f: No space left on device; free some"),
    ):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(DOORS[verb], fails)
        assert main([*VERBS[verb], *(["debug=true"] if debug else [])]) == code
        *before, line = capsys.readouterr().err.splitlines()
        assert line.startswith(said)
        assert any("Traceback" in other for other in before) == debug
        assert debug or not before
