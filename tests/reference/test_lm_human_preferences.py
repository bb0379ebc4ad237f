"""PPO's arithmetic against that of OpenAI's lm-human-preferences, written again here in NumPy, float64.

There, all responses have one length and nothing is masked. So a formula is applied to each row's valid tokens alone,
and one that takes statistics to the valid tokens of all rows end to end. Padding is NaN: nothing may read it.
Lines are those of lm_human_preferences/train_policy.py and lm_human_preferences/utils/core.py on its main branch.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.losses.lm import head_logprobs
from align.losses.ppo import (
    correlation,
    explained_variance,
    gae,
    importance_weights,
    kl_loss,
    masked_mean,
    masked_var,
    next_kl_coef,
    normalize,
    policy_loss,
    rescale,
    token_rewards,
    value_loss,
)

Rows = list[np.ndarray]

SEEDS = range(4)


# -- theirs --------------------------------------------------------------------------------------------------------


def whiten(values: np.ndarray, shift_mean: bool = True) -> np.ndarray:
    """utils/core.py, `whiten`, about line 331: the variance is the population's (tf.nn.moments), the 1e-8 inside."""
    mean = values.mean()
    whitened = (values - mean) / np.sqrt(values.var(ddof=0) + 1e-8)
    return whitened if shift_mean else whitened + mean


def updated_kl_coef(value: float, current: float, n_steps: int, target: float, horizon: float) -> float:
    """train_policy.py, `AdaptiveKLController.update`, line 120."""
    return value * (1 + np.clip(current / target - 1, -0.2, 0.2) * n_steps / horizon)


def compute_rewards(score: float, logprobs: np.ndarray, ref_logprobs: np.ndarray, kl_coef: float) -> np.ndarray:
    """train_policy.py, `PPOTrainer.compute_rewards`, line 149."""
    rewards = -kl_coef * (logprobs - ref_logprobs)
    rewards[-1] += score
    return rewards


def advantages_and_returns(
    rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """train_policy.py, `PPOTrainer.loss`, lines 327 to 336: past the last token the value is 0."""
    advantages, after = np.zeros_like(values), 0.0
    for t in range(len(values) - 1, -1, -1):
        value_after = values[t + 1] if t + 1 < len(values) else 0.0
        after = rewards[t] + gamma * value_after - values[t] + gamma * lam * after
        advantages[t] = after
    return advantages, advantages + values


def value_terms(
    vpred: np.ndarray, values: np.ndarray, returns: np.ndarray, cliprange_value: float
) -> tuple[float, float]:
    """vf_loss and vf_clipfrac of train_policy.py, `PPOTrainer.loss`, lines 343 to 348."""
    plain = (vpred - returns) ** 2
    clipped = (np.clip(vpred, values - cliprange_value, values + cliprange_value) - returns) ** 2
    return 0.5 * np.maximum(plain, clipped).mean(), (clipped > plain).mean()


def policy_terms(
    logprob: np.ndarray, old_logprob: np.ndarray, advantages: np.ndarray, cliprange: float
) -> tuple[float, float]:
    """pg_loss and pg_clipfrac of train_policy.py, `PPOTrainer.loss`, lines 350 to 355."""
    ratio = np.exp(logprob - old_logprob)
    plain, clipped = -advantages * ratio, -advantages * np.clip(ratio, 1 - cliprange, 1 + cliprange)
    return np.maximum(plain, clipped).mean(), (clipped > plain).mean()


def approxkl(logprob: np.ndarray, old_logprob: np.ndarray) -> float:
    """train_policy.py, `PPOTrainer.loss`, line 360."""
    return 0.5 * np.square(logprob - old_logprob).mean()


def var_explained(vpred: np.ndarray, returns: np.ndarray) -> float:
    """train_policy.py, `record_step_stats`, line 241, of `error` and `var`, lines 362 to 370."""
    return 1 - np.square(vpred - returns).mean() / returns.var(ddof=0)


def logsumexp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1)
    return top + np.log(np.exp(logits - top[..., None]).sum(-1))


def logprobs_from_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """utils/core.py, `logprobs_from_logits`, about line 291."""
    return np.take_along_axis(logits, labels[:, None], 1)[:, 0] - logsumexp(logits)


def entropy_from_logits(logits: np.ndarray) -> np.ndarray:
    """utils/core.py, `entropy_from_logits`, about line 286."""
    total = logsumexp(logits)
    return total - (np.exp(logits - total[..., None]) * logits).sum(-1)


# -- ours in ragged batches ----------------------------------------------------------------------------------------


def ragged(seed: int) -> tuple[np.random.Generator, list[int]]:
    rng = np.random.default_rng(seed)
    return rng, [*rng.integers(2, 12, 6).tolist(), 1]


