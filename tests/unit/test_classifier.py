"""A language model under a linear layer: packed as alone, its losses, dropout, and what plain Transformers opens."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, OPTConfig, T5Config

from align.errors import ConfigError
from align.losses.tasks import joint_loss, row_outputs, segment_means, task_loss
from align.models.build import fresh_model
from align.models.classifier import TaskModel, add_embeddings, require_classifier, save_classifier
from align.models.load import load_model, save_model
from align.text.task_formats import Example, Goal, add_task_tokens, lay_out

ARCHITECTURES = ["openai-gpt", "gpt2", "gpt_neox", "llama"]
CLASSES = Goal("class", ("no", "maybe", "yes"), 0, 1.0)
SCORE = Goal("score", (), 3.5, 0.8)
CHOICE = Goal("choice", (), 0, 1.0)
TEXTS = [[20, 30, 40], [50, 60]]
ANSWERS = [[70], [80, 90, 95], [33, 44]]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    add_task_tokens(tokenizer)
    return tokenizer


def task_model(architecture, tokenizer, num_outputs, dropout=0.0):
    torch.manual_seed(0)
    lm = tiny_model(architecture)
    add_embeddings(lm, range(len(tokenizer) - 3, len(tokenizer)))
    model = TaskModel(lm, num_outputs, dropout).eval()
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model


def examples(tokenizer):
    """One of each task."""
    tokens, _ = add_task_tokens(tokenizer)
    laid = [
        lay_out("classification", tokens, TEXTS[:1], []),
        lay_out("entailment", tokens, TEXTS, []),
        lay_out("similarity", tokens, TEXTS, []),
        lay_out("multiple_choice", tokens, TEXTS, ANSWERS),
    ]
    return [Example(sequences, 0.0) for sequences in laid]


def alone(model, sequence):
    """The last state, and the mean loss of all tokens after the first, by the library's own attention and loss."""
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.lm.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.lm.state_dict())
    ids = torch.tensor([sequence])
    return plain.base_model(ids).last_hidden_state[0, -1], plain(ids, labels=ids).loss


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# -- forward -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_sequences_have_the_logits_and_losses_that_each_has_alone(architecture, tokenizer):
    model, rows = task_model(architecture, tokenizer, 3), examples(tokenizer)
    logits, lm_losses = model(rows, with_lm=True)
    sequences = [sequence for row in rows for sequence in row.sequences]
    expected = [alone(model, sequence) for sequence in sequences]
    near(logits, torch.stack([state for state, _ in expected]) @ model.score.weight.T)
    near(lm_losses, torch.stack([loss for _, loss in expected]))
    assert model(rows, with_lm=False).lm_losses is None


@torch.no_grad()
def test_a_model_that_scales_its_logits_has_its_own_loss(tokenizer):
    """Granite divides them; the product with the head is then not what it predicts with."""
    lm = tiny_model("granite")
    lm.config.logits_scaling = 4.0
    lm = AutoModelForCausalLM.from_config(lm.config, attn_implementation="align").eval()
    add_embeddings(lm, range(len(tokenizer) - 3, len(tokenizer)))
    model = TaskModel(lm, 2, 0.0).eval()
    assert not model._plain
    (row,) = examples(tokenizer)[:1]
    near(model([row], with_lm=True).lm_losses[0], alone(model, row.sequences[0])[1])


@torch.no_grad()
def test_a_pair_is_the_linear_layer_of_its_two_states_added_in_any_order(tokenizer):
    model, tokens = task_model("gpt2", tokenizer, 3), add_task_tokens(tokenizer)[0]
    rows = [Example(lay_out("similarity", tokens, texts, []), 0.0) for texts in (TEXTS, TEXTS[::-1])]
    there, back = row_outputs(model(rows, with_lm=False).logits, [2, 2], "score")
    states = [alone(model, sequence)[0] for sequence in rows[0].sequences]
    near(there, model.score(states[0] + states[1]))
    near(there, back)


def test_dropout_is_one_for_all_sequences_of_a_row_and_off_when_it_predicts(tokenizer):
    model = task_model("gpt2", tokenizer, 32, dropout=0.5)
    torch.nn.init.eye_(model.score.weight)  # the logits are the states
    tokens, _ = add_task_tokens(tokenizer)
    one = lay_out("classification", tokens, TEXTS[:1], [])[0]
    rows = [Example([one, one, one], 0.0), Example([one], 0.0)]
    with torch.no_grad():
        whole = model(rows, with_lm=False).logits
        dropped = model.train()(rows, with_lm=False).logits
    kept = dropped != 0
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[3])
    assert 4 <= int(kept[0].sum()) <= 28  # of 32 at one half; beyond that once in 10,000
    near(dropped[kept], 2 * whole[kept])


# -- losses --------------------------------------------------------------------------------------------------------


def test_the_mean_of_each_segment():
    values = torch.tensor([1.0, 3.0, 10.0, 2.0, 4.0, 9.0])
    assert segment_means(values, torch.tensor([2, 1, 3])).tolist() == [2.0, 10.0, 5.0]


