"""Lay out the panels of a W&B project: save a view of it and print its address.

Needs a key (`wandb login`, or WANDB_API_KEY) and `pip install -e '.[dashboard]'`. A test checks
that a run of all stages logs every metric named here.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

from align.runtime.tracking import metric_name

NAME = "align"


class Lines(NamedTuple):
    """Metrics over another: a stage's steps, or the KL."""

    title: str
    over: str
    metrics: list[str]

    def panel(self, reports: Any) -> Any:
        return reports.LinePlot(title=self.title, x=self.over, y=list(self.metrics))


class Bars(NamedTuple):
    """Last values, a bar a run; with `by`, a bar for each value of a key of the config."""

    title: str
    metrics: list[str]
    by: str | None = None

    def panel(self, reports: Any) -> Any:
        key = reports.Config(self.by) if self.by else None
        return reports.BarPlot(title=self.title, metrics=list(self.metrics), groupby=key)


class Dots(NamedTuple):
    """The last value of a metric over that of another, a dot a run."""

    title: str
    over: str
    metrics: list[str]

    def panel(self, reports: Any) -> Any:
        (metric,) = self.metrics
        return reports.ScatterPlot(title=self.title, x=self.over, y=metric)


class Rows(NamedTuple):
    """A table, of all runs that are shown one below the other."""

    metrics: list[str]

    def panel(self, reports: Any) -> Any:
        (name,) = self.metrics
        return reports.WeavePanelSummaryTable(table_name=name, layout=reports.Layout(w=24, h=12))


Panel = Lines | Bars | Dots | Rows


def _of_rewards(stage: str, value: bool = False) -> list[Panel]:
    """The panels of a stage that learns from rewards; `value`: it has a value model."""
    axis = f"{stage}/iteration"

    def lines(title: str, *names: str) -> Lines:
        shown = [name for name in names if value or not name.startswith("value/")]
        return Lines(title, axis, [metric_name(stage, name) for name in shown])

    both = ": policy, value" if value else ""
    panels = [
        lines("score, and with the KL penalty", "objective/score", "objective/reward"),
        lines("gold score", "gold/score"),
        lines("KL from the reference, nats per response", "objective/kl"),
        lines("KL coefficient", "objective/kl_coef"),
        lines("entropy, nats per token", "policy/entropy"),
        lines("response length, tokens", "response_tokens"),
        lines("responses that end by themselves", "response/ended"),
        lines(f"clipped tokens{both}", "ppo/clip_fraction", "value/clip_fraction"),
        lines("KL of an update, nats per token", "ppo/approx_kl"),
        lines("explained variance", "value/explained_variance"),
        lines(f"losses{both}", "policy/loss", "value/loss"),
        lines(f"gradient norms{both}", "policy/grad_norm", "value/grad_norm"),
        lines("sampler beside trainer, nats per token", "policy/sampling_kl"),
    ]
    if not value:
        panels.append(lines("groups whose rewards are all equal", "group/equal"))
    return [panel for panel in panels if panel.metrics]


