"""Folders of models as nobody should publish them: each case spoils one thing of a good folder.

A case is a name and a function that changes a copy of a good folder. `REFUSED` must be refused; `EITHER` may be read
or refused, for what they hold is odd and harms nothing. None may run code, reach outside the folder, or end otherwise.
`LEGAL` is what published models hold: it must be read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.cli.main import main

Spoil = Callable[[Path], None]
IMPORT = ["import_model", "source=path:model", "store=artifacts", "tracker=none"]
CANARY = "canary"  # a file beside the folder; code that came with a model would write it

REFUSED: dict[str, Spoil] = {}
EITHER: dict[str, Spoil] = {}
LEGAL: dict[str, Spoil] = {}


class _Payload:
    """What a pickle runs when somebody loads it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _edit(name: str, **changes: Any) -> Spoil:
    """Set fields of a JSON file."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def _write(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def _only_pickle(name: str, content: Callable[[Path], Any]) -> Spoil:
    """The weights as a pickle, and no safetensors."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(content(folder)))

    return spoil


def _real_pickle(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()

    return spoil


def _header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The header of the weights, changed; the data stays."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = change(json.loads(raw[8 : 8 + length]))
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return spoil


def _first(**changes: Any) -> Spoil:
    """Fields of the first weight in the header of the weights."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        name = next(name for name in header if name != "__metadata__")
        return {**header, name: {**header[name], **changes}}

    return _header(change)


def _offsets(change: Callable[[list[int], int], list[int]]) -> Spoil:
    def spoil(folder: Path) -> None:
        size = (folder / "model.safetensors").stat().st_size

        def edit(header: dict[str, Any]) -> dict[str, Any]:
            name = next(name for name in header if name != "__metadata__")
            return {**header, name: {**header[name], "data_offsets": change(header[name]["data_offsets"], size)}}

        _header(edit)(folder)

    return spoil


def _length(length: int) -> Spoil:
    """The number at the beginning of the weights, which says how long their header is."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return spoil


def _cut(name: str, share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * share)])

    return spoil


