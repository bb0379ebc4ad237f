"""Save and load the state of a step in progress: exactly, atomically, and without pickle.

A state consists of nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
Tensors go to a safetensors file. The rest goes to JSON, with a reference in place of each tensor.
This format preserves integer keys and tuples. An optimizer's `state_dict` has both.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.store.artifacts import follow_umask, fsync_folder, make_folder, sha256_file, write_json

_MANIFEST, _TENSORS, _STATE = "manifest.json", "tensors.safetensors", "state.json"
_KEPT = 2  # the newest checkpoint, and the one before it in case the newest is damaged

Parameters = dict[str, torch.nn.Parameter]
Logs = dict[str, tuple[int, str]]  # path -> size in bytes, and the sha256 of the first `size` bytes


def save_checkpoint(folder: Path, step: int, state: Any, logs: Logs | None = None) -> None:
    """Save `state` as `folder`/step-<step>. Keep the checkpoint before it and remove older ones.

    All files are written to a temporary folder and fsynced, the manifest last. Then the folder is
    renamed. So a checkpoint under its final name is complete. Tensors on the CPU are written
    without a copy. If writing fails, for example on a full disk, the earlier checkpoints stay and
    the temporary folder is removed.

    Args:
        folder: the folder of the step's checkpoints.
        step: the number of the step.
        state: the state.
        logs: size and sha256 at this step of each file that grows, by its path relative to the
            parent of `folder`. If that part of a file changes later, the checkpoint counts as
            damaged.
    """
    make_folder(folder)
    temporary = folder / f".step-{step}.{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        tensors: dict[str, torch.Tensor] = {}
        skeleton = _strip(state, "", tensors)
        save_file(_apart(tensors), temporary / _TENSORS)
        follow_umask(temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(skeleton), encoding="utf-8")
        for name in (_TENSORS, _STATE):
            with (temporary / name).open("rb+") as file:
                os.fsync(file.fileno())
        files = {name: sha256_file(temporary / name) for name in (_TENSORS, _STATE)}
        write_json(temporary / _MANIFEST, {"files": files, "logs": logs or {}})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    place = folder / f"step-{step}"
    if place.exists():
        place.rename(folder / f".step-{step}.replaced")
    temporary.rename(place)
    fsync_folder(folder)
    kept = [folder / f"step-{each}" for each in _steps(folder)[:_KEPT]]
    for other in folder.iterdir():
        if other not in kept and other.name.lstrip(".").startswith("step-"):
            shutil.rmtree(other)


def load_checkpoint(folder: Path) -> tuple[int, Any] | None:
    """Return (step, state) of the newest checkpoint; None if there is none.

    Call `set_damaged_aside` first, because this function does not check the files.
    """
    for step in _steps(folder)[:1]:
        place = folder / f"step-{step}"
        skeleton = json.loads((place / _STATE).read_text(encoding="utf-8"))
        return step, _fill(skeleton, load_file(place / _TENSORS))
    return None


def set_damaged_aside(folder: Path) -> list[str]:
    """Rename damaged checkpoints that are newer than the newest intact one.

    They stay until the step is done, so that the user can examine them. Nothing reads them.

    Returns:
        A line about each.

    Raises:
        OSError: the system cannot read a checkpoint. It may not be damaged, so the step must not
            start again from the beginning.
    """
    lines = []
    for step in _steps(folder):
        place = folder / f"step-{step}"
        fault = _fault(place)
        if not fault:
            break
        aside = folder / f"damaged-step-{step}-{uuid.uuid4().hex[:8]}"
        place.rename(aside)
        lines.append(f"the checkpoint of {step} is damaged ({fault}) and set aside as {aside}")
    return lines


def _steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, the newest first."""
    found = [re.fullmatch(r"step-([0-9]{1,18})", path.name) for path in folder.glob("step-*")]
    return sorted((int(match[1]) for match in found if match), reverse=True)


@torch.no_grad()
def restore_parameters(parameters: Parameters, saved: dict[str, torch.Tensor]) -> None:
    """Copy the values of a checkpoint into the parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


def _fault(place: Path) -> str:
    """Return the fault of a checkpoint; "" if every file matches the manifest.

    Raises:
        OSError: the system cannot read a file for another reason than a bad disk block.
    """
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        for name in (_TENSORS, _STATE):
            if manifest["files"][name] != sha256_file(place / name):
                return f"{name} is not as it was written"
        for name, (size, digest) in manifest["logs"].items():
            if _sha256_of_beginning(place.parent.parent / name, size) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        # EIO: a bad block of a disk. The others: not a file.
        if error.errno not in (errno.EIO, errno.EISDIR, errno.ENOTDIR):
            raise
        return f"{Path(error.filename or place).name} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{_MANIFEST} is not as it was written"
    return ""


def _sha256_of_beginning(file: Path, size: int) -> str:
    """Return the sha256 of the first `size` bytes, or of all if the file is shorter."""
    digest = hashlib.sha256()
    with file.open("rb") as beginning:
        while size > 0 and (piece := beginning.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, contiguous, and sharing no memory, as safetensors requires."""
    apart, taken = {}, set()
    for name, tensor in tensors.items():
        host = tensor.cpu().contiguous()
        place = host.untyped_storage().data_ptr()
        if place in taken or host.untyped_storage().nbytes() != host.nbytes:
            host = host.clone()
        taken.add(host.untyped_storage().data_ptr())
        apart[name] = host
    return apart


def _strip(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        for key in value:
            if key is not None and not isinstance(key, bool | int | float | str):
                raise TypeError(
                    f"a checkpoint cannot hold a {type(key).__name__} as a key (at {path}/{key})"
                )
        return {
            "dict": [[key, _strip(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        }
    if isinstance(value, list | tuple):
        items = [_strip(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} (at {path})")


def _fill(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _fill(item, tensors) for key, item in content}
    items = [_fill(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