def draw(rng: np.random.Generator, lengths: list[int], scale: float = 1.0) -> Rows:
    return [rng.normal(0, scale, n) for n in lengths]


def padded(rows: Rows, fill: float = np.nan) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.float64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(row)
    return out


def mask_of(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]


def split(flat: np.ndarray, lengths: list[int]) -> Rows:
    return np.split(flat, np.cumsum(lengths)[:-1])


def agree(got: torch.Tensor, expected: Rows) -> None:
    """The same where tokens count, 0 elsewhere."""
    torch.testing.assert_close(got, padded(expected, 0.0), rtol=1e-10, atol=1e-10)


def same(got: torch.Tensor, expected: float) -> None:
    assert got.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_moments_are_those_of_the_valid_tokens(seed):
    rng, lengths = ragged(seed)
    rows = draw(rng, lengths, 3.0)
    flat = np.concatenate(rows)
    same(masked_mean(padded(rows), mask_of(lengths)), flat.mean())
    same(masked_var(padded(rows), mask_of(lengths)), flat.var(ddof=0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [2.0, 1e-4])
def test_normalize_and_rescale_are_whiten(seed, scale):
    rng, lengths = ragged(seed)
    rows = [0.5 + row for row in draw(rng, lengths, scale)]
    flat = np.concatenate(rows)
    agree(normalize(padded(rows), mask_of(lengths)), split(whiten(flat), lengths))
    agree(rescale(padded(rows), mask_of(lengths)), split(whiten(flat, shift_mean=False), lengths))


def test_whitening_divides_by_n_with_1e_8_under_the_root():
    x = torch.tensor([[1e-4, -1e-4]], dtype=torch.float64)  # variance over n: 1e-8; over n - 1: 2e-8
    got = normalize(x, torch.ones(1, 2, dtype=torch.bool))
    assert got[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-12)


@pytest.mark.parametrize("kl_coef", [0.0, 0.15])
@pytest.mark.parametrize("seed", SEEDS)
def test_token_rewards_are_compute_rewards(seed, kl_coef):
    rng, lengths = ragged(seed)
    logprobs, ref, scores = draw(rng, lengths), draw(rng, lengths), rng.normal(size=len(lengths))
    got = token_rewards(torch.from_numpy(scores), padded(logprobs), padded(ref), mask_of(lengths), kl_coef)
    agree(got, [compute_rewards(s, a, b, kl_coef) for s, a, b in zip(scores, logprobs, ref, strict=True)])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
@pytest.mark.parametrize("seed", SEEDS)
def test_gae_is_their_loop_over_each_row(seed, gamma, lam):
    rng, lengths = ragged(seed)
    rewards, values = draw(rng, lengths), draw(rng, lengths)
    expected = [advantages_and_returns(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    got = gae(padded(rewards), padded(values), mask_of(lengths), gamma, lam)
    agree(got.advantages, [a for a, _ in expected])
    agree(got.returns, [r for _, r in expected])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_clipped_policy_loss_and_its_clip_fraction(seed):
    rng, lengths = ragged(seed)
    new, old, advantages = draw(rng, lengths, 0.3), draw(rng, lengths, 0.3), draw(rng, lengths)
    loss, clipfrac = policy_terms(*map(np.concatenate, (new, old, advantages)), 0.2)
    got = policy_loss(padded(new), padded(old), padded(advantages), 0.2)
    same(masked_mean(got.losses, mask_of(lengths)), loss)
    same(masked_mean(got.clipped.double(), mask_of(lengths)), clipfrac)
    assert 0 < clipfrac < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_clipped_value_loss_and_its_clip_fraction(seed):
    rng, lengths = ragged(seed)
    new, old, returns = draw(rng, lengths), draw(rng, lengths), draw(rng, lengths)
    loss, clipfrac = value_terms(*map(np.concatenate, (new, old, returns)), 0.2)
    got = value_loss(padded(new), padded(old), padded(returns), 0.2)
    same(masked_mean(got.losses, mask_of(lengths)), loss)
    same(masked_mean(got.clipped.double(), mask_of(lengths)), clipfrac)
    assert 0 < clipfrac < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_loss_from_scores_to_two_numbers(seed):
    rng, lengths = ragged(seed)
    mask, scores = mask_of(lengths), rng.normal(2.0, 1.0, len(lengths))
    old, ref, values, new, vpred = (draw(rng, lengths, scale) for scale in (0.5, 0.5, 0.5, 0.5, 0.5))

    rewards = [compute_rewards(s, a, b, 0.1) for s, a, b in zip(scores, old, ref, strict=True)]
    rewards = split(whiten(np.concatenate(rewards), shift_mean=False), lengths)
    pairs = [advantages_and_returns(r, v, 1.0, 0.95) for r, v in zip(rewards, values, strict=True)]
    advantages, returns = (np.concatenate(part) for part in zip(*pairs, strict=True))
    expected_policy, _ = policy_terms(np.concatenate(new), np.concatenate(old), whiten(advantages), 0.2)
    expected_value, _ = value_terms(np.concatenate(vpred), np.concatenate(values), returns, 0.2)

    per_token = rescale(token_rewards(torch.from_numpy(scores), padded(old), padded(ref), mask, 0.1), mask)
    got = gae(per_token, padded(values), mask, 1.0, 0.95)
    policy = policy_loss(padded(new), padded(old), normalize(got.advantages, mask), 0.2)
    value = value_loss(padded(vpred), padded(values), got.returns, 0.2)
    same(masked_mean(policy.losses, mask), expected_policy)
    same(masked_mean(value.losses, mask), expected_value)


@pytest.mark.parametrize("seed", SEEDS)
def test_half_the_squared_log_ratio_is_approxkl(seed):
    rng, lengths = ragged(seed)
    new, old = draw(rng, lengths, 0.3), draw(rng, lengths, 0.3)
    got = masked_mean(kl_loss(padded(new), padded(old), "k2"), mask_of(lengths))
    same(got, approxkl(np.concatenate(new), np.concatenate(old)))


@pytest.mark.parametrize("seed", SEEDS)
def test_explained_variance_is_theirs_plus_the_share_of_the_mean_error(seed):
    """They count a constant error against the value model, we do not; without one, the two are the same number."""
    rng, lengths = ragged(seed)
    values, returns = draw(rng, lengths), draw(rng, lengths, 2.0)
    left, right, mask = np.concatenate(values), np.concatenate(returns), mask_of(lengths)
    share = (left - right).mean() ** 2 / right.var()
    same(explained_variance(padded(values), padded(returns), mask), var_explained(left, right) + share)
    centred = [row - (left - right).mean() for row in values]
    expected = var_explained(np.concatenate(centred), right)
    same(explained_variance(padded(centred), padded(returns), mask), expected)
    assert share > 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_correlation_is_pearson_s_and_0_of_a_constant(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(5, 2, 20), rng.normal(-1, 3, 20)
    x = x + 0.5 * y
    same(correlation(torch.from_numpy(x), torch.from_numpy(y)), np.corrcoef(x, y)[0, 1])
    assert correlation(torch.full((20,), 3.0), torch.from_numpy(y).float()).item() == 0.0


def test_the_kl_coefficient_follows_their_controller():
    rng = np.random.default_rng(0)
    coefficient = expected = 0.2
    for kl in [0.0, 6.0, 30.0, -1.0, *rng.uniform(4.5, 7.5, 50)]:
        coefficient = next_kl_coef(coefficient, float(kl), 6.0, 10_000.0, 512)
        expected = updated_kl_coef(expected, kl, 512, 6.0, 10_000.0)
        assert coefficient == pytest.approx(expected, rel=1e-12)


def test_the_kl_coefficient_of_one_step_by_hand():
    assert next_kl_coef(0.2, 6.6, 6.0, 1000.0, 100) == pytest.approx(0.2 * 1.01, rel=1e-12)
    assert next_kl_coef(0.2, 60.0, 6.0, 1000.0, 100) == pytest.approx(0.2 * 1.02, rel=1e-12)
    assert next_kl_coef(0.2, 0.0, 6.0, 1000.0, 100) == pytest.approx(0.2 * 0.98, rel=1e-12)


# -- log-probs of a head -------------------------------------------------------------------------------------------

TOKENS, WIDTH, VOCABULARY = 20, 8, 13


def head(seed: int, biased: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, weight = rng.normal(size=(TOKENS, WIDTH)), rng.normal(0, 0.3, (VOCABULARY, WIDTH))
    bias = rng.normal(0, 0.5, VOCABULARY) if biased else None
    return hidden, weight, bias, rng.integers(0, VOCABULARY, TOKENS)


def logits_of(hidden: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, temperature: float) -> np.ndarray:
    """policy.py, `Policy.analyze_responses_op`, about line 118: logits are divided by the temperature first."""
    return (hidden @ weight.T + (0.0 if bias is None else bias)) / temperature


def chunked(monkeypatch, rows: int) -> None:
    monkeypatch.setattr("align.losses.lm.CHUNK", rows * VOCABULARY)


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("biased", [False, True])
def test_head_logprobs_and_entropies(monkeypatch, biased, temperature, rows):
    chunked(monkeypatch, rows)
    hidden, weight, bias, labels = head(0, biased)
    logits = logits_of(hidden, weight, bias, temperature)
    tensors = [None if x is None else torch.from_numpy(x) for x in (hidden, weight, bias, labels)]
    got = head_logprobs(*tensors, temperature, with_entropy=True)
    np.testing.assert_allclose(got.logprobs.numpy(), logprobs_from_logits(logits, labels), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.entropies.numpy(), entropy_from_logits(logits), rtol=1e-6, atol=1e-6)
    plain = head_logprobs(*tensors, temperature)
    assert torch.equal(plain.logprobs, got.logprobs)
    assert plain.entropies.tolist() == [0.0] * TOKENS


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_gradient_of_a_head_is_the_slope_of_their_formulas(monkeypatch, with_entropy, rows):
    chunked(monkeypatch, rows)
    hidden, weight, bias, labels = head(1, biased=True)
    rng = np.random.default_rng(2)
    by_logprob, by_entropy = rng.normal(size=TOKENS), rng.normal(size=TOKENS) * with_entropy

    def theirs(parts: list[np.ndarray]) -> float:
        logits = logits_of(*parts, 0.7)
        return by_logprob @ logprobs_from_logits(logits, labels) + by_entropy @ entropy_from_logits(logits)

    parts = [hidden, weight, bias]
    tensors = [torch.from_numpy(x).clone().requires_grad_() for x in parts]
    got = head_logprobs(*tensors, torch.from_numpy(labels), 0.7, with_entropy)
    (
        got.logprobs @ torch.from_numpy(by_logprob).float() + got.entropies @ torch.from_numpy(by_entropy).float()
    ).backward()
    for place, tensor in enumerate(tensors):
        slopes = np.zeros_like(parts[place])
        for at in np.ndindex(slopes.shape):
            nudged = [[x.copy() for x in parts] for _ in range(2)]
            nudged[0][place][at] += 1e-5
            nudged[1][place][at] -= 1e-5
            slopes[at] = (theirs(nudged[0]) - theirs(nudged[1])) / 2e-5
        np.testing.assert_allclose(tensor.grad.numpy(), slopes, rtol=1e-5, atol=1e-5)


# -- what lm-human-preferences has no formula for ------------------------------------------------------------------


def expected_gradient(losses, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Over all tokens, each as often as the policy draws it: the mean of d losses(token) / d logits."""
    logits = policy.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    (logprobs.detach().exp() * losses(logprobs, reference.log_softmax(0))).sum().backward()
    return logits.grad


def categoricals(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    return policy, reference


def exact_kl(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (policy.softmax(0) * (policy.log_softmax(0) - reference.log_softmax(0))).sum()


@pytest.mark.parametrize("form", ["k2", "k3"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_loss_has_the_gradient_of_the_kl_in_expectation(seed, form):
    policy, reference = categoricals(seed)
    logits = policy.clone().requires_grad_()
    exact_kl(logits, reference).backward()
    got = expected_gradient(lambda new, ref: kl_loss(new, ref, form), policy, reference)
    torch.testing.assert_close(got, logits.grad, rtol=1e-10, atol=1e-12)
    assert got.abs().max() > 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_k3_has_the_gradient_of_the_other_kl(seed):
    """That of KL(reference || policy), p - q: why its value alone is taken."""
    policy, reference = categoricals(seed)
    got = expected_gradient(lambda new, ref: torch.exp(ref - new) - 1 + (new - ref), policy, reference)
    torch.testing.assert_close(got, policy.softmax(0) - reference.softmax(0), rtol=1e-10, atol=1e-12)
    ours = expected_gradient(lambda new, ref: kl_loss(new, ref, "k3"), policy, reference)
    assert (got - ours).abs().max() > 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_the_value_of_k3_is_the_kl_in_expectation_and_that_of_k2_is_half_a_square(seed):
    policy, reference = categoricals(seed)
    new, ref = policy.log_softmax(0), reference.log_softmax(0)
    k3, k2 = kl_loss(new, ref, "k3"), kl_loss(new, ref, "k2")
    assert (k3 >= 0).all()
    same((new.exp() * k3).sum(), exact_kl(policy, reference).item())
    torch.testing.assert_close(k2, 0.5 * (new - ref) ** 2, rtol=1e-12, atol=0)
    assert abs((new.exp() * k2).sum().item() - exact_kl(policy, reference).item()) > 1e-3


def test_importance_weights_by_hand():
    trainer = torch.tensor([[0.5, 0.1], [0.3, 0.2]], dtype=torch.float64).log()
    sampler = torch.tensor([[0.25, 0.4], [0.01, 0.2]], dtype=torch.float64).log()
    got = importance_weights(trainer, sampler, 4.0)
    torch.testing.assert_close(got, torch.tensor([[2.0, 0.25], [4.0, 1.0]], dtype=torch.float64), rtol=1e-12, atol=0)


def test_importance_weights_of_impossible_tokens_are_finite():
    got = importance_weights(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]), 2.0)
    assert got.tolist() == pytest.approx([2.0, np.exp(-20.0)], rel=1e-6)
