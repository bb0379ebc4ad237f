"""Whatever a folder of a model holds, import makes a model of it or refuses it in one line, and runs nothing of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow
from hostile_models import CANARY, EITHER, IMPORT, LEGAL, REFUSED, Spoil, import_here
from safetensors.torch import save_file
from tiny_models import tiny_model, tiny_tokenizer

from align.cli.main import main
from align.data.cards import DataCard, Source, resolve_base, resolve_model
from align.data.model_files import weight_files
from align.errors import ConfigError
from align.models.load import save_model
from align.models.published import open_model

# The error of one case of each kind. All are found before a library opens a file.
SAID = {
    "pickle that runs code": "its weights are pickles (pytorch_model.bin)",
    "pickle named safetensors": "model.safetensors: expected safetensors, got a pickle",
    "header past the file": "its first 8 bytes say a header of 1,099,511,627,776 bytes, and the file has",
    "header is a list": "its header is a list, not an object",
    "offsets overlap": "no weight has the bytes before 'model.embed_tokens.weight'",
    "offsets past the file": "by its data_offsets",
    "weights lack their last bytes": "bytes by its header, and",
    "index names a device": 'expected the name of a .safetensors file in the same folder, got "/dev/zero"',
    "index names a file that is not there": "model-00009.safetensors is not in the folder",
    "weight map is a list": "weight_map: expected an object of weights and their files, got a list",
    "tokenizer.json is a link out of the folder": "got a link out of the folder, to ",
    "model_type is ['llama']": 'config.json: model_type: expected text, got ["llama"]',
    "config is nested 100,000 deep": "config.json: expected fewer lists and objects in each other",
    "hidden_size is nan": "config.json: expected JSON (a number is NaN)",
    "num_hidden_layers is 1000000000": "1,000,000,000 layers, and its weights hold 20 tensors",
    "weights by the config's choice: adapter_model.bin": (
        'transformers_weights: expected the name of a .safetensors file in the same folder, got "adapter_model.bin"'
    ),
    "weights by the config's choice: sub/model.safetensors.index.json": "transformers_weights: expected the name of",
    "weights by the config's choice: other.safetensors": "other.safetensors is not in the folder; fetch it too",
    "special_tokens_map.json links to itself": "special_tokens_map.json: a broken symbolic link, to special",
    "GGUF of a thousand million layers": "x.gguf: 1,000,000,000 layers, and it holds 20 tensors",
    "GGUF of a thousand million layers, at its end": "x.gguf: 1,000,000,000 layers, and it holds 20 tensors",
    "GGUF in place of weights": "its GGUF file can be taken alone: name it, as path:FOLDER/x.gguf",
    "config.json is a pipe": "config.json: expected an ordinary file, got a pipe",
    "config.json is a device": "config.json: expected an ordinary file, got a device",
    "tokenizer_config.json with model_max_length 'long'": "model_max_length: expected a finite number, got",
    "generation_config.json with stop_strings [7]": "stop_strings: expected text or a list of text, got [7]",
}
# Seen only when the model is opened.
SAID_LATER = {
    "auto_map of an unknown type": "it needs code of its own repository, and align runs no such code",
    "tokenizer.json is an empty object": "its tokenizer does not open (KeyError: 'added_tokens')",
    "an id of 2**31 in the vocabulary": "the id of one is 2,147,483,648; expected ids below 280",
    "template: a text of a gigabyte": "its chat template needs more than 512 MiB of memory",
    "template: raises": "its chat template fails: TemplateError: no",
    "template: writes nothing": "its chat template does not write what the user and the assistant say",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    save_model(tiny_model("llama"), tiny_tokenizer(), folder)
    return folder


@pytest.fixture
def spoiled(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a spoiled copy, `model`, in an own folder where commands then run."""

    def make(spoil: Spoil) -> Path:
        folder = tmp_path / "here"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(good, folder / "model")
        shutil.copy(good / "model.safetensors", folder / "elsewhere.safetensors")
        spoil(folder / "model")
        monkeypatch.chdir(folder)
        return folder / "model"

    return make


def imported() -> str:
    """Import `model`: the line that refuses it, "" where there is none; anything else fails the test."""
    line, faults = import_here()
    assert faults == []
    return line


@pytest.mark.parametrize("name", SAID)
def test_what_no_library_should_open_is_refused_before_anything_runs(spoiled, name: str) -> None:
    spoiled((REFUSED | EITHER)[name])
    with pytest.raises(ConfigError) as caught:
        resolve_model("path:model", None)
    assert SAID[name] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LEGAL)
def test_what_published_models_hold_is_not_refused(spoiled, name: str) -> None:
    folder = spoiled(LEGAL[name])
    assert resolve_model("path:model", None).root == Path("model")
    assert [path.suffix for path in weight_files([*folder.iterdir()])] == [".safetensors"]


@pytest.mark.parametrize(
    "name", ["no padding token", "weights by a name of their own", "weights in another layout, not fetched"]
)
def test_what_published_models_hold_becomes_a_model(spoiled, name: str) -> None:
    spoiled(LEGAL[name])
    assert imported() == ""


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json is an empty object",
        "tokenizer.json is nested",
        "tokenizer with no vocabulary",
        "tokenizer_config.json with eos_token 7",
    ],
)
def test_a_tokenizer_that_does_not_open_is_no_defect_of_align(spoiled, capsys, name: str) -> None:
    spoiled((REFUSED | EITHER)[name])
    assert main(["tokenizer", "source=path:model", "store=artifacts", "tracker=none"]) == 2
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line.startswith("error: ")]
    assert line.startswith("error: source: path:model: its tokenizer does not open (")


