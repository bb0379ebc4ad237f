"""GPT-1's released parameters, from a small random model written in their layout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt1_release import random_gpt1, write_release
from transformers import OpenAIGPTLMHeadModel

from align.errors import ConfigError
from align.models.gpt1_import import gpt1_config, gpt1_from_release, is_gpt1_release, named_shapes

# openai/finetune-transformer-lm, model/params_shapes.json
BLOCK = [
    *([1, 768, 2304], [2304], [1, 768, 768], [768], [768], [768]),
    *([1, 768, 3072], [3072], [1, 3072, 768], [768], [768], [768]),
]
PUBLISHED = [[512, 768], [40478, 768], *(shape for _ in range(12) for shape in BLOCK)]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    write_release(random_gpt1(), tmp_path)
    return tmp_path


@torch.no_grad()
def test_it_comes_back_with_the_same_logits(release: Path) -> None:
    assert is_gpt1_release(release)
    original, read = random_gpt1(), gpt1_from_release(release)
    ids = torch.arange(10)[None] % 11
    torch.testing.assert_close(read(ids).logits, original(ids).logits, rtol=0, atol=1e-6)  # two implementations
    for name, parameter in original.state_dict().items():
        assert torch.equal(read.state_dict()[name], parameter), name


def test_its_head_is_its_tokens_after_saving_too(release: Path, tmp_path: Path) -> None:
    read = gpt1_from_release(release)
    assert read.lm_head.weight is read.transformer.tokens_embed.weight
    read.save_pretrained(tmp_path / "saved")
    again = OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "saved").eval()
    ids = torch.arange(10)[None]
    torch.testing.assert_close(again(ids).logits, read(ids).logits, rtol=0, atol=1e-6)


def test_where_a_file_ends_does_not_matter(release: Path, tmp_path: Path) -> None:
    vector = np.concatenate([np.load(release / f"params_{i}.npy") for i in range(10)])
    before = gpt1_from_release(release).state_dict()
    for i, part in enumerate(np.split(vector, [1, 2, 3, 500, 501, 1000, 1001, 30_000, 30_001])):
        np.save(release / f"params_{i}.npy", part)
    after = gpt1_from_release(release).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_published_shapes_are_gpt1() -> None:
    config = gpt1_config(PUBLISHED)
    assert [list(shape) for _, shape in named_shapes(config)] == PUBLISHED
    assert sum(math.prod(shape) for shape in PUBLISHED) == 116_534_784
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions) == (12, 12, 768, 512)
    assert config.vocab_size == 40_478
    with torch.device("meta"):
        model = OpenAIGPTLMHeadModel(config)
    assert model.num_parameters() == 116_534_784
    assert {f"transformer.{name}" for name, _ in named_shapes(config)} == {n for n, _ in model.named_parameters()}


def shapes_of(release: Path) -> list[list[int]]:
    return json.loads((release / "params_shapes.json").read_text())


def refused(release: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        gpt1_from_release(release)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_told(release: Path) -> None:
    (release / "params_3.npy").unlink()
    (release / "params_9.npy").unlink()
    assert "missing: params_3.npy, params_9.npy" in refused(release)


def test_a_shape_that_is_not_gpt1_s_is_told(release: Path) -> None:
    shapes = shapes_of(release)
    shapes[4] = [1, 128, 64]
    (release / "params_shapes.json").write_text(json.dumps(shapes))
    assert "h.0.attn.c_proj.weight: expected [1, 128, 128], got [1, 128, 64]" in refused(release)
    (release / "params_shapes.json").write_text(json.dumps(shapes[:-1]))
    assert "expected two matrices and 12 arrays per block, got 25 arrays" in refused(release)


def test_numbers_that_do_not_fill_the_shapes_are_told(release: Path) -> None:
    np.save(release / "params_0.npy", np.zeros(3, np.float32))
    assert "params_shapes.json asks for " in refused(release)


@pytest.mark.parametrize("content", ["{", "{}", "[3]", "[[0, 3]]", '[["a"]]'])
def test_shapes_that_are_none_are_told(release: Path, content: str) -> None:
    (release / "params_shapes.json").write_text(content)
    assert "params_shapes.json: expected a list of shapes" in refused(release)


def test_a_file_that_is_no_array_is_told_and_no_pickle_is_read(release: Path) -> None:
    (release / "params_2.npy").write_bytes(b"not an array")
    assert "params_2.npy: not an array of numbers" in refused(release)
    np.save(release / "params_2.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert "params_2.npy: not an array of numbers" in refused(release)
    np.save(release / "params_2.npy", np.array(["a"]))
    assert "params_2.npy: not an array of numbers" in refused(release)
