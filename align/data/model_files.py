"""Check the files of a published model before any library opens them.

The files come from someone else. Libraries follow a link or a name out of the folder, unpickle
weights, wait for a pipe, and read a device until memory is full. So these checks look first at what
each entry is, at the small JSON files, at the headers of the weights, and at the index of weight
files. Nothing here imports torch, because `align plan` runs these checks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from align.store.artifacts import ADAPTER, ADAPTER_WEIGHTS
from align.store.file_kinds import unusual_kind

_INDEX = ".safetensors.index.json"
WEIGHTS, INDEX = "model.safetensors", f"model{_INDEX}"
_WEIGHTS = (".safetensors", ".gguf")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MAX_SMALL = 64 * 2**20  # bytes; an index of many thousand weights has a few MiB
_VOCABULARIES = ("tokenizer.json", "vocab.json", "encoder.json", "encoder_bpe_40000.json")
_MAX_TOKENIZER = 2**30  # bytes; the largest published ones have about 35 MiB
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
_MAX_NUMBER = 2**53  # no size and no id is larger
_NO_LIMIT = int(1e30)  # the exception: transformers writes this for a length without a limit
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16},
    **{"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}
# The names that configs use for the number of layers. A library builds one module per layer before
# it looks at the weights.
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_decoder_layers",
    "encoder_layers",
)

Shapes = dict[str, list[int]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_ids(value: Any) -> bool:
    # Configs use -1 for "no token".
    return isinstance(value, list) and all(
        type(each) is int and -1 <= each < 2**31 for each in value
    )


def is_weights_name(value: Any) -> bool:
    """True for the name, without folders, of a safetensors file or of an index of such files."""
    return (
        isinstance(value, str)
        and Path(value).name == value
        and value.endswith((".safetensors", _INDEX))
    )


WEIGHTS_NAME = "the name of a .safetensors file in the same folder"
_TEXT = (lambda value: isinstance(value, str), "text")
_TEXTS = (_are_texts, "a list of text")
_NUMBER = (_is_number, "a finite number")
_ID = (lambda value: _are_ids([value]), "a token id")
_FLAG = (lambda value: isinstance(value, bool), "true or false")
_ONE_OR_MORE_TEXTS = (
    lambda value: isinstance(value, str) or _are_texts(value),
    "text or a list of text",
)
_ONE_OR_MORE_IDS = (
    lambda value: _are_ids(value if isinstance(value, list) else [value]),
    "a token id or a list of them",
)

# The small JSON files of a model, and the fields of them that align reads; null is always allowed.
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "config.json": {
        "model_type": _TEXT,
        "architectures": _TEXTS,
        "is_encoder_decoder": _FLAG,
        "eos_token_id": _ONE_OR_MORE_IDS,
        "transformers_weights": (is_weights_name, WEIGHTS_NAME),
        "align_attention": _TEXT,
        "align_reward_shift": _NUMBER,
    },
    "generation_config.json": {
        "eos_token_id": _ONE_OR_MORE_IDS,
        "stop_strings": _ONE_OR_MORE_TEXTS,
    },
    "tokenizer_config.json": {
        "model_max_length": _NUMBER,
        "chat_template": (
            lambda value: (
                isinstance(value, str)
                or (isinstance(value, list) and all(map(_is_named_template, value)))
            ),
            "text, or a list of objects with name and template",
        ),
        "align_stop_tokens": _TEXTS,
        "align_stop_strings": _TEXTS,
        "align_whole_dialogues": _FLAG,
        "align_unread_end": _ID,
    },
    "special_tokens_map.json": {},
    "added_tokens.json": {},
    ADAPTER: {"peft_type": _TEXT, "base_model_name_or_path": _TEXT, "revision": _TEXT},
}


def _is_named_template(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("name", "template")
    )


def check_files(folder: Path, files: Sequence[Path]) -> None:
    """Refuse files of a published model or tokenizer that no library should open; skip weights.

    Args:
        folder: the folder of the files.
        files: the files of the source. Of the folder's other files, libraries open only those
            whose names they know.

    Raises:
        ValueError: one line about the first problem: `config.json: expected an ordinary file, got
            a pipe`.
    """
    for path in files:
        _check_kind(folder, path)
    for path in files:
        if (most := _most_bytes(path)) is not None and (size := path.stat().st_size) > most:
            raise ValueError(f"{path.name}: expected at most {most:,} bytes, got {size:,}")
    for path in files:
        if path.name in _FIELDS:
            read_fields(path)


def check_model(folder: Path, files: Sequence[Path]) -> None:
    """Refuse files as `check_files` does, and also wrong weights and configs of a model.

    Raises:
        ValueError: one line about the first problem.
    """
    check_files(folder, files)
    named = {path.name: path for path in files}
    shapes: Shapes = {}
    for path in weight_files(files):
        shapes |= check_weights(path)
    for path in files:
        if path.suffix == ".gguf":
            _check_gguf(path)
    if "config.json" in named:
        _check_config(named["config.json"], shapes)
    if ADAPTER in named:
        if ADAPTER_WEIGHTS in named:
            _check_adapter(named[ADAPTER], check_weights(named[ADAPTER_WEIGHTS]))
    elif "config.json" in named and not shapes:
        _refuse_other_weights(named)


def weight_files(files: Sequence[Path]) -> list[Path]:
    """Return the files that transformers reads the weights from; none without safetensors.

    The folder may hold other weight files that nothing opens: the same weights for another library,
    or Git LFS pointers to files that were not fetched.

    Raises:
        ValueError: the config or the index names a file that is wrong or missing.
    """
    named = {path.name: path for path in files}
    chosen = (
        read_fields(named["config.json"]).get("transformers_weights")
        if "config.json" in named
        else None
    )
    if chosen is not None and chosen not in named:
        raise ValueError(
            f"config.json: transformers_weights: {chosen} is not in the folder; fetch it too"
        )
    name = chosen or next((name for name in (WEIGHTS, INDEX) if name in named), None)
    if name is None:
        return []
    return [named[name]] if name.endswith(".safetensors") else _indexed(named[name], named)


def _most_bytes(path: Path) -> int | None:
    """Return the largest allowed size of a file that libraries read whole.

    None for other files: a folder may also hold someone's data.
    """
    if path.name in _VOCABULARIES:
        return _MAX_TOKENIZER
    is_read = (
        path.name in _FIELDS
        or path.name.endswith((_INDEX, ".jinja"))
        or path.name == "params_shapes.json"
    )
    return _MAX_SMALL if is_read else None


def _check_kind(folder: Path, path: Path) -> None:
    """Refuse what is not a file, and a link out of the folder: the artifact would hold a copy.

    Weights may be links to anywhere, because people keep them on a larger disk and only tensors are
    read from them. Links into the Hub cache's own blobs are allowed.
    """
    if (kind := unusual_kind(path)) is not None:
        raise ValueError(f"{path.name}: expected an ordinary file, got {kind}")
    if not path.exists():
        raise ValueError(f"{path.name}: a broken symbolic link, to {os.readlink(path)}")
    root = folder.resolve()
    inside = [
        root,
        *(place.parent / "blobs" for place in root.parents if place.name == "snapshots"),
    ]
    if (
        path.is_symlink()
        and path.suffix not in _WEIGHTS
        and not any(path.resolve().is_relative_to(place) for place in inside)
    ):
        raise ValueError(
            f"{path.name}: expected a file, got a link out of the folder, to {os.readlink(path)};"
            " put the file itself there if it belongs to the model"
        )


def read_fields(path: Path) -> dict[str, Any]:
    """Read a small JSON file of a model and check the types of the fields that align reads.

    Raises:
        ValueError: the file does not hold an object, or a field is wrong.
    """
    read = read_object(path)
    for field, (is_right, what) in _FIELDS[path.name].items():
        value = read.get(field)
        if value is not None and not is_right(value):
            raise ValueError(f"{path.name}: {field}: expected {what}, got {_shown(value)}")
    return read


def read_object(path: Path) -> dict[str, Any]:
    """Read a small JSON file that holds one object.

    Raises:
        ValueError: the file does not hold a JSON object, or a number in it is NaN or
            has more digits than Python converts.
    """
    try:
        read = json.loads(path.read_bytes(), parse_constant=_constant)
    except RecursionError:
        raise ValueError(f"{path.name}: expected fewer lists and objects in each other") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: expected JSON ({error})") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {_kind(read)}")
    return read


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("a number is NaN")
    return float(name)


def _check_config(path: Path, shapes: Shapes) -> None:
    config = read_object(path)
    for where, value in _leaves(config, ""):
        if isinstance(value, int) and abs(value) > _MAX_NUMBER and value != _NO_LIMIT:
            raise ValueError(
                f"{path.name}: {where}: expected a number of at most {_MAX_NUMBER:,}, got a"
                " larger one"
            )
    for where, value in _leaves(config, ""):
        is_count = where.rpartition(".")[2] in _LAYERS and isinstance(value, int)
        if is_count and shapes and value > len(shapes):
            raise ValueError(
                f"{path.name}: {where}: {value:,} layers, and its weights hold {len(shapes):,}"
                " tensors"
            )


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield the values in lists and objects with places: `rope_parameters.rope_theta`."""
    waiting = [(where, value)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [
                (f"{where}.{name}" if where else str(name), each) for name, each in value.items()
            ]
        elif isinstance(value, list):
            waiting += [(f"{where}[{i}]", each) for i, each in enumerate(value)]
        else:
            yield where, value


def _check_adapter(path: Path, shapes: Shapes) -> None:
    """Refuse ranks that no weight has: a library makes matrices of this rank before it checks."""
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        return  # other adapters have no rank, and `resolve_base` refuses them
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    ranks = {"r": config.get("r")}
    if isinstance(config.get("rank_pattern"), dict):
        ranks |= {f"rank_pattern.{name}": rank for name, rank in config["rank_pattern"].items()}
    for where, rank in ranks.items():
        if type(rank) is not int or not 0 < rank <= largest:
            raise ValueError(
                f"{path.name}: {where}: expected a whole number from 1 to {largest:,}, the largest"
                f" size among its weights, got {_shown(rank)}"
            )


def _refuse_other_weights(files: Mapping[str, Path]) -> None:
    """Raise `ValueError` with what a folder holds instead of safetensors."""
    pickles = [name for name in files if name.endswith(_PICKLES) and name != "training_args.bin"]
    if pickles:
        raise ValueError(
            f"its weights are pickles ({pickles[0]}), which can run code when they are opened, and"
            " align opens none; expected model.safetensors; take the safetensors that the model is"
            " published with, or convert it where you trust it (transformers: from_pretrained,"
            " then save_pretrained)"
        )
    gguf = next((name for name in files if name.endswith(".gguf")), None)
    advice = f"; its GGUF file can be taken alone: name it, as path:FOLDER/{gguf}" if gguf else ""
    raise ValueError(f"it holds no weights (model.safetensors){advice}")


# -- weights ---------------------------------------------------------------------------------------


def check_weights(path: Path) -> Shapes:
    """Check the header of a safetensors file against the file; return the shape of each weight.

    Raises:
        ValueError: one line about the first problem.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        if begin.startswith((b"version ", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK\x03\x04")):
            what = (
                "a pointer of Git LFS; fetch the file (git lfs pull)"
                if begin[:1] == b"v"
                else "a pickle"
            )
            raise ValueError(f"{path.name}: expected safetensors, got {what}")
        if len(begin) < 8:
            raise ValueError(
                f"{path.name}: expected safetensors, got a file of {size} bytes; fetch it again"
            )
        (length,) = struct.unpack("<Q", begin)
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise _damaged(
                path,
                f"its first 8 bytes say a header of {length:,} bytes, and the file has {size:,}",
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is {_kind(header)}, not an object")
    weights = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if not weights:
        raise ValueError(f"{path.name}: it holds no weights")
    spans = [(*_span(path, name, entry), name) for name, entry in weights.items()]
    end, before = 0, ""
    for start, stop, name in sorted(spans):
        if start != end:
            told = (
                f"{name!r} overlaps {before!r}"
                if start < end
                else f"no weight has the bytes before {name!r}"
            )
            raise _damaged(path, told)
        end, before = stop, name
    if end != size - 8 - length:
        raise _damaged(
            path,
            f"its weights have {end:,} bytes by its header, and {size - 8 - length:,} are there",
        )
    return {name: entry["shape"] for name, entry in weights.items()}


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return where the bytes of a weight begin and end."""
    if not isinstance(entry, dict):
        raise _damaged(path, f"{name!r}: expected an object, got {_kind(entry)}")
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise _damaged(path, f"{name!r}: shape: expected a list of sizes, got {_shown(shape)}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and n >= 0 for n in offsets)
    ):
        raise _damaged(
            path, f"{name!r}: data_offsets: expected two places in the file, got {_shown(offsets)}"
        )
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(
            path, f"{name!r}: dtype: expected one of {', '.join(_BITS)}, got {_shown(dtype)}"
        )
    start, stop = offsets
    needed = -(-math.prod(shape) * _BITS[dtype] // 8)
    if stop - start != needed:
        raise _damaged(
            path,
            f"{name!r}: {needed:,} bytes by its shape and dtype, {stop - start:,} by its"
            " data_offsets",
        )
    return start, stop


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path.name}: a file of weights is cut or damaged ({what}); fetch it again")


def _indexed(path: Path, files: Mapping[str, Path]) -> list[Path]:
    """Return the files that an index names; refuse all but safetensors files of its own folder."""
    parts = read_object(path).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise ValueError(
            f"{path.name}: weight_map: expected an object of weights and their files, got"
            f" {_kind(parts)}"
        )
    for weight, part in parts.items():
        if (
            not isinstance(part, str)
            or not part.endswith(".safetensors")
            or Path(part).name != part
        ):
            raise ValueError(
                f"{path.name}: weight_map.{weight}: expected the name of a .safetensors file in the"
                f" same folder, got {_shown(part)}"
            )
        if part not in files:
            raise ValueError(
                f"{path.name}: weight_map.{weight}: {part} is not in the folder; fetch it too"
            )
    return [files[part] for part in dict.fromkeys(parts.values())]


# -- GGUF ------------------------------------------------------------------------------------------

_GGUF_TEXT, _GGUF_LIST = 8, 9
# value type -> bytes of one value, for the types other than text and list
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _check_gguf(path: Path) -> None:
    """Refuse a GGUF file with more layers than tensors: a library builds all layers first.

    Other problems are left to the library that reads the file.
    """
    with path.open("rb") as file, contextlib.suppress(struct.error, RecursionError):
        magic, _, tensors, values = struct.unpack("<4sIQQ", file.read(24))
        for _ in range(values if magic == b"GGUF" else 0):
            name = file.read(min(_unsigned(file, 8), _MAX_SMALL))
            kind = _unsigned(file, 4)
            if name.endswith(b"block_count") and (size := _GGUF_SIZES.get(kind)):
                layers = _unsigned(file, size)
                if layers > tensors:
                    raise ValueError(
                        f"{path.name}: {layers:,} layers, and it holds {tensors:,} tensors"
                    )
            else:
                _skip(file, kind)


def _unsigned(file: BinaryIO, size: int) -> int:
    raw = file.read(size)
    if len(raw) < size:
        raise struct.error
    return int.from_bytes(raw, "little")


def _skip(file: BinaryIO, kind: int, count: int = 1) -> None:
    """Skip values of a GGUF file; raise `struct.error` if the file ends or a size is invalid."""
    if kind == _GGUF_LIST:
        for _ in range(count):
            _skip(file, _unsigned(file, 4), _unsigned(file, 8))
    elif kind == _GGUF_TEXT:
        for _ in range(count):
            _skip(file, 0, _unsigned(file, 8))
    elif kind not in _GGUF_SIZES or (size := count * _GGUF_SIZES[kind]) >= 2**62:
        raise struct.error
    else:
        file.seek(size, os.SEEK_CUR)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a truth value",
        type(None): "nothing",
    }
    return "a number" if type(value) in (int, float) else names[type(value)]


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)[:60]
