"""Memory for activations: what a pass keeps, and layers that compute theirs twice."""

from __future__ import annotations

import copy

import psutil
import pytest
import torch
from stage_jobs import job_at
from transformers import AutoModelForCausalLM, CTRLConfig, LlamaConfig, PreTrainedModel

from align.errors import ConfigError
from align.training import activations
from align.training.activations import activation_bytes, checkpoint_layers, fit_activations, limit_activations


def tiny(layers: int = 4, **given: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=90, num_hidden_layers=layers, max_position_embeddings=256, **{**sizes, **given})
    return AutoModelForCausalLM.from_config(config).eval()


def plain() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    ids = torch.arange(40)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("training", [False, True])
def test_layers_that_compute_twice_have_the_same_gradients_and_keep_less(training):
    model = tiny(attention_dropout=0.2 if training else 0.0).train(training)
    torch.manual_seed(3)
    before, kept = gradients(model), activation_bytes(model, plain())
    checkpoint_layers(model)
    torch.manual_seed(3)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name], rtol=0, atol=0)
    assert activation_bytes(model, plain()) < 0.2 * kept


def test_counting_leaves_no_activations_in_memory():
    """A tensor that holds its own graph is in a cycle that nothing collects."""
    model = tiny(hidden_size=256, intermediate_size=1024)
    size = activation_bytes(model, plain()) * 64
    begun = psutil.Process().memory_info().rss
    for _ in range(40):
        activation_bytes(model, plain())
    assert psutil.Process().memory_info().rss - begun < 10 * size


def test_a_copy_computes_with_its_own_weights():
    model = tiny()
    checkpoint_layers(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert float(twin(input_ids=torch.arange(5)[None]).logits.detach().abs().max()) > 0


def test_what_is_kept_grows_with_the_layers_and_leaves_out_weights_cast_to_bf16():
    two, four = (activation_bytes(tiny(layers), plain()) for layers in (2, 4))
    assert 1.7 * two < four < 2.1 * two
    wide = tiny(hidden_size=256, intermediate_size=1024)
    in_bf16 = activation_bytes(wide, torch.autocast("cpu", dtype=torch.bfloat16))
    assert in_bf16 < activation_bytes(wide, plain())  # the bf16 copies of 4 M weights would be 131,072 bytes a token


def test_it_turns_on_by_itself_where_memory_is_small(monkeypatch):
    model = tiny()
    needed = 1000 * activation_bytes(model, plain())
    monkeypatch.setattr(activations, "free_memory", lambda device: 4.1 * needed)
    assert limit_activations(model, None, 1000, plain()) is None
    monkeypatch.setattr(activations, "free_memory", lambda device: 3.9 * needed)
    assert limit_activations(model, False, 1000, plain()) is None
    line = limit_activations(model, None, 1000, plain())
    assert line is not None
    assert line.startswith("activation checkpointing is on: the activations of 1,000 tokens")
    assert activation_bytes(model, plain()) < 0.2 * needed / 1000


def test_layers_that_cannot_compute_twice_are_said_and_refused_where_it_is_asked_for(monkeypatch):
    """CTRL's layers are plain modules of torch."""
    sizes = {"vocab_size": 90, "n_positions": 256, "n_embd": 32, "dff": 64, "n_layer": 2, "n_head": 4}
    model = AutoModelForCausalLM.from_config(CTRLConfig(**sizes)).eval()
    monkeypatch.setattr(activations, "free_memory", lambda device: 0)
    line = limit_activations(model, None, 1000, plain())
    assert line is not None
    assert line.startswith("the activations of 1,000 tokens")
    assert line.endswith("and layers of ctrl have no activation checkpointing")
    with pytest.raises(ConfigError, match="activation_checkpointing: layers of ctrl cannot do that"):
        limit_activations(model, True, 1000, plain())


def test_a_sequence_above_the_size_of_a_pass_counts_whole(tmp_path, monkeypatch, capsys):
    """It goes through the model by itself, whatever `micro_batch_tokens` is."""
    model = tiny()
    monkeypatch.setattr(activations, "free_memory", lambda device: 0)
    for longest, reckoned in ((200, "200"), (10, "64")):
        fit_activations(job_at(tmp_path, micro_batch_tokens=64), model, "fp32", longest)
        assert f"the activations of {reckoned} tokens would take" in capsys.readouterr().err
