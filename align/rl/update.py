"""PPO's update: from a scored rollout to new weights of the policy and of the value model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from align.configs import Ppo, filled
from align.evals.text_loss import num_targets
from align.losses.ppo import importance_weights, kl_loss, policy_loss, value_loss
from align.models.packed import pack_pairs, response_logprobs
from align.rl.advantages import Targets
from align.rl.models import Actors
from align.rl.rollouts import Layout, Rollouts, packed_group
from align.runtime.job import Job
from align.runtime.log import Metrics
from align.runtime.memory import give_back_freed_memory
from align.store.checkpoints import restore_parameters
from align.text.tokens import TextRows
from align.training.loss_guard import stop_unless_skipped
from align.training.optimizers import adamw_for, clip_gradients, set_learning_rate
from align.training.row_order import RowOrder

Totals = dict[str, torch.Tensor]

_POLICY = ("policy/loss", "ppo/clip_fraction", "ppo/approx_kl", "ppo/ratio")
_VALUE = ("value/loss", "value/clip_fraction")
# Endings of the metrics whose gradients are already summed over processes.
_OF_ALL_PROCESSES = ("grad_norm", "grad_cosine", "policy_share")


class Plan(NamedTuple):
    """One iteration's update."""

    iteration: int
    rollouts: Rollouts
    targets: Targets
    layouts: Sequence[Layout]  # one per pass over the rollout
    kl_coef: float
    policy_rate: float  # fraction of the peak learning rate
    value_rate: float
    moves_policy: bool
    moves_value: bool


