"""Lay out the panels of a W&B project: save a view of it and print its address.

Needs a key (`wandb login`, or WANDB_API_KEY) and `pip install -e '.[dashboard]'`. A test checks
that a run of all stages logs every metric named here.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

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

_ITERATION = "ppo/iteration"
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
    "PPO against KL": [
        Lines("score over KL", "ppo/objective/kl", ["ppo/objective/score"]),
        Lines("gold over KL", "ppo/objective/kl", ["ppo/gold/score"]),
    ],
    "PPO": [
        Lines(
            "score, and with the KL penalty",
            _ITERATION,
            ["ppo/objective/score", "ppo/objective/reward"],
        ),
        Lines("gold score", _ITERATION, ["ppo/gold/score"]),
        Lines("KL from the reference, nats per response", _ITERATION, ["ppo/objective/kl"]),
        Lines("KL coefficient", _ITERATION, ["ppo/objective/kl_coef"]),
        Lines("entropy, nats per token", _ITERATION, ["ppo/policy/entropy"]),
        Lines("response length, tokens", _ITERATION, ["ppo/response_tokens"]),
        Lines("responses that end by themselves", _ITERATION, ["ppo/response/ended"]),
        Lines(
            "clipped tokens: policy, value",
            _ITERATION,
            ["ppo/clip_fraction", "ppo/value/clip_fraction"],
        ),
        Lines("KL of an update, nats per token", _ITERATION, ["ppo/approx_kl"]),
        Lines("explained variance", _ITERATION, ["ppo/value/explained_variance"]),
        Lines("losses: policy, value", _ITERATION, ["ppo/policy/loss", "ppo/value/loss"]),
        Lines(
            "gradient norms: policy, value",
            _ITERATION,
            ["ppo/policy/grad_norm", "ppo/value/grad_norm"],
        ),
        Lines("sampler beside trainer, nats per token", _ITERATION, ["ppo/policy/sampling_kl"]),
    ],
    "People": [
        Bars("rankings", ["collect/rows"]),
        Bars("labelers", ["collect/labelers"]),
        Bars("labelers agree with each other", ["collect/labelers/agreement"]),
    ],
    "Reward model": [
        Bars("held-out pairs in the right order", ["reward/accuracy", "reward/length_accuracy"]),
        Bars("calibration error, and at its temperature", ["reward/ece", "reward/tempered_ece"]),
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
            _ITERATION,
            ["ppo/time/rollout", "ppo/time/score", "ppo/time/update"],
        ),
        Bars(
            "seconds of a step",
            [f"{s}/time/seconds" for s in ("pretrain", "sft", "reward", "ppo", "evaluate")],
        ),
        Bars(
            "tokens a step was trained on",
            [f"{s}/tokens" for s in ("pretrain", "sft", "reward", "ppo")],
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