def test_choices_that_all_score_more_are_chosen_alike():
    outputs = torch.tensor([0.3, -1.0, 2.0])
    expected = -torch.log(torch.exp(outputs[1]) / torch.exp(outputs).sum())
    near(task_loss(outputs, 1, "choice"), expected)
    near(task_loss(outputs + 7, 1, "choice"), expected)
    assert float(task_loss(torch.tensor([1.5]), -0.5, "score")) == 4.0


def test_the_whole_loss_is_the_task_s_and_half_the_language_s():
    assert float(joint_loss(torch.tensor(2.0), torch.tensor(3.0), 0.5)) == 3.5


def test_both_losses_reach_the_model_and_the_task_alone_reaches_the_layer(tokenizer):
    model, rows = task_model("gpt2", tokenizer, 3), examples(tokenizer)[:2]
    model(rows, with_lm=True).lm_losses.sum().backward()
    assert model.score.weight.grad is None
    assert model.lm.get_input_embeddings().weight.grad.abs().sum() > 0
    F.cross_entropy(model(rows, with_lm=False).logits, torch.tensor([0, 2])).backward()
    assert model.score.weight.grad.abs().sum() > 0


# -- new tokens, fresh weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_get_rows_like_those_of_a_fresh_model_and_the_others_stay(tied):
    lm = tiny_model("llama")
    config = copy.deepcopy(lm.config)
    config.tie_word_embeddings, config.hidden_size = tied, 512
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="align").eval()
    layers = (lm.get_input_embeddings, lm.get_output_embeddings)
    before = [layer().weight.clone() for layer in layers]
    size = len(before[0])
    add_embeddings(lm, [size, size + 1, size + 2])
    for layer, old in zip(layers, before, strict=True):
        new = layer().weight.detach()
        assert torch.equal(new[:size], old)
        assert len(new) == size + 3
        assert float(new[size:].std()) == pytest.approx(0.02, rel=0.1)
        assert float(new[size:].mean()) == pytest.approx(0.0, abs=0.002)
    assert (layers[0]().weight.data_ptr() == layers[1]().weight.data_ptr()) == tied
    assert lm.config.vocab_size == size + 3


def test_a_model_with_rows_to_spare_is_not_enlarged():
    lm = tiny_model("gpt2")
    size = lm.get_input_embeddings().num_embeddings
    add_embeddings(lm, [size - 3, size - 2, size - 1])
    assert lm.get_input_embeddings().num_embeddings == size
    assert float(lm.get_input_embeddings().weight[size - 3 :].detach().std()) == pytest.approx(0.02, rel=0.3)
    add_embeddings(lm, [])
    assert lm.get_input_embeddings().num_embeddings == size


@torch.no_grad()
def test_a_fresh_model_has_the_shape_of_the_old_one_and_none_of_its_weights(tokenizer, tmp_path):
    old = tiny_model("gpt2", spread=0.02)
    for parameter in old.parameters():
        parameter.fill_(3.0)
    save_model(old, tokenizer, tmp_path)
    fresh = fresh_model(tmp_path)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in old.named_parameters()}
    matrices = torch.cat([p.flatten() for n, p in fresh.named_parameters() if n.endswith("c_fc.weight")])
    assert float(matrices.std()) == pytest.approx(0.02, rel=0.05)
    assert float(load_model(tmp_path).get_input_embeddings().weight.mean()) == 3.0


# -- what is saved -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", ["classification", "entailment", "similarity", "multiple_choice"])
def test_plain_transformers_gives_the_same_logits(architecture, task, tokenizer, tmp_path):
    """A padded batch under the library's own attention; a pair's are added, a score has its mean beside it."""
    goal = {"similarity": SCORE, "multiple_choice": CHOICE}.get(task, CLASSES)
    model = task_model(architecture, tokenizer, goal.num_outputs)
    texts = TEXTS[:1] if task == "classification" else TEXTS
    row = Example(
        lay_out(task, add_task_tokens(tokenizer)[0], texts, ANSWERS if task == "multiple_choice" else []), 0.0
    )
    save_classifier(model.lm, model.score.weight, tokenizer, task, goal, tmp_path)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    opened = AutoTokenizer.from_pretrained(tmp_path)
    batch = opened.pad({"input_ids": row.sequences}, return_tensors="pt")
    logits = plain(**batch).logits
    (expected,) = row_outputs(model([row], with_lm=False).logits, [len(row.sequences)], goal.kind)
    (got,) = row_outputs(logits, [len(row.sequences)], goal.kind)
    if goal.kind == "score":
        near(got + plain.config.align_score_mean, expected * goal.deviation + goal.usual)
    else:
        near(got, expected)
    assert plain.config.num_labels == goal.num_outputs
    assert plain.config.align_task == task
    if goal.labels:
        assert plain.config.id2label == dict(enumerate(goal.labels))
        assert plain.config.problem_type == "single_label_classification"
    assert len(opened) == len(tokenizer)
    assert set(load_file(tmp_path / "model.safetensors")) == set(plain.state_dict())


def test_an_architecture_without_a_classifier_is_refused():
    require_classifier(tiny_model("gpt2").config)
    require_classifier(OPTConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8))
    with pytest.raises(ConfigError, match=r"^inputs\.model: transformers has no sequence classifier for t5"):
        require_classifier(T5Config(vocab_size=20, d_model=8, num_layers=1, num_heads=2, d_ff=8))