@pytest.mark.parametrize("name", mostly_slow(SAID_LATER, [*SAID_LATER][1::2]))
def test_what_does_not_open_is_refused_in_a_line_and_nothing_is_written(spoiled, name: str) -> None:
    spoiled((REFUSED | EITHER)[name])
    assert SAID_LATER[name] in imported()


def test_an_attention_that_a_config_names_is_not_taken(spoiled) -> None:
    """Without the package `kernels` transformers refuses the model; with it, it fetches what is named, and runs it."""
    for field in ("_attn_implementation", "attn_implementation"):
        spoiled(EITHER[f"{field} is org/kernel"])
        assert imported() == ""
        (config,) = Path("artifacts/objects/import_model").glob("*/config.json")
        assert "org/kernel" not in config.read_text()


# What transformers imports: decorators that change nothing, and functions that fetch, which note that they were called.
_NOTING = """
class Anything:
    def __init__(self, *a, **k): pass
    def __call__(self, *a, **k): return a[0] if a else self
    def __getattr__(self, name): return Anything()

def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    if 'get' in name or 'load' in name or 'install' in name:
        return lambda *a, **k: NOTING
    return Anything if name[0].isupper() else lambda *a, **k: Anything()
"""


@pytest.mark.slow
def test_no_kernel_is_fetched(spoiled, tmp_path: Path) -> None:
    """With a package called `kernels` that notes each call: none comes."""
    spoiled(EITHER["_attn_implementation is org/kernel"])
    package = tmp_path / "packages"
    (package / "kernels-0.18.2.dist-info").mkdir(parents=True)
    (package / "kernels-0.18.2.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n"
    )
    (package / "kernels").mkdir()
    noting = f"open({str(Path(CANARY).absolute())!r}, 'a').write(name)"
    (package / "kernels/__init__.py").write_text(_NOTING.replace("NOTING", noting))
    places = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))])
    done = subprocess.run(
        [sys.executable, "-m", "align", *IMPORT],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not Path(CANARY).exists(), Path(CANARY).read_text()
    assert done.returncode == 0, done.stderr


def test_a_pickle_that_the_config_of_a_repository_chooses_is_not_opened(spoiled) -> None:
    """Of a source on the Hub no file is looked at before; the same is asked where its config is opened."""
    folder = spoiled(REFUSED["weights by the config's choice: adapter_model.bin"])
    with pytest.raises(ValueError, match="transformers_weights: expected the name"):
        open_model(Source(DataCard(name="model"), folder, (), ""), "model")


def test_a_gguf_file_with_as_many_layers_as_tensors_is_not_refused(spoiled) -> None:
    spoiled(EITHER["GGUF of two layers"])
    assert resolve_model("path:model", None).gguf == "x.gguf"


def test_weights_may_be_a_link_to_another_disk(spoiled) -> None:
    spoiled(EITHER["a file of weights is a link out of the folder"])
    assert imported() == ""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")],
)
def test_a_machine_without_memory_is_not_said_to_be_a_bad_model(spoiled, capsys, monkeypatch, error: Exception) -> None:
    def fail(*given: object, **named: object) -> None:
        raise error

    spoiled(lambda folder: None)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    assert main(IMPORT) == 3
    assert "error: out of memory: " in capsys.readouterr().err


def adapter(folder: Path, **config: object) -> str:
    """A folder of an adapter on one layer of `model`."""
    folder.mkdir()
    base = str(folder.with_name("model"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, **config}))
    save_file({"lora_A": torch.zeros(2, 8), "lora_B": torch.zeros(8, 2)}, folder / "adapter_model.safetensors")
    return f"path:{folder}"


def test_an_adapter_on_few_layers_may_have_its_base_s_config(spoiled) -> None:
    """The layers of the base are not those of the adapter's weights."""
    model = spoiled(lambda folder: None)
    source = adapter(model.with_name("adapter"), peft_type="LORA", r=2)
    (model.with_name("adapter") / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 32}')
    resolve_model(source, None)
    base = resolve_base(source, "", None)
    assert base is not None
    assert base.root == model


def test_an_adapter_of_another_kind_is_refused_for_its_kind(spoiled) -> None:
    """Such an adapter has no rank."""
    source = adapter(spoiled(lambda folder: None).with_name("adapter"), peft_type="IA3")
    resolve_model(source, None)
    with pytest.raises(ConfigError, match="an adapter of the kind IA3; expected LORA"):
        resolve_base(source, "", None)


@pytest.mark.parametrize("below", ["", "/sub"])
def test_a_snapshot_of_the_hub_s_cache_may_link_to_its_blobs(good: Path, tmp_path: Path, below: str) -> None:
    snapshot = tmp_path / f"models--org--name/snapshots/0123{below}"
    (tmp_path / "models--org--name/blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(good.iterdir())):
        shutil.copy(path, tmp_path / f"models--org--name/blobs/{i}")
        (snapshot / path.name).symlink_to(os.path.relpath(tmp_path / f"models--org--name/blobs/{i}", snapshot))
    assert len(resolve_model(f"path:{snapshot}", None).files) == len(list(good.iterdir()))
