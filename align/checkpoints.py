"""Save and load the state of a step in progress: exact, atomic, and without pickle.

A state is nested dicts, lists and tuples of tensors, numbers, strings, booleans and None. Tensors go to a safetensors
file, the rest to JSON with a reference where each tensor stood, so that integer keys and tuples come back as they were
(an optimizer's `state_dict` has both).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.artifacts import fsync_folder, sha256_file, write_json

_MANIFEST = "manifest.json"

Parameters = dict[str, torch.nn.Parameter]


def save_checkpoint(folder: Path, step: int, state: Any) -> None:
    """Save `state` as `folder`/step-<step>, and then remove older ones.

    Everything is written to a temporary folder beside its place and fsynced, the manifest last, then renamed: a
    checkpoint that has its name is whole. Tensors on the CPU are written from where they are, without a copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".step-{step}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _strip(state, "", tensors)
    save_file(_apart(tensors), temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps(skeleton), encoding="utf-8")
    for name in ("tensors.safetensors", "state.json"):
        with (temporary / name).open("rb+") as file:
            os.fsync(file.fileno())
    write_json(temporary / _MANIFEST, {p.name: sha256_file(p) for p in temporary.iterdir()})
    place = folder / f"step-{step}"
    if place.exists():
        place.rename(folder / f".step-{step}.replaced")
    temporary.rename(place)
    fsync_folder(folder)
    for other in folder.iterdir():
        if other != place and other.name.lstrip(".").startswith("step-"):
            shutil.rmtree(other)


def load_checkpoint(folder: Path) -> tuple[int, Any] | None:
    """(step, state) of the newest checkpoint that is whole, or None."""
    steps = sorted((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True)
    for step in steps:
        place = folder / f"step-{step}"
        if _is_whole(place):
            skeleton = json.loads((place / "state.json").read_text(encoding="utf-8"))
            return step, _fill(skeleton, load_file(place / "tensors.safetensors"))
    return None


@torch.no_grad()
def restore_parameters(parameters: Parameters, saved: dict[str, torch.Tensor]) -> None:
    """Give parameters the values that a checkpoint has for their names."""
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


def _is_whole(place: Path) -> bool:
    """True when the manifest is there and every file is as it says."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        return all(sha256_file(place / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous and in memory of their own, which is what safetensors takes."""
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
                raise TypeError(f"a checkpoint cannot hold a {type(key).__name__} as a key (at {path}/{key})")
        return {"dict": [[key, _strip(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
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