def _sharded(index: Callable[[dict[str, str]], Any], link: str = "") -> Spoil:
    """The weights in two files, and an index of them that `index` makes of the right weight map."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(weights)
        parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
        for part, held in parts.items():
            save_file({name: weights[name] for name in held}, folder / part, {"format": "pt"})
        made = index({name: part for part, held in parts.items() for name in held})
        text = made if isinstance(made, str) else json.dumps(made)
        (folder / "model.safetensors.index.json").write_text(text)
        if link:
            part = folder / "model-00002-of-00002.safetensors"
            part.rename(folder.parent / "elsewhere.safetensors")
            (folder / link).symlink_to(folder.parent / "elsewhere.safetensors")

    return spoil


def _map(change: Callable[[dict[str, str]], Any]) -> Spoil:
    return _sharded(lambda right: {"metadata": {"total_size": 1}, "weight_map": change(right)})


def _linked(name: str) -> Spoil:
    """A file of the folder is a link to one outside it."""

    def spoil(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return spoil


def _code(folder: Path) -> None:
    """Code that would come with the model."""
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py"):
        (folder / name).write_text(f"open({str(folder.parent / CANARY)!r}, 'w').close()\nclass X: pass\n")


def _with_code(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        _code(folder)
        _edit(name, **changes)(folder)

    return spoil


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return spoil


def _without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def _template(text: str) -> Spoil:
    return _write("chat_template.jinja", text)


_NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

# -- weights ---------------------------------------------------------------------------------------------------------

REFUSED |= {
    "pickle that runs code": _only_pickle("pytorch_model.bin", lambda folder: _Payload(folder.parent / CANARY)),
    "pickle of weights": _real_pickle("pytorch_model.bin"),
    "pickle .pt": _real_pickle("model.pt"),
    "pickle named safetensors": _only_pickle("model.safetensors", lambda folder: _Payload(folder.parent / CANARY)),
    "header past the file": _length(2**40),
    "header of 2**63": _length(2**63),
    "header of all bits": _length(2**64 - 1),
    "header of no bytes": _length(0),
    "header one byte short": _length(7),
    "weights of no bytes": _write("model.safetensors", b""),
    "weights of seven bytes": _write("model.safetensors", b"\0" * 7),
    "weights are text": _write("model.safetensors", "<html>404</html>" * 100),
    "weights are a pointer of git lfs": _write(
        "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "header is no JSON": _header(lambda header: b"{not json" + b" " * 100),
    "header is a list": _header(lambda header: [1, 2]),
    "header is a number": _header(lambda header: 7),
    "header of bytes that are no text": _header(lambda header: b"\xff" * 50),
    "header nested 100,000 deep": _header(lambda header: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header of an empty object": _header(lambda header: {}),
    "entry is a list": _header(lambda header: {**header, "model.norm.weight": [1]}),
    "offsets negative": _offsets(lambda old, size: [-8, old[1]]),
    "offsets past the file": _offsets(lambda old, size: [old[0], size * 10]),
    "offsets of 2**70": _offsets(lambda old, size: [2**70, 2**70 + 4]),
    "offsets reversed": _offsets(lambda old, size: old[::-1]),
    "offsets overlap": _offsets(lambda old, size: [old[0] + 4, old[1] + 4]),
    "offsets are text": _offsets(lambda old, size: ["0", "4"]),  # type: ignore[list-item]
    "offsets of one number": _offsets(lambda old, size: [0]),
    "dtype unknown": _first(dtype="F1024"),
    "dtype is a number": _first(dtype=3),
    "shape negative": _first(shape=[-1, 32]),
    "shape huge": _first(shape=[2**40, 2**40]),
    "shape is text": _first(shape="32"),
    "weights cut in half": _cut("model.safetensors", 0.5),
    "weights lack their last bytes": _cut("model.safetensors", 0.999),
    "no weights": _without("model.safetensors"),
}

# -- the index of several files ----------------------------------------------------------------------------------

REFUSED |= {
    "index names a file outside": _map(lambda right: dict.fromkeys(right, "../elsewhere.safetensors")),
    "index names an absolute path": _map(lambda right: dict.fromkeys(right, "/etc/passwd")),
    "index names a device": _map(lambda right: dict.fromkeys(right, "/dev/zero")),
    "index names a file that is not there": _map(lambda right: dict.fromkeys(right, "model-00009.safetensors")),
    "index names a pickle": _map(lambda right: dict.fromkeys(right, "pytorch_model-00001.bin")),
    "index maps to numbers": _map(lambda right: dict.fromkeys(right, 7)),
    "index maps to null": _map(dict.fromkeys),
    "weight map is a list": _map(lambda right: [*right]),
    "weight map is text": _map(lambda right: "model.safetensors"),
    "weight map is null": _map(lambda right: None),
    "weight map is empty": _map(lambda right: {}),
    "index without a weight map": _sharded(lambda right: {"metadata": {}}),
    "index is a list": _sharded(lambda right: [1]),
    "index is no JSON": _sharded(lambda right: "{"),
    "index is empty": _sharded(lambda right: ""),
}

REFUSED |= {
    f"weights by the config's choice: {name}": _edit("config.json", transformers_weights=name)
    for name in ("adapter_model.bin", "sub/model.safetensors.index.json", "other.safetensors", 7)
}

# A link of the user's own, to a larger disk.
EITHER["a file of weights is a link out of the folder"] = _sharded(
    lambda right: {"metadata": {}, "weight_map": right}, "model-00002-of-00002.safetensors"
)
EITHER |= {"index leaves a weight out": _map(lambda right: dict(list(right.items())[1:]))}

# -- config.json -----------------------------------------------------------------------------------------------------

REFUSED |= {
    **{
        f"config is {what}": _write("config.json", text)
        for what, text in {
            "empty": "",
            "a list": "[]",
            "a number": "7",
            "null": "null",
            "text": '"llama"',
            "cut": '{"model_type": "llama", ',
            "no UTF-8": b'{"model_type": "\xff"}',
            "an empty object": "{}",
            "nested 100,000 deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        }.items()
    },
    **{
        f"{field} is {value!r}"[:60]: _edit("config.json", **{field: value})
        for field, value in [
            ("model_type", ["llama"]),
            ("model_type", {"a": 1}),
            ("model_type", 7),
            ("model_type", "no_such_model"),
            ("model_type", "../llama"),
            ("architectures", "LlamaForCausalLM"),
            ("architectures", [7]),
            ("architectures", {"a": 1}),
            ("hidden_size", float("nan")),
            ("hidden_size", 10**400),
            ("hidden_size", 2**62),
            ("hidden_size", -32),
            ("hidden_size", 0),
            ("hidden_size", "32"),
            ("hidden_size", [32]),
            ("hidden_size", None),
            ("vocab_size", 10**12),
            ("vocab_size", -1),
            ("vocab_size", "many"),
            ("num_hidden_layers", 10**9),
            ("num_hidden_layers", 3),
            ("num_hidden_layers", -1),
            ("num_attention_heads", 0),
            ("num_attention_heads", 3),
            ("num_key_value_heads", 10**9),
            ("head_dim", 0),
            ("head_dim", 2**40),
            ("hidden_act", "no_such_function"),
            ("hidden_act", 3),
            ("rope_parameters", "default"),
            ("rope_parameters", {"rope_type": "no_such_rope"}),
            ("rms_norm_eps", float("nan")),
            ("dtype", "float9"),
            ("quantization_config", {"quant_method": "gptq", "bits": 4}),
            ("quantization_config", "gptq"),
        ]
    },
}
EITHER |= {
    f"{field} is {value!r}"[:60]: _edit("config.json", **{field: value})
    for field, value in [
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -5),
        ("max_position_embeddings", "long"),
        ("max_position_embeddings", 2**62),
        ("eos_token_id", 10**12),
        ("eos_token_id", "end"),
        ("pad_token_id", -1),
        ("pad_token_id", {}),
        ("tie_word_embeddings", "perhaps"),
        ("torch_dtype", "float9"),
        ("id2label", [1]),
        ("transformers_version", 7),
        ("use_kernels", True),
        ("layer_types", ["no_such_attention", "full_attention"]),
        ("initializer_range", "wide"),
        ("attention_dropout", 7.0),
        ("align_attention", "org/kernel"),
        ("align_reward_shift", float("nan")),
        ("_name_or_path", "/dev/zero"),
    ]
}

# -- code ----------------------------------------------------------------------------------------------------------

EITHER |= {
    "auto_map in the config": _with_code(
        "config.json", auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    ),
    "auto_map of another repository": _with_code(
        "config.json", auto_map={"AutoConfig": "org/name--configuration_x.X", "AutoModelForCausalLM": "org/n--m.X"}
    ),
    "auto_map in the tokenizer": _with_code(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]}
    ),
    "auto_map is a list": _with_code("config.json", auto_map=[1]),
    "custom_generate": lambda folder: (
        (folder / "custom_generate").mkdir(),
        (folder / "custom_generate/generate.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')"),
        None,
    )[-1],
    **{
        f"{field} is {value}": _edit("config.json", **{field: value})
        for field in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
        for value in ("org/kernel", "org/kernel@main:attend", "flash_attention_2", "paged|sdpa")
    },
    "experts_implementation is org/kernel": _edit("config.json", experts_implementation="org/kernel"),
}
REFUSED |= {
    "auto_map of an unknown type": _with_code(
        "config.json", model_type="x", auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "m.X"}
    ),
}

# -- tokenizer -------------------------------------------------------------------------------------------------------

REFUSED |= {
    **{
        f"tokenizer.json is {what}": _write("tokenizer.json", text)
        for what, text in {
            "empty": "",
            "garbage": b"\x80\x04garbage" * 100,
            "an empty object": "{}",
            "a list": "[]",
            "null": "null",
            "cut": '{"version": "1.0", "model": ',
            "nested": "[" * 100_000,
        }.items()
    },
    "tokenizer without a model": _tokenizer(lambda read: {k: v for k, v in read.items() if k != "model"}),
    "tokenizer of a model unknown": _tokenizer(lambda read: {**read, "model": {"type": "Magic", "vocab": {}}}),
    "tokenizer with no vocabulary": _tokenizer(lambda read: {**read, "model": {**read["model"], "vocab": {}}}),
    "vocabulary of negative ids": _tokenizer(
        lambda read: {**read, "model": {**read["model"], "vocab": {"a": -1}, "merges": []}}
    ),
    "merges of what is not there": _tokenizer(
        lambda read: {**read, "model": {**read["model"], "merges": [["no", "such"]]}}
    ),
    "a normalizer that is none": _tokenizer(lambda read: {**read, "normalizer": {"type": "Magic"}}),
    "a pattern that is none": _tokenizer(
        lambda read: {
            **read,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
        }
    ),
    "no tokenizer": lambda folder: (
        [(folder / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")][:0] and None
    ),
}
EITHER |= {
    f"{name} with {field} {value!r}"[:70]: _edit(name, **{field: value})
    for name, field, value in [
        ("tokenizer_config.json", "tokenizer_class", "NoSuchTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", ["A"]),
        ("tokenizer_config.json", "tokenizer_class", 7),
        ("tokenizer_config.json", "model_max_length", "long"),
        ("tokenizer_config.json", "eos_token", 7),
        ("tokenizer_config.json", "eos_token", {"a": 1}),
        ("tokenizer_config.json", "pad_token", ["x"]),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": 1}),
        ("tokenizer_config.json", "added_tokens_decoder", [1]),
        ("tokenizer_config.json", "extra_special_tokens", 7),
        ("tokenizer_config.json", "padding_side", "middle"),
        ("tokenizer_config.json", "chat_template", 7),
        ("tokenizer_config.json", "chat_template", [{"name": "default"}]),
        ("tokenizer_config.json", "align_stop_tokens", 7),
        ("tokenizer_config.json", "align_stop_strings", 7),
        ("generation_config.json", "eos_token_id", "x"),
        ("generation_config.json", "eos_token_id", [10**12]),
        ("generation_config.json", "stop_strings", 7),
        ("generation_config.json", "stop_strings", [7]),
        ("generation_config.json", "cache_implementation", "org/kernel"),
    ]
}
EITHER |= {
    "an id of 2**31 in the vocabulary": _tokenizer(
        lambda read: {**read, "model": {**read["model"], "vocab": {**read["model"]["vocab"], "far": 2**31}}}
    ),
    "a post-processor of a million tokens": _tokenizer(
        lambda read: {
            **read,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"<x>": {"id": "<x>", "ids": [0] * 1_000_000, "tokens": ["<x>"] * 1_000_000}},
            },
        }
    ),
    "tokenizer_config.json is a list": _write("tokenizer_config.json", "[]"),
    "tokenizer_config.json is cut": _write("tokenizer_config.json", "{"),
    "generation_config.json is a list": _write("generation_config.json", "[]"),
    "generation_config.json is cut": _write("generation_config.json", "{"),
    "special_tokens_map.json is a list": _write("special_tokens_map.json", "[]"),
    "added_tokens.json is garbage": _write("added_tokens.json", "\0"),
    "vocab.json is garbage": _write("vocab.json", "\0"),
}

# -- chat template -------------------------------------------------------------------------------------------------

REFUSED |= {
    f"template: {what}": _template(text)
    for what, text in {
        "loops for ever": _NESTED + "x",
        "loops where there are many turns": "{% if messages|length > 10 %}" + _NESTED + "{% endif %}x",
        "loops where there is a system message": "{% if messages[0].role == 'system' %}" + _NESTED + "{% endif %}x",
        "loops for a prompt": "{% if add_generation_prompt %}" + _NESTED + "{% endif %}x",
        "a text of a gigabyte": "{{ 'a' * 10**9 }}",
        "a text doubled": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "a list of a thousand million": "{{ ([0] * 10**9) | length }}",
        "a power of a power": "{{ 9 ** (9 ** 9) }}",
        "a number of many digits": "{{ (10 ** (10 ** 8)) % 7 }}",
        "a width": "{{ 'a'.center(10 ** 10) }}",
        "a format": "{{ '%9999999999d' % 1 }}",
        "a text of megabytes": "{{ 'a' * 9000000 }}",
        "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "raises": "{{ raise_exception('no') }}",
        "divides by zero": "{{ 1 / 0 }}",
        "writes nothing": "{# nothing #}",
        "writes spaces": "   ",
        "writes only users": "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "writes only the assistant": "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
        "is cut": "{% for m in messages",
        "has an unknown tag": "{% no_such_tag %}",
        "has an unknown filter": "{{ messages | no_such_filter }}",
        "includes a file": "{% include '/etc/passwd' %}",
        "imports a file": "{% import 'os' as os %}{{ os }}",
        "reads what is private": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "nested 5,000 deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "a million characters": "{# " + "a" * 1_100_000 + " #}x",
        "writes at random": "{% for m in messages %}{{ m.content ~ (range(999) | random) }}{% endfor %}{{ eos_token }}",
    }.items()
}

# -- links and other files -----------------------------------------------------------------------------------------

EITHER |= {f"{name} is a link out of the folder": _linked(name) for name in ("config.json", "tokenizer.json")}


def _fifo(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


LEGAL |= {
    "a file of somebody's data": lambda folder: os.truncate(_touched(folder / "train.json"), 70 * 2**20),
    "weights in another layout, not fetched": _write(
        "consolidated.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "an index of weights in another layout": _write(
        "consolidated.safetensors.index.json", '{"weight_map": {"a": "consolidated-00001-of-00002.safetensors"}}'
    ),
    "pickles beside the weights": _write("pytorch_model.bin", b"PK\x03\x04"),
    "no token ends a text": _edit("generation_config.json", eos_token_id=-1),
    "several tokens end a text": _edit("config.json", eos_token_id=[1, 2]),
    "no padding token": _edit("config.json", pad_token_id=-1),
    "no limit on length": _edit("config.json", model_max_length=int(1e30)),
    "no limit on length in the tokenizer": _edit("tokenizer_config.json", model_max_length=int(1e30)),
    "no length in the tokenizer": _edit("tokenizer_config.json", model_max_length=None),
    "several chat templates": _edit(
        "tokenizer_config.json",
        chat_template=[{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}],
    ),
    "infinity in the config": _edit("config.json", time_step_limit=[0.0, float("inf")]),
    "weights by a name of their own": lambda folder: (
        (folder / "model.safetensors").rename(folder / "other.safetensors"),
        _edit("config.json", transformers_weights="other.safetensors")(folder),
    )[-1],
}


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _gguf(blocks: int, *, behind: bool = False) -> Spoil:
    """A GGUF file alone, without tensors' data, that says how many layers it has; `behind`: after a long vocabulary."""

    def value(name: str, kind: int, raw: bytes) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + raw

    def spoil(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        layers = value("llama.block_count", 4, struct.pack("<I", blocks))
        words = b"".join(struct.pack("<Q", 3) + b"cat" for _ in range(1000))
        lists = struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 6, 2) + bytes(8)  # a list of a list of two numbers
        others = [
            value("general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
            value("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1000) + words),
            value("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 1000) + bytes(4000)),
            value("x.lists", 9, lists),
        ]
        values = [*others, layers] if behind else [layers, *others]
        (folder / "x.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 20, len(values)) + b"".join(values))

    return spoil


REFUSED |= {
    f"GGUF of a thousand million layers{', at its end' * at_end}": _gguf(10**9, behind=at_end) for at_end in (0, 1)
}
EITHER |= {"GGUF of two layers": _gguf(2, behind=True)}
REFUSED |= {f"{name} is a pipe": _fifo(name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
EITHER |= {
    "a mark of UTF-8": lambda folder: _write("config.json", b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())(
        folder
    ),
    "generation_config.json is a pipe": _fifo("generation_config.json"),
    "special_tokens_map.json links to itself": lambda folder: (folder / "special_tokens_map.json").symlink_to(
        "special_tokens_map.json"
    ),
    "GGUF in place of weights": lambda folder: _write("x.gguf", b"GGUF")(
        (folder / "model.safetensors").rename(folder.parent / "weights").parent / "model"
    ),
}
REFUSED |= {
    "config.json is a device": lambda folder: (
        (folder / "config.json").unlink(),
        (folder / "config.json").symlink_to("/dev/zero"),
        None,
    )[-1],
    "config.json is a folder": lambda folder: (
        (folder / "config.json").unlink(),
        (folder / "config.json").mkdir(),
        None,
    )[-1],
    "tokenizer.json links to a device": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        (folder / "tokenizer.json").symlink_to("/dev/zero"),
        None,
    )[-1],
}


def bytes_changed(seed: int) -> Spoil:
    """A file of the folder with a few bytes changed, or cut, or with some put in."""

    def spoil(folder: Path) -> None:
        rng = random.Random(f"bytes of a model {seed}")
        path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        raw = bytearray(path.read_bytes())
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(min(len(raw), 4000) or 1)
            kind = rng.randrange(3)
            if kind == 0 and raw:
                raw[place] = rng.randrange(256)
            elif kind == 1:
                del raw[place : place + rng.randrange(1, 50)]
            else:
                raw[place:place] = rng.randbytes(rng.randrange(1, 20))
        path.write_bytes(bytes(raw))

    return spoil


def import_here() -> tuple[str, list[str]]:
    """Import the folder `model` of this folder: the line that refuses it, "" where there is none; what is wrong."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(IMPORT)
    errors = [line for line in err.getvalue().split("\n") if line.startswith("error: ")]
    made = list(Path("artifacts/objects/import_model").glob("*/manifest.json"))
    said = "".join(errors)
    checks = {
        "code of the folder ran": not Path(CANARY).exists(),
        f"exit code {code}, {len(errors)} lines, {len(made)} models": (code, len(errors), len(made))
        in ((0, 0, 1), (2, 1, 0)),
        "it does not name the source": "path:model" in said or not errors,
    }
    return said, [f"{what}: {ascii(said)[:300]}" for what, holds in checks.items() if not holds]
