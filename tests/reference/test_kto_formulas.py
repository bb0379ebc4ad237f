"""The loss of KTO beside TRL's own trainer, and identities."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import KTOTrainer, unpair_preference_dataset

from align.losses.kto import kl_baseline, kto_loss, labels_of_ranks

LABELS = [True, False, True, False, True]
LENGTHS = [[5, 2, 3, 6, 4], [6, 5, 2, 3, 6]]  # of the responses, and of the mismatched ones
MASKS = [torch.arange(7)[None, :] < torch.tensor([[n] for n in lengths]) for lengths in LENGTHS]
WEIGHTS = [(1.0, 1.0), (1.5, 0.5)]


def drawn(shift: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs per token [5, T] under the policy and the reference, float64, of responses and of mismatched ones.

    Args:
        shift: what the policy gives a token of a mismatched response beyond the reference.
    """
    rng = torch.Generator().manual_seed(0)
    policy, reference = ([-torch.rand(m.shape, generator=rng, dtype=torch.float64) for m in MASKS] for _ in range(2))
    policy[1] = reference[1] + shift * torch.rand(policy[1].shape, generator=rng, dtype=torch.float64)
    return [(p * m).requires_grad_() for p, m in zip(policy, MASKS, strict=True)], [
        r * m for r, m in zip(reference, MASKS, strict=True)
    ]


