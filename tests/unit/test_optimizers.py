"""Orthogonal updates, who decays, and learning-rate factors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from align.configs import ModelConfig, Pretrain
from align.models.build import build_model
from align.text.tokenizers import train_tokenizer
from align.training.optimizers import (
    Muon,
    adamw,
    clip_gradients,
    cosine_factor,
    inverse_square_root_factor,
    linear_factor,
    orthogonalize,
    pretraining_optimizers,
    set_learning_rate,
    warmup_of,
)

SHAPES = [(8, 32), (32, 8), (24, 64), (64, 24), (16, 48), (1, 20)]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def newton_schulz(matrix):
    """The quintic of Jordan's page, on one float64 matrix, term by term."""
    x = matrix.double() / matrix.double().pow(2).sum().sqrt()
    if x.shape[0] > x.shape[1]:
        return newton_schulz(matrix.T).T
    for _ in range(5):
        g = x @ x.T
        x = 3.4445 * x - 4.7750 * g @ x + 2.0315 * g @ g @ x
    return x


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the dog ran home"] * 3, 280)


def built(tokenizer, architecture="gpt2"):
    torch.manual_seed(0)
    cfg = ModelConfig(
        architecture=architecture, hidden_size=16, num_layers=2, num_heads=2, context_length=16, dropout=0.0
    )
    return build_model(cfg, tokenizer)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape):
    for seed in range(5):
        values = torch.linalg.svdvals(orthogonalize(1e-3 * normal(3, *shape, seed=seed)))
        assert values.min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_is_newton_schulz_matrix_by_matrix(shape):
    matrices = normal(3, *shape)
    for got, matrix in zip(orthogonalize(matrices), matrices, strict=True):
        torch.testing.assert_close(got.double(), newton_schulz(matrix), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_points_where_that_of_pytorch_does(shape):
    matrix = normal(*shape)
    theirs = _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()  # in bfloat16
    ours = orthogonalize(matrix[None])[0]
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999
    assert (ours - theirs).abs().max() < 0.05


def test_orthogonalize_keeps_singular_vectors_and_leaves_zero_at_zero():
    u, v = (torch.linalg.qr(normal(6, 6, seed=s))[0] for s in (0, 1))
    matrix = u @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 1.0, 0.8, 0.5])) @ v
    inner = u.T @ orthogonalize(matrix[None])[0] @ v.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-5
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 8)])
def test_muon_by_hand(shape):
    parameter = torch.nn.Parameter(normal(*shape, seed=5))
    optimizer = Muon([{"params": [parameter]}], lr=0.1, weight_decay=0.5, momentum=0.9)
    expected, mean = parameter.detach().double().clone(), torch.zeros(shape, dtype=torch.float64)
    for step in range(3):
        gradient = normal(*shape, seed=10 + step)
        parameter.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.double()
        ahead = 0.9 * mean + 0.1 * gradient.double()
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(max(shape)) * newton_schulz(ahead)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_muon_steps_as_that_of_pytorch_with_its_scale_of_adamw(shape):
    ours, theirs = (torch.nn.Parameter(normal(*shape, seed=5)) for _ in range(2))
    one = Muon([ours], lr=0.02, weight_decay=0.1)
    two = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    before = ours.detach().clone()
    for step in range(3):
        ours.grad, theirs.grad = normal(*shape, seed=step), normal(*shape, seed=step)
        one.step()
        two.step()
    a, b = (ours - before).flatten(), (theirs - before).flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999
    assert (a.norm() / b.norm()).item() == pytest.approx(1.0, abs=0.01)