class Learner:
    """An optimizer per model, the policy's average, and the pretraining text of PPO-ptx.

    Args:
        text: rows of tokens; None without PPO-ptx.
    """

    def __init__(self, cfg: Ppo, actors: Actors, job: Job, text: TextRows | None):
        self._cfg, self._actors, self._job, self._text = cfg, actors, job, text
        self._text_order = RowOrder(
            0 if text is None else len(text), cfg.random_seed, "ppo", "text"
        )
        self._peaks = {"policy": filled(cfg.learning_rate)}
        self._parameters = {"policy": list(actors.policy_parameters.values())}
        if cfg.has_value_model:
            self._peaks["value"] = filled(cfg.value_learning_rate)
            self._parameters["value"] = list(actors.value_parameters.values())
        self._optimizers = {
            name: adamw_for(
                parameters, self._peaks[name], cfg.betas, cfg.weight_decay, cfg.adam_epsilon
            )
            for name, parameters in self._parameters.items()
        }
        self._average = (
            None
            if cfg.ema_decay is None
            else [p.detach().clone() for p in actors.policy_parameters.values()]
        )

    def state(self) -> dict[str, Any]:
        """Return everything that an update changes."""
        return {
            "policy": self._actors.policy_parameters,
            "value": self._actors.value_parameters,
            "optimizers": {
                name: optimizer.state_dict() for name, optimizer in self._optimizers.items()
            },
            "average": self._average,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        restore_parameters(self._actors.policy_parameters, state["policy"])
        restore_parameters(self._actors.value_parameters, state["value"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self._average is not None:
            for mine, saved_average in zip(self._average, state["average"], strict=True):
                mine.copy_(saved_average)

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the policy's weights by their average, after training."""
        assert self._average is not None
        for parameter, average in zip(self._parameters["policy"], self._average, strict=True):
            parameter.copy_(average)

    def update(self, plan: Plan) -> Metrics:
        """Take one optimizer step per minibatch; return the metrics' means over the steps.

        The value model's loss is the mean over all response tokens of a minibatch, and so is the
        policy's, if `plan.targets` does not say otherwise. The update ends early once a minibatch
        exceeds `stop_kl_per_token`.
        """
        steps = 0
        fractions = {"policy": plan.policy_rate, "value": plan.value_rate}
        rates = {name: peak * fractions[name] for name, peak in self._peaks.items()}
        for name, rate in rates.items():
            set_learning_rate(self._optimizers[name], rate)
        seen = {f"{name}/learning_rate": [rate] for name, rate in rates.items()}
        for number, minibatch in enumerate(
            minibatch for layout in plan.layouts for minibatch in layout
        ):
            self._job.resume.stop_if_asked()
            moved: Totals = {}
            # One model after the other, so that only one gradient is in memory.
            for name in self._moving(plan, minibatch):
                if number == 0:
                    give_back_freed_memory()  # freed by sampling, scoring or the other model
                totals = self._gradients(plan, name, minibatch, number)
                if not all(torch.isfinite(value) for value in totals.values()):
                    self._refuse(plan, name, minibatch, totals)
                    break
                if self._is_far(totals):
                    self._optimizers[name].zero_grad()
                    return _means(seen, steps)
                self.take_step(name)
                moved |= totals
            steps += bool(moved)
            for key, value in moved.items():
                seen.setdefault(key, []).append(float(value))
        return _means(seen, steps)

    def _is_far(self, totals: Totals) -> bool:
        """Return whether the policy has moved further than `stop_kl_per_token` allows."""
        limit = self._cfg.stop_kl_per_token
        return (
            limit is not None
            and "ppo/approx_kl" in totals
            and float(totals["ppo/approx_kl"]) > limit
        )

    # -- gradients ---------------------------------------------------------------------------------

    def _gradients(self, plan: Plan, name: str, minibatch: list[list[int]], number: int) -> Totals:
        """Compute one model's gradient for one minibatch, clipped, over all processes.

        Returns:
            The metrics of the minibatch.
        """
        job, parameters = self._job, self._parameters[name]
        totals = self.backward(plan, name, minibatch)
        mixes = self._text is not None and name == "policy"
        if mixes:  # this also sums over processes, and clips the two gradients separately
            totals |= self._mix_text(plan.iteration, number)
        for key, part in totals.items():
            if not key.endswith(_OF_ALL_PROCESSES):
                job.group.all_reduce(part)
        if not mixes:
            job.group.sum_gradients(parameters)
            totals[f"{name}/grad_norm"] = torch.tensor(
                clip_gradients(parameters, self._cfg.max_grad_norm)
            )
        return totals

    def backward(self, plan: Plan, name: str, minibatch: list[list[int]]) -> Totals:
        """Add the gradient of this process's part; return its part of the mean metrics."""
        samples, job = plan.rollouts.samples, self._job
        mine = [i for group in minibatch for i in group]
        count = torch.tensor(
            [
                float(sum(len(samples.responses[i]) for i in mine)),
                float(sum(plan.targets.units[i] for i in mine)),
            ]
        ).to(job.device)
        job.group.all_reduce(count)
        names, terms = (
            (_POLICY, self._policy_terms) if name == "policy" else (_VALUE, self._value_terms)
        )
        totals = {key: torch.zeros((), device=job.device) for key in names}
        for group in minibatch:
            for key, part in zip(names, terms(plan, group, count), strict=True):
                totals[key] += part
        return totals

    def _policy_terms(
        self, plan: Plan, group: list[int], count: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Add the policy's gradient for one micro-batch.

        Args:
            count: `[2]`, the minibatch's tokens, and the sum of its responses' units.

        Returns:
            Its metrics, in the order of `_POLICY`.
        """
        cfg, rollouts = self._cfg, plan.rollouts
        packed, responses, mask = packed_group(rollouts.samples, group, self._job.device)
        with self._job.compute(cfg.precision).autocast():
            new, entropy = self._actors.policy_likelihoods(
                packed, responses, cfg.temperature, cfg.entropy_coef != 0
            )
        old = rollouts.logprobs[group][mask]
        policy = policy_loss(
            new,
            old,
            plan.targets.advantages[group][mask],
            cfg.clip_range,
            cfg.clip_range_high,
        )
        losses = policy.losses
        if cfg.importance_cap is not None:
            losses = losses * importance_weights(
                old, rollouts.samples.sampled_logprobs[group][mask], cfg.importance_cap
            )
        if cfg.kl_form != "reward":
            losses = losses + plan.kl_coef * kl_loss(
                new, rollouts.ref_logprobs[group][mask], cfg.kl_form
            )
        if cfg.entropy_coef:
            losses = losses - cfg.entropy_coef * entropy
        if plan.targets.weights is not None:
            losses = losses * plan.targets.weights[group][mask]
        tokens, units = count
        loss = losses.sum() / units
        loss.backward()
        with torch.no_grad():
            approx_kl = 0.5 * (new - old) ** 2
            parts = (policy.clipped, approx_kl, policy.ratio)
            return loss.detach(), *(part.sum() / tokens for part in parts)

    def _value_terms(
        self, plan: Plan, group: list[int], count: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Add the value model's gradient for one micro-batch.

        Returns:
            Its metrics, in the order of `_VALUE`.
        """
        cfg, rollouts = self._cfg, plan.rollouts
        packed, responses, mask = packed_group(rollouts.samples, group, self._job.device)
        with self._job.compute(cfg.precision).autocast():
            values = self._actors.values(packed, responses)
        value = value_loss(
            values,
            rollouts.values[group][mask],
            plan.targets.returns[group][mask],
            cfg.value_clip_range,
        )
        tokens = count[0]
        loss = value.losses.sum() / tokens
        loss.backward()
        return loss.detach(), value.clipped.sum() / tokens

    def _mix_text(self, iteration: int, number: int) -> Totals:
        """Add PPO-ptx's gradient: `ptx_coef` times that of the mean loss per pretraining token.

        The two gradients are clipped separately before they are added. Clipping their sum would
        keep their ratio. At the paper's 27.8, the text's gradient is so much larger that PPO's was
        half a percent of a step.
        """
        cfg, job, text = self._cfg, self._job, self._text
        assert text is not None
        parameters = self._parameters["policy"]
        job.group.sum_gradients(parameters)
        own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        steps = cfg.num_epochs * (cfg.rollout_batch_size // cfg.minibatch_size)
        first = (iteration * steps + number) * cfg.ptx_rows
        rows = text[self._text_order.take(first, cfg.ptx_rows)]
        total = torch.zeros((), device=job.device)
        per_pass = max(1, job.max_tokens // rows.shape[1])
        mine = rows[job.group.rank :: job.group.world_size].tolist()
        for start in range(0, len(mine), per_pass):
            chunk = mine[start : start + per_pass]
            packed = pack_pairs([row[:1] for row in chunk], [row[1:] for row in chunk], job.device)
            with job.compute(cfg.precision).autocast(), self._actors.policy_model() as policy:
                loss = -response_logprobs(
                    policy, packed, [row[1:] for row in chunk]
                ).sum() / num_targets(rows)
            loss.backward()
            total += loss.detach()
        job.group.sum_gradients(parameters)
        texts = [
            cfg.ptx_coef * p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters
        ]
        product = torch.stack([(a * b).sum() for a, b in zip(own, texts, strict=True)]).sum()
        own_norm, text_norm = (_clip(gradients, cfg.max_grad_norm) for gradients in (own, texts))
        for parameter, a, b in zip(parameters, own, texts, strict=True):
            parameter.grad = a.add_(b)
        own_clipped, text_clipped = (
            norm.clamp(max=cfg.max_grad_norm) for norm in (own_norm, text_norm)
        )
        return {
            "ptx/loss": total,
            "policy/grad_norm": own_norm,
            "ptx/text_grad_norm": text_norm,
            "ptx/grad_cosine": product / (own_norm * text_norm).clamp(min=1e-30),
            "ptx/policy_share": own_clipped / (own_clipped + text_clipped).clamp(min=1e-30),
        }

    # -- steps -------------------------------------------------------------------------------------

    def _moving(self, plan: Plan, minibatch: list[list[int]]) -> list[str]:
        """Return the models that take a step.

        The policy does not, if all groups of the minibatch are dropped: Adam would move it by the
        gradients of earlier steps.
        """
        moves_policy = plan.moves_policy
        if moves_policy and self._cfg.drop_equal_groups:
            units = float(sum(plan.targets.units[i] for group in minibatch for i in group))
            counts = torch.tensor(units, device=self._job.device)
            self._job.group.all_reduce(counts)
            moves_policy = bool(counts > 0)
        return ["policy"] * moves_policy + ["value"] * plan.moves_value

    def take_step(self, name: str) -> None:
        self._optimizers[name].step()
        self._optimizers[name].zero_grad()
        if self._average is not None and name == "policy":
            assert self._cfg.ema_decay is not None
            with torch.no_grad():
                torch._foreach_lerp_(
                    self._average, [*self._parameters["policy"]], 1 - self._cfg.ema_decay
                )

    def _refuse(self, plan: Plan, name: str, minibatch: list[list[int]], totals: Totals) -> None:
        """Skip the model's step because a number is not finite, and report the episodes.

        If the model is the policy, the value model takes no step either.

        Raises:
            HealthStop: `on_nonfinite` is "stop".
        """
        self._optimizers[name].zero_grad()
        bad = ", ".join(key for key, value in totals.items() if not torch.isfinite(value))
        samples = plan.rollouts.samples
        mine = [i for group in minibatch for i in group]
        culprits = self._job.group.gather(
            [samples.ids[i] for i in mine if not self._is_finite(plan, i)], even=False
        )
        # If no single episode explains it, name all of the minibatch.
        named = sorted(
            culprits or self._job.group.gather([samples.ids[i] for i in mine], even=False)
        )
        message = (
            f"iteration {plan.iteration + 1}: {bad} is not finite; episodes of prompts {named}"
        )
        stop_unless_skipped(self._cfg, message)
        self._job.log.event(
            plan.iteration + 1, "nonfinite", f"{message}; their minibatch is skipped"
        )

    @torch.no_grad()
    def _is_finite(self, plan: Plan, i: int) -> bool:
        """Return whether all numbers that one episode gives to the loss are finite."""
        packed, responses, mask = packed_group(plan.rollouts.samples, [i], self._job.device)
        with self._job.compute(self._cfg.precision).autocast():
            new = self._actors.policy_likelihoods(
                packed, responses, self._cfg.temperature, False
            ).logprobs
            values = self._actors.values(packed, responses) if self._cfg.has_value_model else new
        taken = (plan.targets.advantages[[i]][mask], plan.targets.returns[[i]][mask])
        return all(bool(torch.isfinite(x).all()) for x in (new, values, *taken))


def _clip(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale gradients in place to a global norm of at most `max_norm`; return the norm before."""
    norm: torch.Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0))
    return norm


def _means(seen: dict[str, list[float]], steps: int) -> Metrics:
    """Return each metric's mean over the steps that have it, and the number of steps."""
    return {name: sum(values) / len(values) for name, values in seen.items()} | {
        "ppo/steps": float(steps)
    }