TRAINING = ("pretrain", "sft", "reward", "dpo", "kto", "ppo", "grpo", "rloo", "raft")
SECTIONS: dict[str, list[Panel]] = {
    "Did it work": [
        Bars("gold score, T=1 and greedy", ["evaluate/gold/score", "evaluate/greedy/gold/score"]),
        Bars(
            "wins over the baseline, T=1 and greedy",
            ["evaluate/win_rate", "evaluate/greedy/win_rate"],
        ),
        Bars("KL from the baseline, nats per response", ["evaluate/kl"]),
        Bars("text loss, nats per token: the alignment tax", ["evaluate/pretrain_loss"]),
        Bars("response length, tokens", ["evaluate/response_tokens"]),
        Rows(["evaluate/samples"]),
    ],
    # The metrics of all rounds have the same names. The step tells the rounds apart.
    "Rounds": [
        Dots("gold score over KL, a dot an evaluation", "evaluate/kl", ["evaluate/gold/score"]),
        Bars("gold score, by step", ["evaluate/gold/score"], by="step"),
        Bars("KL from the baseline, by step", ["evaluate/kl"], by="step"),
    ],
    **{
        f"{title} against KL": [
            Lines("score over KL", f"{stage}/objective/kl", [f"{stage}/objective/score"]),
            Lines("gold over KL", f"{stage}/objective/kl", [f"{stage}/gold/score"]),
        ]
        for stage, title in (("ppo", "PPO"), ("grpo", "GRPO"), ("rloo", "RLOO"), ("raft", "RAFT"))
    },
    "PPO": _of_rewards("ppo", value=True),
    "GRPO": _of_rewards("grpo"),
    "RLOO": _of_rewards("rloo"),
    "DPO": [
        Lines("loss of the pairs", "dpo/step", ["dpo/loss"]),
        Lines("pairs in the labelers' order", "dpo/step", ["dpo/accuracy"]),
        Lines(
            "implicit rewards: chosen, rejected",
            "dpo/step",
            ["dpo/rewards/chosen", "dpo/rewards/rejected"],
        ),
        Lines("margin of the implicit rewards", "dpo/step", ["dpo/rewards/margin"]),
        Bars("held-out pairs in the right order", ["dpo/eval/accuracy"]),
        Lines("learning rate", "dpo/step", ["dpo/learning_rate"]),
        Lines("gradient norm", "dpo/step", ["dpo/grad_norm"]),
    ],
    "KTO": [
        Lines("loss of the responses", "kto/step", ["kto/loss"]),
        Lines("responses on their side of the baseline", "kto/step", ["kto/accuracy"]),
        Lines(
            "implicit rewards: desirable, undesirable",
            "kto/step",
            ["kto/rewards/chosen", "kto/rewards/rejected"],
        ),
        Lines("margin of the implicit rewards", "kto/step", ["kto/rewards/margin"]),
        Lines("baseline: KL to the given model, nats", "kto/step", ["kto/kl"]),
        Bars("held-out responses on their side", ["kto/eval/accuracy"]),
        Lines("learning rate", "kto/step", ["kto/learning_rate"]),
        Lines("gradient norm", "kto/step", ["kto/grad_norm"]),
    ],
    "RAFT": [
        Lines(
            "score: of all, of the kept",
            "raft/iteration",
            ["raft/objective/score", "raft/kept/score"],
        ),
        Lines("gold score", "raft/iteration", ["raft/gold/score"]),
        Lines("KL from the reference, nats per response", "raft/iteration", ["raft/objective/kl"]),
        Lines("entropy, nats per token", "raft/iteration", ["raft/policy/entropy"]),
        Lines(
            "response length, tokens: of all, of the kept",
            "raft/iteration",
            ["raft/response_tokens", "raft/kept/response_tokens"],
        ),
        Lines("responses that end by themselves", "raft/iteration", ["raft/response/ended"]),
        Lines("kept responses", "raft/iteration", ["raft/kept/responses"]),
        Lines("loss on the kept responses", "raft/iteration", ["raft/policy/loss"]),
        Lines("learning rate", "raft/iteration", ["raft/policy/learning_rate"]),
        Lines("gradient norm", "raft/iteration", ["raft/policy/grad_norm"]),
        Lines("groups whose rewards are all equal", "raft/iteration", ["raft/group/equal"]),
    ],
    "Best of n": [
        Lines(
            "score over the square root of the KL",
            "best_of_n/sqrt_kl",
            ["best_of_n/reward/score", "best_of_n/gold/score"],
        ),
        Lines("wins over one sample", "best_of_n/n", ["best_of_n/win_rate"]),
        Lines("tokens of the chosen response", "best_of_n/n", ["best_of_n/response_tokens"]),
        Rows(["best_of_n/samples"]),
    ],
    "People": [
        Bars("rankings", ["collect/rows"]),
        Bars("labelers", ["collect/labelers"]),
        Bars("labelers agree with each other", ["collect/labelers/agreement"]),
    ],
    "Reward model": [
        Bars("held-out pairs in the right order", ["reward/accuracy", "reward/length_accuracy"]),
        Bars("calibration error, and at its temperature", ["reward/ece", "reward/tempered_ece"]),
        Bars(
            "pairs of its evaluation in the right order",
            ["evaluate_reward/accuracy", "evaluate_reward/length_accuracy"],
        ),
        Lines("loss", "reward/step", ["reward/loss"]),
        Lines("learning rate", "reward/step", ["reward/learning_rate"]),
        Bars(
            "labelers agree: with each other, with gold",
            ["compare/labelers/agreement", "compare/labelers/gold_agreement"],
        ),
        Rows(["compare/samples"]),
    ],
    "Supervised tuning": [
        Lines("loss", "sft/step", ["sft/loss"]),
        Lines("held-out loss", "sft/step", ["sft/eval/loss"]),
        Lines("learning rate", "sft/step", ["sft/learning_rate"]),
        Lines("gradient norm", "sft/step", ["sft/grad_norm"]),
    ],
    "Pretraining": [
        Lines("loss", "pretrain/step", ["pretrain/loss"]),
        Lines("held-out loss", "pretrain/step", ["pretrain/eval/loss"]),
        Lines("learning rate", "pretrain/step", ["pretrain/learning_rate"]),
        Lines("gradient norm", "pretrain/step", ["pretrain/grad_norm"]),
    ],
    "Time": [
        Lines(
            "PPO: seconds of an iteration",
            "ppo/iteration",
            ["ppo/time/rollout", "ppo/time/score", "ppo/time/update"],
        ),
        Bars(
            "seconds of a step",
            [f"{s}/time/seconds" for s in (*TRAINING, "best_of_n", "evaluate")],
        ),
        Bars(
            "tokens a step was trained on",
            [f"{stage}/tokens" for stage in TRAINING],
        ),
    ],
}


def named_metrics() -> set[str]:
    """Every metric and table that a panel names."""
    panels = [panel for section in SECTIONS.values() for panel in section]
    return {
        name
        for panel in panels
        for name in (*panel.metrics, *([panel.over] if isinstance(panel, Lines | Dots) else []))
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--project", default="align", help="W&B project (tracker.project); default: align"
    )
    parser.add_argument(
        "--entity", help="W&B team or user (tracker.entity); default: the key's own"
    )
    options = parser.parse_args(arguments)
    try:
        import wandb
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
    except ImportError as error:
        print(f"error: {error}; pip install -e '.[dashboard]'", file=sys.stderr)
        return 2
    try:
        workspaces.Workspace(
            name=NAME,
            entity=options.entity or wandb.Api().default_entity,
            project=options.project,
            sections=[
                workspaces.Section(
                    name=name, panels=[panel.panel(reports) for panel in panels], is_open=True
                )
                for name, panels in SECTIONS.items()
            ],
        ).save()
    except Exception as error:
        print(f"error: W&B did not take the view: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
