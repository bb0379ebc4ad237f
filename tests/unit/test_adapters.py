"""Adapters side by side on one base: what one of them does, no other and no plain use of the base may feel."""

from __future__ import annotations

import json
import re
import shutil

import peft
import pytest
import torch
from conftest import mostly_slow
from safetensors.torch import load_file
from tiny_models import tiny_mixture, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from align.configs import LoraConfig, Ppo, Reward
from align.errors import ConfigError, StoreError
from align.losses.lm import TokenLogprobs
from align.models.adapters import Adapters, AdapterScalar, fresh_adapter
from align.models.heads import ScalarModel, load_scalar, scalar_from_lm
from align.models.load import load_model, save_model
from align.models.packed import pack_pairs, response_logprobs, response_scores, response_values
from align.rl.models import FullActors, LoraActors, load_actors
from align.sampling.engine import Sampling
from align.sampling.local import Ends, LocalEngine

PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]
PACKED = pack_pairs(PROMPTS, RESPONSES, "cpu")
LORA = LoraConfig(rank=4, alpha=6.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def saved_model(tokenizer, architecture, folder, seed=0):
    torch.manual_seed(seed)
    save_model(tiny_model(architecture, 64, 0.2), tokenizer, folder)
    return folder


@torch.no_grad()
def trained(parameters, seed):
    """As if trained: numbers that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def saved_reward(policy, folder, tokenizer, seed):
    """A reward model that was trained as an adapter on `policy`, laid out as the reward stage does it."""
    torch.manual_seed(seed)
    model = scalar_from_lm(policy)
    adapters = fresh_adapter(model.classifier, policy, LORA, "reward")
    trained(adapters.parameters("reward"), seed)
    model.shift = 0.375
    adapters.save("reward", folder, tokenizer, model.classifier.score)
    return folder


def saved_adapter(start, folder, tokenizer, seed):
    """A language model that was trained as an adapter on `start`."""
    adapters = fresh_adapter(load_model(start), start, LORA, "sft")
    trained(adapters.parameters("sft"), seed)
    adapters.save("sft", folder, tokenizer)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def store(request, tokenizer, tmp_path_factory):
    """A policy, another one, two reward models that are adapters on the first, and one in full; read only."""
    place = tmp_path_factory.mktemp("objects")
    policy = saved_model(tokenizer, request.param, place / "sft" / "aaaa")
    saved_model(tokenizer, request.param, place / "sft" / "bbbb", seed=1)
    saved_reward(policy, place / "reward" / "cccc", tokenizer, seed=2)
    saved_reward(policy, place / "reward" / "dddd", tokenizer, seed=3)
    saved_reward(place / "sft" / "bbbb", place / "reward" / "eeee", tokenizer, seed=4)
    full = place / "reward" / "ffff"
    scalar_from_lm(policy).save(full)
    tokenizer.save_pretrained(full)
    return place


@pytest.fixture
def policy(store):
    return store / "sft" / "aaaa"


@pytest.fixture
def reward(store):
    return store / "reward" / "cccc"


def logits_of(model):
    return model(input_ids=PACKED.input_ids, position_ids=PACKED.position_ids, use_cache=False).logits


def adapters_on(folder, *names):
    adapters = Adapters(load_model(folder), folder)
    for name in names:
        adapters.add(name, LORA)
    return adapters


def gradients_of(parameters):
    return {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}


def forget(actors):
    for parameter in (*actors.policy_parameters.values(), *actors.value_parameters.values()):
        parameter.grad = None


def near(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


# -- one base, several adapters ------------------------------------------------------------------------------------


@torch.no_grad()
def test_with_none_on_the_model_is_the_plain_one_to_the_bit(policy):
    plain = logits_of(load_model(policy))
    adapters = adapters_on(policy, "policy", "value")
    assert torch.equal(logits_of(adapters.base), plain)
    trained(adapters.parameters("policy"), 1)
    trained(adapters.parameters("value"), 2)
    assert torch.equal(logits_of(adapters.base), plain)
    with adapters.using("policy") as model:
        assert not torch.allclose(logits_of(model), plain, atol=1e-2)
    assert torch.equal(logits_of(adapters.base), plain)
    with adapters.using(None) as model:
        assert torch.equal(logits_of(model), plain)


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(policy):
    plain, adapters = logits_of(load_model(policy)), adapters_on(policy, "policy")
    with adapters.using("policy") as model:
        assert torch.equal(logits_of(model), plain)


@torch.no_grad()
def test_each_adapter_is_its_own(policy):
    """That another was added, trained or used before is not felt."""
    alone = adapters_on(policy, "policy")
    trained(alone.parameters("policy"), 1)
    with alone.using("policy") as model:
        expected = logits_of(model)
    adapters = adapters_on(policy, "policy", "value")
    trained(adapters.parameters("policy"), 1)
    trained(adapters.parameters("value"), 2)
    with adapters.using("value") as model:
        other = logits_of(model)
    with adapters.using("policy") as model:
        assert torch.equal(logits_of(model), expected)
    assert not torch.allclose(other, expected, atol=1e-2)


@torch.no_grad()
def test_an_adapter_goes_off_when_what_used_it_fails(policy):
    plain, adapters = logits_of(load_model(policy)), adapters_on(policy, "policy")
    trained(adapters.parameters("policy"), 1)
    with pytest.raises(RuntimeError, match="on purpose"), adapters.using("policy"):
        raise RuntimeError("on purpose")
    assert torch.equal(logits_of(adapters.base), plain)


def test_an_adapter_has_two_matrices_on_each_linear_layer_of_the_trunk_and_none_on_the_head(policy):
    adapters = adapters_on(policy, "policy", "value")
    for name in ("policy", "value"):
        shapes = {key: p.shape for key, p in adapters.parameters(name).items()}
        trunk = load_model(policy).base_model
        weights = [m.weight for key, m in trunk.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
        assert len(shapes) == 2 * len(weights) > 0
        assert sum(s.numel() for s in shapes.values()) == LORA.rank * sum(sum(w.shape) for w in weights)
        assert not any("head" in key for key in shapes)


def test_rank_and_alpha_scale_the_update_as_in_the_paper(policy):
    """W + alpha / rank * B A, on the first linear layer found."""
    adapters = adapters_on(policy, "policy")
    trained(adapters.parameters("policy"), 1)
    key = next(iter(adapters.parameters("policy"))).partition(".lora_")[0]
    a, b = (adapters.parameters("policy")[f"{key}.lora_{x}.policy.weight"] for x in "AB")
    before = load_model(policy).get_submodule(key)
    after = adapters.merged("policy").get_submodule(key)
    update = 1.5 * (b @ a)
    update = update.T if type(before).__name__ == "Conv1D" else update
    near(after.weight, before.weight + update)
    assert update.abs().max() > 0.01


# -- what learns, and what does not --------------------------------------------------------------------------------


def loss_of(likelihoods):
    return likelihoods.logprobs.sum() if isinstance(likelihoods, TokenLogprobs) else likelihoods.square().sum()


def lora_actors(policy, reward):
    actors = LoraActors(policy, reward, LORA, CPU)
    trained(actors.policy_parameters, 5)
    trained({name: p for name, p in actors.value_parameters.items() if name != "head"}, 6)
    return actors


@pytest.mark.parametrize("from_policy", [True, False])
def test_two_graphs_at_once_give_each_adapter_the_gradient_it_gets_alone(policy, reward, from_policy):
    """What goes back through one must not see which one is on by then, nor that it was off in between."""
    actors = lora_actors(policy, policy if from_policy else reward)
    torch.nn.init.normal_(actors.value_parameters["head"], generator=torch.Generator().manual_seed(9))
    forget(actors)
    loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False)).backward()
    alone = {"policy": gradients_of(actors.policy_parameters)}
    assert all(p.grad is None for p in actors.value_parameters.values())
    forget(actors)
    loss_of(actors.values(PACKED, RESPONSES)).backward()
    alone["value"] = gradients_of(actors.value_parameters)
    assert all(p.grad is None for p in actors.policy_parameters.values())
    forget(actors)

    one = loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False))
    two = loss_of(actors.values(PACKED, RESPONSES))
    actors.ref_logprobs(PACKED, RESPONSES, 1.0)
    one.backward()
    two.backward()
    for name, parameters in (("policy", actors.policy_parameters), ("value", actors.value_parameters)):
        for key, gradient in gradients_of(parameters).items():
            assert alone[name][key] is not None, key
            assert alone[name][key].abs().max() > 0, key
            torch.testing.assert_close(gradient, alone[name][key], rtol=1e-5, atol=1e-7, msg=key)


def test_what_is_learned_is_the_adapter_in_use_and_never_the_base(policy, reward, store):
    actors = lora_actors(policy, reward)
    scalar = actors.reward_model(store / "reward" / "dddd")
    learning = {id(p) for p in (*actors.policy_parameters.values(), *actors.value_parameters.values())}
    base = actors._adapters.base
    rewards = actors._adapters.parameters("reward_1")
    assert len(rewards) == len(actors.policy_parameters)
    forget(actors)
    total = loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False))
    total = total + loss_of(actors.values(PACKED, RESPONSES)) + response_scores(scalar, PACKED).sum()
    with actors.policy_model() as model:
        total = total + logits_of(model).square().sum()
    total.backward()
    for key, parameter in base.named_parameters():
        assert parameter.requires_grad == (id(parameter) in learning), key
        assert (parameter.grad is not None) == (id(parameter) in learning), key
    assert scalar.head.weight.grad is None


@pytest.mark.parametrize("switch", mostly_slow(["policy", "value", "reward_1", None], ["policy", "reward_1"]))
def test_a_reward_adapter_stays_frozen_and_the_others_learn_whatever_was_switched(policy, reward, store, switch):
    actors = LoraActors(policy, reward, LORA, CPU)
    scalar = actors.reward_model(store / "reward" / "dddd")
    adapters = actors._adapters

    def as_it_should_be():
        assert not any(p.requires_grad for p in (*adapters.parameters("reward_1").values(), scalar.head.weight))
        assert all(p.requires_grad for p in actors.policy_parameters.values())
        assert all(p.requires_grad for p in actors.value_parameters.values())

    as_it_should_be()
    with adapters.using(switch):
        as_it_should_be()
    as_it_should_be()
    assert not response_scores(scalar, PACKED).requires_grad
    actors.reward_model(reward)  # one more beside it
    as_it_should_be()
    assert not any(p.requires_grad for p in adapters.parameters("reward_2").values())


def test_a_step_of_the_policy_moves_no_value_and_no_reference(policy, reward):
    actors = lora_actors(policy, reward)
    with torch.no_grad():
        before = [
            actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False).logprobs,
            actors.values(PACKED, RESPONSES),
            actors.ref_logprobs(PACKED, RESPONSES, 1.0),
        ]
    optimizer = torch.optim.SGD(actors.policy_parameters.values(), 0.05)
    loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False)).backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.allclose(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False).logprobs, before[0])
        assert torch.equal(actors.values(PACKED, RESPONSES), before[1])
        assert torch.equal(actors.ref_logprobs(PACKED, RESPONSES, 1.0), before[2])


def test_under_autocast_adapters_get_float32_gradients_near_those_in_full_precision(policy, reward):
    actors = lora_actors(policy, reward)
    forget(actors)
    loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False)).backward()
    exact = gradients_of(actors.policy_parameters)
    forget(actors)
    with torch.autocast("cpu", torch.bfloat16):
        rough = actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False)
        values = actors.values(PACKED, RESPONSES)
    assert rough.logprobs.dtype == values.dtype == torch.float32
    loss_of(rough).backward()
    for key, gradient in gradients_of(actors.policy_parameters).items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[key]).norm() / exact[key].norm() < 0.1, key


# -- merged, saved, loaded -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_merged_model_is_the_adapter_switched_on(policy):
    adapters = adapters_on(policy, "policy", "value")
    trained(adapters.parameters("policy"), 1)
    trained(adapters.parameters("value"), 2)
    plain = logits_of(adapters.base)
    expected = {}
    for name in ("policy", "value"):
        with adapters.using(name) as model:
            expected[name] = logits_of(model)
    for name in ("policy", "value"):  # whichever was on last
        merged = adapters.merged(name)
        near(logits_of(merged), expected[name])
        assert merged.state_dict().keys() == load_model(policy).state_dict().keys()
    with adapters.using("policy") as model:  # it was a copy that was merged
        assert torch.equal(logits_of(model), expected["policy"])
    assert torch.equal(logits_of(adapters.base), plain)


@torch.no_grad()
@pytest.mark.parametrize("name", ["policy", "value"])
def test_what_was_saved_loads_with_identical_numbers(policy, tokenizer, tmp_path, name):
    adapters = adapters_on(policy, "policy", "value")
    trained(adapters.parameters("policy"), 1)
    trained(adapters.parameters("value"), 2)
    adapters.save(name, tmp_path, tokenizer)
    again = adapters_on(policy, "other")
    trained(again.parameters("other"), 3)
    again.load("back", tmp_path)
    with adapters.using(name) as model:
        expected = response_logprobs(model, PACKED, RESPONSES)
    with again.using("back") as model:
        assert torch.equal(response_logprobs(model, PACKED, RESPONSES), expected)
    assert again.parameters("back").keys() == {key.replace(f".{name}.", ".back.") for key in adapters.parameters(name)}


@torch.no_grad()
def test_peft_opens_what_was_saved_and_agrees(policy, tokenizer, tmp_path):
    adapters = adapters_on(policy, "policy", "value")
    trained(adapters.parameters("policy"), 1)
    trained(adapters.parameters("value"), 2)
    adapters.save("policy", tmp_path, tokenizer)
    with adapters.using("policy") as model:
        expected = logits_of(model)
    opened = peft.PeftModel.from_pretrained(load_model(policy), tmp_path).eval()
    assert torch.equal(logits_of(opened), expected)
    near(logits_of(opened.merge_and_unload()), expected)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(adapters.parameters("policy"))


@torch.no_grad()
def test_a_saved_reward_model_scores_as_its_adapter_on_the_policy(policy, reward):
    whole = load_scalar(reward)
    assert whole.shift == 0.375
    scalar = LoraActors(policy, reward, LORA, CPU).reward_model(reward)
    assert isinstance(scalar, AdapterScalar)
    near(response_scores(scalar, PACKED), response_scores(whole, PACKED))
    near(response_values(scalar, PACKED, RESPONSES), response_values(whole, PACKED, RESPONSES))
    plain = scalar_from_lm(policy)
    plain.classifier.score.load_state_dict(whole.classifier.score.state_dict())
    assert not torch.allclose(response_scores(plain, PACKED) - 0.375, response_scores(whole, PACKED), atol=1e-2)


@torch.no_grad()
def test_judges_side_by_side_each_score_as_alone(policy, store):
    actors = LoraActors(policy, policy, LORA, CPU)
    folders = [store / "reward" / name for name in ("cccc", "dddd", "cccc")]
    scalars = [actors.reward_model(folder) for folder in folders]
    scores = [response_scores(scalar, PACKED) for scalar in scalars]
    for folder, score in zip(folders, scores, strict=True):
        near(score, response_scores(load_scalar(folder), PACKED))
    assert torch.equal(scores[0], scores[2])
    assert not torch.allclose(scores[0], scores[1], atol=1e-2)


def test_an_adapter_on_another_base_is_refused(policy, store):
    with pytest.raises(ConfigError, match=r"eeee: an adapter on sft/bbbb; expected an adapter on sft/aaaa"):
        adapters_on(policy).load("reward", store / "reward" / "eeee")
    with pytest.raises(ConfigError, match=r"sft/bbbb"):
        load_actors(policy, store / "reward" / "eeee", LORA, CPU)
    # But as a judge its merged weights serve.
    assert isinstance(load_actors(policy, policy, LORA, CPU).reward_model(store / "reward" / "eeee"), ScalarModel)


@pytest.mark.parametrize(
    ("stage", "knobs", "said"),
    [
        (LoraConfig, {"rank": 0}, "rank: expected a number above 0, got 0"),
        (LoraConfig, {"rank": 4, "alpha": 0.0}, "alpha: expected a number above 0, got 0.0"),
        (LoraConfig, {"rank": 4, "dropout": 1.0}, "dropout: expected a number from 0 to below 1, got 1.0"),
        (LoraConfig, {"alpha": 8.0}, "alpha: expected lora.rank beside it: without one all weights are trained"),
        (LoraConfig, {"dropout": 0.1}, "dropout: expected lora.rank beside it"),
        (LoraConfig, {"merged": True}, "merged: expected lora.rank beside it"),
        (Reward, {"lora": LoraConfig(rank=4, dropout=0.1)}, "lora.dropout: expected 0: dropout is off in a reward"),
        (Ppo, {"lora": LoraConfig(rank=4, dropout=0.1)}, "lora.dropout: expected 0: the first ratio would not be 1"),
    ],
)
def test_knobs_of_adapters_that_mean_nothing_are_refused(stage, knobs, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        stage(**knobs)


# -- PPO's models --------------------------------------------------------------------------------------------------


def test_without_a_rank_models_are_in_full_and_with_one_they_are_adapters(policy, reward):
    assert isinstance(load_actors(policy, reward, LoraConfig(), CPU), FullActors)
    assert isinstance(load_actors(policy, reward, LORA, CPU), LoraActors)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_of_frozen_models_are_held_in_bf16_where_passes_are_and_nothing_else_is(
    tokenizer, tmp_path, precision, architecture
):
    policy = saved_model(tokenizer, architecture, tmp_path / "sft" / "aaaa")
    actors = load_actors(policy, policy, LoraConfig(), CPU, precision)
    scalar_from_lm(policy).save(tmp_path / "reward")
    judge = actors.reward_model(tmp_path / "reward")
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    for model in (actors.reference, judge.classifier):
        for name, weight in model.named_parameters():
            is_product = any(part in name for part in ("_proj", "c_attn", "c_fc"))
            assert weight.dtype == (expected if is_product else torch.float32), name
    for learning in (*actors.policy_parameters.values(), *actors.value_parameters.values()):
        assert learning.dtype == torch.float32


def test_adapters_with_a_reward_model_in_full_are_refused_as_a_start_and_taken_as_a_judge(policy, store):
    full = store / "reward" / "ffff"
    with pytest.raises(ConfigError, match="ffff: a whole model; expected an adapter on sft/aaaa"):
        load_actors(policy, full, LORA, CPU)
    judge = load_actors(policy, policy, LORA, CPU).reward_model(full)
    assert isinstance(judge, ScalarModel)
    assert not any(p.requires_grad for p in judge.parameters())
    with torch.no_grad():
        assert torch.equal(response_scores(judge, PACKED), response_scores(load_scalar(full), PACKED))


@torch.no_grad()
def test_full_and_adapted_models_are_equal_before_they_learn(policy, reward):
    full, lora = FullActors(policy, reward, CPU), LoraActors(policy, reward, LoraConfig(rank=32), CPU)
    for actors in (full, lora):
        new, entropies = actors.policy_likelihoods(PACKED, RESPONSES, 0.7, True)
        assert torch.equal(new, actors.ref_logprobs(PACKED, RESPONSES, 0.7))  # the KL is 0, not nearly 0
        assert entropies.min() > 0
    for one, two in zip(
        full.policy_likelihoods(PACKED, RESPONSES, 0.7, True),
        lora.policy_likelihoods(PACKED, RESPONSES, 0.7, True),
        strict=True,
    ):
        assert torch.equal(one, two)
    near(lora.values(PACKED, RESPONSES), full.values(PACKED, RESPONSES))
    near(response_scores(lora.reward_model(reward), PACKED), response_scores(full.reward_model(reward), PACKED))


def test_both_kinds_go_down_the_loss_and_the_reference_of_neither_moves(policy, reward):
    for actors in (FullActors(policy, reward, CPU), LoraActors(policy, reward, LoraConfig(rank=32, alpha=32.0), CPU)):
        optimizer = torch.optim.SGD(actors.policy_parameters.values(), 0.01)
        ref = actors.ref_logprobs(PACKED, RESPONSES, 1.0).detach()
        before = -loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False))
        before.backward()
        optimizer.step()
        after = -loss_of(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False))
        assert after < before - 0.05
        assert torch.equal(actors.ref_logprobs(PACKED, RESPONSES, 1.0), ref)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_value_model_that_starts_from_the_policy_says_zero(policy, kind):
    lora = LoraConfig() if kind == "full" else LORA
    actors = load_actors(policy, policy, lora, CPU)
    assert torch.equal(actors.values(PACKED, RESPONSES), torch.zeros(sum(map(len, RESPONSES))))


def test_a_value_model_that_starts_from_the_policy_can_learn(policy):
    actors = load_actors(policy, policy, LORA, CPU)
    optimizer = torch.optim.Adam(actors.value_parameters.values(), 0.02)
    target = torch.linspace(-1.0, 1.0, sum(map(len, RESPONSES)))
    losses = []
    for _ in range(15):
        loss = (actors.values(PACKED, RESPONSES) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@torch.no_grad()
def test_a_saved_policy_is_an_adapter_that_loads_here_and_in_peft(policy, reward, tokenizer):
    actors = lora_actors(policy, reward)
    expected = actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False).logprobs
    out = policy.parent.parent / "ppo" / "aaaa"
    actors.save(out, tokenizer)
    assert not (out / "model.safetensors").exists()
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (out, policy))
    assert config == original
    loaded = load_model(out)
    assert not any(isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer) for m in loaded.modules())
    near(response_logprobs(loaded, PACKED, RESPONSES), expected)
    opened = peft.PeftModel.from_pretrained(load_model(policy), out).eval()
    near(response_logprobs(opened.base_model.model, PACKED, RESPONSES), expected)
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager"), out
    ).eval()
    alone = torch.cat(
        [
            plain(input_ids=torch.tensor([p + r])).logits[0, len(p) - 1 : -1].log_softmax(1)[range(len(r)), r]
            for p, r in zip(PROMPTS, RESPONSES, strict=True)
        ]
    )
    near(alone, expected)


@torch.no_grad()
def test_a_policy_saved_merged_is_a_plain_folder(policy, reward, tokenizer, tmp_path):
    actors = LoraActors(policy, reward, LoraConfig(rank=4, merged=True), CPU)
    trained(actors.policy_parameters, 5)
    expected = actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False).logprobs
    actors.save(tmp_path, tokenizer)
    assert not (tmp_path / "adapter_config.json").exists()
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(policy / "model.safetensors").keys()
    near(response_logprobs(load_model(tmp_path), PACKED, RESPONSES), expected)


@torch.no_grad()
def test_saving_twice_gives_the_same_bytes_and_leaves_the_policy_usable(policy, reward, tokenizer, tmp_path):
    actors = lora_actors(policy, reward)
    expected = actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False).logprobs
    actors.save(tmp_path / "one", tokenizer)
    actors.save(tmp_path / "two", tokenizer)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert torch.equal(actors.policy_likelihoods(PACKED, RESPONSES, 1.0, False).logprobs, expected)


# -- adapters on top of adapters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=mostly_slow(["gpt2", "llama", "mixture"], ["gpt2", "mixture"]))
def stack(request, tokenizer, tmp_path_factory):
    """A base with two drawn tokens, an adapter on it (sft), reward adapters on both, one on another base; read only."""
    place = tmp_path_factory.mktemp("objects")
    for key, seed in (("aaaa", 0), ("bbbb", 1)):
        torch.manual_seed(seed)
        model = tiny_mixture() if request.param == "mixture" else tiny_model(request.param, 64, 0.2)
        model.config.align_drawn_tokens = [20, 21]
        save_model(model, tokenizer, place / "import_model" / key)
    sft = saved_adapter(place / "import_model" / "aaaa", place / "sft" / "aaaa", tokenizer, 2)
    saved_reward(sft, place / "reward" / "onsft", tokenizer, 3)
    saved_reward(place / "import_model" / "aaaa", place / "reward" / "onbase", tokenizer, 4)
    saved_reward(place / "import_model" / "bbbb", place / "reward" / "other", tokenizer, 5)
    return place


@torch.no_grad()
def test_three_adapters_on_top_of_each_other_are_one_on_the_base(stack, tokenizer):
    """What is saved after the third says what the three say, here and in peft, and refers to no other adapter."""
    start, base = stack / "sft" / "aaaa", stack / "import_model" / "aaaa"
    second = saved_adapter(start, stack / "sft" / "second", tokenizer, 6)
    model = load_model(second)
    adapters = fresh_adapter(model, second, LORA, "third")
    trained(adapters.parameters("third"), 7)
    expected = logits_of(model)
    third = stack / "sft" / "third"
    adapters.save("third", third, tokenizer)
    config = json.loads((third / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("import_model/aaaa", 3 * LORA.rank)
    near(logits_of(load_model(third)), expected)
    opened = peft.PeftModel.from_pretrained(load_model(base), third).eval()
    near(logits_of(opened), expected)
    assert (logits_of(load_model(second)) - expected).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_slow(["onsft", "onbase"], ["onsft"]))
def test_a_reward_adapter_scores_alike_here_in_peft_and_beside_a_policy_on_the_same_base(stack, name):
    folder, base = stack / "reward" / name, stack / "import_model" / "aaaa"
    scalar = load_scalar(folder)
    expected = response_scores(scalar, PACKED)
    assert scalar.shift == 0.375
    bare = type(scalar.classifier).from_pretrained(base, num_labels=1, attn_implementation="align")
    opened = peft.PeftModel.from_pretrained(bare, folder).eval()
    near(response_scores(ScalarModel(opened.base_model.model), PACKED) - 0.375, expected)
    for policy in (stack / "sft" / "aaaa", base):
        actors = LoraActors(policy, folder, LORA, CPU)
        judge = actors.reward_model(folder)
        assert isinstance(judge, AdapterScalar)
        near(response_scores(judge, PACKED), expected)
        near(actors.values(PACKED, RESPONSES), response_values(scalar, PACKED, RESPONSES))
        near(actors.ref_logprobs(PACKED, RESPONSES, 1.0), response_logprobs(load_model(policy), PACKED, RESPONSES))


def test_what_was_trained_on_the_policy_itself_costs_only_its_own_rank(stack):
    """The value model of a reward adapter on this very policy has the reward adapter's rank, not the sum of both."""
    actors = LoraActors(stack / "sft" / "aaaa", stack / "reward" / "onsft", LORA, CPU)
    ranks = {name: config.r for name, config in actors._adapters.base.peft_config.items()}
    assert ranks == {"policy": LORA.rank, "value": LORA.rank}


@torch.no_grad()
def test_a_policy_that_started_from_an_adapter_is_saved_whole(stack, tokenizer):
    policy = stack / "sft" / "aaaa"
    actors = LoraActors(policy, stack / "reward" / "onsft", LORA, CPU)
    trained(actors.policy_parameters, 8)
    with actors.policy_model() as model:
        expected = logits_of(model)
    actors.save(stack / "ppo" / "aaaa", tokenizer)
    near(logits_of(load_model(stack / "ppo" / "aaaa")), expected)


@torch.no_grad()
def test_rows_of_drawn_tokens_are_trained_once_and_kept_by_all_that_follow(stack, tokenizer):
    base, sft, reward = (stack / name for name in ("import_model/aaaa", "sft/aaaa", "reward/onsft"))
    before, after = (load_model(folder).get_input_embeddings().weight for folder in (base, sft))
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == [20, 21]
    assert "align_drawn_tokens" not in json.loads((sft / "config.json").read_text())
    assert torch.equal(load_scalar(reward).classifier.get_input_embeddings().weight, after)
    again = saved_adapter(sft, stack / "sft" / "again", tokenizer, 9)
    assert torch.equal(load_model(again).get_input_embeddings().weight, after)


def test_a_reward_model_on_another_base_is_a_model_of_its_own(stack):
    actors = LoraActors(stack / "sft" / "aaaa", stack / "reward" / "onsft", LORA, CPU)
    judge = actors.reward_model(stack / "reward" / "other")
    assert isinstance(judge, ScalarModel)
    with torch.no_grad():
        assert torch.equal(
            response_scores(judge, PACKED), response_scores(load_scalar(stack / "reward" / "other"), PACKED)
        )


@torch.no_grad()
def test_full_ppo_takes_adapters_as_plain_models(stack):
    sft, reward = stack / "sft" / "aaaa", stack / "reward" / "onsft"
    actors = load_actors(sft, reward, LoraConfig(), CPU)
    assert isinstance(actors, FullActors)
    near(actors.ref_logprobs(PACKED, RESPONSES, 1.0), response_logprobs(load_model(sft), PACKED, RESPONSES))
    assert all(p.requires_grad for p in (*actors.policy_parameters.values(), *actors.value_parameters.values()))


def test_an_adapter_whose_base_is_gone_says_which(stack, tokenizer, tmp_path):
    folder = tmp_path / "objects" / "sft" / "aaaa"
    shutil.copytree(stack / "sft" / "aaaa", folder)
    with pytest.raises(StoreError, match=r"aaaa: an adapter on import_model@aaaa, which is gone from the store"):
        load_model(folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_samples_with_the_policy_s_adapter_as_it_is_now(policy, reward, precision):
    actors, engine = lora_actors(policy, reward), LocalEngine(precision, Ends(0, 1))
    sampling = Sampling(max_new_tokens=6, batch_size=2)
    tolerance = 1e-5 if precision == "fp32" else 0.1
    drawn = []
    for seed in (5, 8):
        trained(actors.policy_parameters, seed)
        with actors.policy_model() as model:
            engine.load(model)
            found = dict(engine.generate(PROMPTS, range(4), sampling))
        ids = [found[i].ids for i in range(4)]
        got = [p for i in range(4) for p in found[i].logprobs]
        packed = pack_pairs(PROMPTS, ids, "cpu")
        with torch.no_grad():
            assert got == pytest.approx(actors.policy_likelihoods(packed, ids, 1.0, False).logprobs, abs=tolerance)
            assert (torch.tensor(got) - actors.ref_logprobs(packed, ids, 1.0)).abs().max() > 0.3
        drawn.append(ids)
    assert drawn[0] != drawn[1]
    assert torch.equal(logits_of(actors._adapters.base), logits_of(load_model(policy)))  # none is on after sampling