def trl_loss(
    loss: str, beta: float, weights: tuple[float, float], policy: list[torch.Tensor], reference: list[torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """The loss and the KL that TRL's trainer makes of these log-probs: its own method, without a model."""
    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=loss == "kto",
        loss_type=loss,
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    fake._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(fake, model, batch)

    def model(input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        # The mismatched sequences hold the token 1, the others the token 0.
        logprobs = policy[int(input_ids[0, 0])]
        return SimpleNamespace(log_probs=logprobs, entropy=logprobs.detach(), mean_logits=logprobs.detach())

    first = torch.zeros(5, 1, dtype=torch.long)
    inputs = {"label": torch.tensor(LABELS), "ref_logps": reference[0].sum(1), "ref_KL_logps": reference[1].sum(1)}
    for token, (prefix, mask) in enumerate(zip(("", "KL_"), MASKS, strict=True)):
        inputs |= {
            f"{prefix}input_ids": torch.full((5, 8), token),
            f"{prefix}attention_mask": torch.ones(5, 8, dtype=torch.long),
            f"{prefix}completion_mask": torch.cat([first, mask.long()], 1),
        }
    found: torch.Tensor = KTOTrainer._compute_loss(fake, model, inputs, return_outputs=False)
    return found, fake._metrics["train"]["kl"][0]


def own_loss(
    loss: str, beta: float, weights: tuple[float, float], policy: list[torch.Tensor], reference: list[torch.Tensor]
) -> tuple[torch.Tensor, float]:
    ratios, mismatched = ((p - r).sum(1) for p, r in zip(policy, reference, strict=True))
    baseline = kl_baseline(mismatched) if loss == "kto" else torch.zeros(())
    return kto_loss(ratios, torch.tensor(LABELS), baseline, beta, *weights).mean(), float(baseline)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("loss", "shift"), [("kto", 1.0), ("kto", -1.0), ("apo_zero_unpaired", 1.0)])
def test_the_loss_its_gradient_and_the_baseline_are_trl_s(
    loss: str, shift: float, weights: tuple[float, float], beta: float
) -> None:
    """With a shift below 0 the estimate of the KL is below 0, and the baseline is 0."""
    policy, reference = drawn(shift)
    (ours, mine), (theirs, kl) = (f(loss, beta, weights, policy, reference) for f in (own_loss, trl_loss))
    assert mine == pytest.approx(kl, rel=1e-6, abs=1e-12)
    assert (mine > 0) == (loss == "kto" and shift > 0)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    (gradient,), (other,) = (torch.autograd.grad(each, policy[0]) for each in (ours, theirs))
    torch.testing.assert_close(gradient * MASKS[0], other * MASKS[0], rtol=1e-6, atol=1e-12)


RATIOS = torch.tensor([0.7, -1.3, 2.0, 0.1, -0.4], dtype=torch.float64)
DESIRABLE = torch.tensor(LABELS)


def test_the_gradient_is_that_of_finite_differences() -> None:
    def loss(ratios: torch.Tensor) -> torch.Tensor:
        return kto_loss(ratios, DESIRABLE, 0.3, 0.8, 1.2, 0.7).sum()

    assert torch.autograd.gradcheck(loss, RATIOS.clone().requires_grad_(), rtol=1e-6, atol=1e-9)


def test_the_baseline_gets_no_gradient() -> None:
    ratios, mismatched = RATIOS.clone().requires_grad_(), (RATIOS + 1).requires_grad_()
    baseline = (2 * mismatched).mean()  # not from `kl_baseline`: the loss alone must keep the gradient from it
    kto_loss(ratios, DESIRABLE, baseline, 0.5).sum().backward()
    assert ratios.grad is not None
    assert mismatched.grad is None
    assert not kl_baseline(mismatched).requires_grad
    assert kl_baseline(mismatched).item() == pytest.approx(1.22)
    assert kl_baseline(-mismatched - 9).item() == 0


def test_for_a_small_beta_the_gradient_is_that_of_the_weighted_likelihoods() -> None:
    """gradient / beta -> -1/4 of the gradient of the log-probs, with the sign and the weight of the label."""
    ratios = RATIOS.clone().requires_grad_()
    kto_loss(ratios, DESIRABLE, 0.4, 1e-7, 2.0, 3.0).sum().backward()
    expected = torch.tensor([-0.5, 0.75, -0.5, 0.75, -0.5], dtype=torch.float64)
    torch.testing.assert_close(ratios.grad / 1e-7, expected, rtol=1e-6, atol=0)


def test_at_the_baseline_each_loss_is_half_its_weight_and_weights_scale_it() -> None:
    at = kto_loss(torch.full((5,), 0.3), DESIRABLE, 0.3, 0.1, 1.4, 0.6)
    assert at.tolist() == pytest.approx([0.7, 0.3, 0.7, 0.3, 0.7])
    plain = kto_loss(RATIOS, DESIRABLE, 0.2, 0.9)
    torch.testing.assert_close(
        kto_loss(RATIOS, DESIRABLE, 0.2, 0.9, 2.0, 5.0), plain * torch.where(DESIRABLE, 2.0, 5.0)
    )


def test_a_turned_label_gives_the_complement() -> None:
    both = kto_loss(RATIOS, DESIRABLE, 0.2, 0.9) + kto_loss(RATIOS, ~DESIRABLE, 0.2, 0.9)
    torch.testing.assert_close(both, torch.ones_like(RATIOS))


@pytest.mark.parametrize(
    ("ranks", "labels"),
    [
        ([1, 2], [True, False]),
        ([2, 1, 3], [None, True, False]),
        ([1, 2, 3, 4], [True, True, False, False]),
        ([1, 1, 2], [True, True, False]),
        ([1, 2, 2, 2], [True, False, False, False]),
        ([1, 2, 2, 3], [True, None, None, False]),
        ([1, 1, 1], [None, None, None]),
    ],
)
def test_labels_are_above_and_below_the_middle(ranks: list[int], labels: list[bool | None]) -> None:
    assert labels_of_ranks(ranks) == labels
    assert labels_of_ranks([-rank for rank in ranks]) == [None if label is None else not label for label in labels]


def test_a_pair_is_unpaired_as_trl_does() -> None:
    pairs = Dataset.from_list([{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    rows = unpair_preference_dataset(pairs)
    theirs = {row["completion"]: row["label"] for row in rows}
    assert dict(zip(["good", "bad"], labels_of_ranks([1, 2]), strict=True)) == theirs