def test_three_projections_side_by_side_are_made_orthogonal_apart():
    for shape in ((16, 48), (48, 16)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = normal(*shape)
        Muon([{"params": [parameter], "heads": 1}], lr=1.0, momentum=0.0).step()
        wide = shape[1] > shape[0]
        parts = zip(*(x.split(16, dim=int(wide)) for x in (parameter.detach(), parameter.grad)), strict=True)
        for update, gradient in parts:
            expected = -0.2 * math.sqrt(16) * newton_schulz(gradient)
            torch.testing.assert_close(update.double(), expected, rtol=1e-4, atol=1e-5)


def test_matrices_stepped_together_move_as_if_alone():
    shapes = [(8, 20), (20, 8), (8, 20), (12, 36), (9, 9), (12, 12)]
    many = [torch.nn.Parameter(normal(*s, seed=i)) for i, s in enumerate(shapes)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in many]
    for i, (a, b) in enumerate(zip(many, alone, strict=True)):
        a.grad = normal(*a.shape, seed=50 + i)
        b.grad = a.grad.clone()
        Muon([b], lr=0.1, weight_decay=0.1).step()
    Muon(many, lr=0.1, weight_decay=0.1).step()
    for a, b in zip(many, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    moved, still = torch.nn.Parameter(normal(4, 6)), torch.nn.Parameter(normal(4, 6, seed=1))
    moved.grad = normal(4, 6, seed=2)
    before = still.detach().clone()
    Muon([moved, still], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, before)


def test_adamw_decays_matrices_only(tokenizer):
    model = built(tokenizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw(model, 0.1, weight_decay=0.5).step()
    for name, p in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if p.dim() > 1 else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_optimizer(tokenizer, architecture, name):
    model = built(tokenizer, architecture)
    optimizers = pretraining_optimizers(model, Pretrain(optimizer=name, learning_rate=0.01))
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(tokenizer):
    model = built(tokenizer)
    muon, rest = pretraining_optimizers(model, Pretrain(optimizer="muon", learning_rate=0.01))
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    weights = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert held == {f"transformer.h.{i}.{w}.weight" for i in range(2) for w in weights}
    assert isinstance(rest, torch.optim.AdamW)


def test_frozen_and_left_out_parameters_are_not_in_adamw(tokenizer):
    model = built(tokenizer)
    frozen, left_out = model.transformer.wpe.weight, model.transformer.h[0].mlp.c_fc.weight
    frozen.requires_grad_(False)
    held = {id(p) for g in adamw(model, 0.1, but_not=[left_out]).param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters()} - {id(frozen), id(left_out)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_state_goes_on_bit_for_bit(tokenizer, name):
    def train(model, optimizers, steps):
        for step in steps:
            ids = torch.randint(5, 250, (2, 8), generator=torch.Generator().manual_seed(step))
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            for optimizer in optimizers:
                set_learning_rate(optimizer, 0.01 / (step + 1))
                optimizer.step()

    def optimizers_of(model):
        return pretraining_optimizers(model, Pretrain(optimizer=name, learning_rate=0.01))

    model = built(tokenizer)
    optimizers = optimizers_of(model)
    train(model, optimizers, range(3))
    weights = copy.deepcopy(model.state_dict())
    states = [copy.deepcopy(o.state_dict()) for o in optimizers]
    train(model, optimizers, range(3, 6))
    again = built(tokenizer)
    again.load_state_dict(weights)
    restored = optimizers_of(again)
    for optimizer, state in zip(restored, states, strict=True):
        optimizer.load_state_dict(state)
    train(again, restored, range(3, 6))
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_cosine_factor_at_its_ends():
    assert [cosine_factor(s, 100, 4, 0.1) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine_factor(52, 100, 4, 0.1) == pytest.approx(0.55, rel=1e-12)
    assert cosine_factor(100, 100, 4, 0.1) == pytest.approx(0.1, rel=1e-12)
    assert cosine_factor(0, 10, 0, 0.0) == 1.0
    assert cosine_factor(10, 10, 0, 0.0) == pytest.approx(0.0, abs=1e-15)


def test_cosine_factor_falls_after_the_warmup():
    factors = [cosine_factor(s, 50, 5, 0.2) for s in range(5, 51)]
    assert factors == sorted(factors, reverse=True)
    assert len(set(factors)) == 46


@pytest.mark.parametrize("warmup", [0.002, 0.1])
def test_linear_factor_is_that_of_the_paper_s_code(warmup):
    """Linear to 1 at `warmup` of training and times what is left of it, but for its first step, where that is 0."""
    total = 2999
    for x in (0.001, 0.05, 0.5, 0.999):
        expected = (x / warmup if x <= warmup else 1.0) * (1 - x)
        assert linear_factor(round(x * (total + 1)) - 1, total, warmup) == pytest.approx(expected, rel=1e-9)
    factors = [linear_factor(step, total, warmup) for step in range(total)]
    assert min(factors) > 0
    assert factors[-1] == pytest.approx(1 / 3000, rel=1e-9)
    assert linear_factor(0, 1, warmup) == pytest.approx(0.5)
    assert linear_factor(4, 9, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [(0, 100, 0), (7, 100, 7), (0.1, 100, 10), (0.03, 90, 3), (1, 100, 1), (200, 100, 200)],
)
def test_a_warm_up_below_1_is_a_fraction_of_the_steps(steps, total, expected):
    assert warmup_of(steps, total) == expected


def test_set_learning_rate_sets_every_group(tokenizer):
    optimizer = adamw(built(tokenizer), 0.1)
    set_learning_rate(optimizer, 0.025)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.025]


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_clipping_is_torch_s(size):
    ours, theirs = ([torch.nn.Parameter(normal(4, 3)) for _ in range(3)] for _ in range(2))
    for i, pair in enumerate(zip(ours, theirs, strict=True)):
        for parameter in pair:
            parameter.grad = size * normal(4, 3, seed=i)
    norm = clip_gradients(ours, 1.0)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)), rel=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_t5_s_factor_is_flat_and_then_falls():
    assert [inverse_square_root_factor(n, 10_000) for n in (0, 9_999, 10_000)] == [1.0, 1.0, 1.0]
    assert 0.01 * inverse_square_root_factor(10**6, 10_000) == pytest.approx(0.001)


def test_a_cosine_stays_at_its_end():
    assert cosine_factor(400, 100, 4, 0.1) == pytest.approx(0.1)
    assert cosine_factor(3e8, 260e9, 375e6, 0.1) == pytest.approx(0.8)  # GPT-3's warm-up, by tokens
    assert cosine_factor(375e6, 260e9, 375e6, 0.1) == 1.0
