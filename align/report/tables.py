"""The tables of a report: results of evaluations and training, health events, costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from align.configs import BestOfN, EvaluateReward, learns_from_rewards
from align.configs.evaluate import VALIDATION_SCORE
from align.evals.intervals import FEW, is_few
from align.store.artifacts import is_number

if TYPE_CHECKING:
    from align.report.gather import Made
    from align.report.running import Logged

Metrics = Mapping[str, float]


class Table(NamedTuple):
    columns: list[str]
    rows: list[list[str]]


Scored = tuple[str, str, str, Metrics]  # evaluation, its model, its baseline or "", its metrics

FEW_MARK = "†"
FEW_NOTE = f"† fewer than {FEW} items: the interval is too narrow, take the figure as a hint only."
_SCORERS = ("rules", "gold", "reward")  # the first one with a score decides the wins
_SHARES = (  # prefixes of figures that are fractions of prompts or items
    *(
        "accuracy",
        "acc",
        "exact_match",
        "f1",
        "right_share",
        "overconfidence",
        "win_rate",
        "hallucination",
    ),
    *("asked", "unasked", "conflict", "opposed", "effect", "consistent", "favoured_first", "gold/"),
)


class Answer(NamedTuple):
    """A model's answer to a prompt."""

    text: str
    score: str


class Opponent(NamedTuple):
    """A model that another model is compared with.

    Attributes:
        head: the prefix of the comparison's metrics.
        is_prompted: True for the base model with its best prompt.
    """

    made: Made
    head: str
    is_prompted: bool


class Sample(NamedTuple):
    prompt: str
    answers: list[tuple[str, Answer]]  # (model, answer)


def headline(made: Sequence[Made]) -> Table:
    """Return a row for each comparison of an evaluation, without the columns that are empty."""
    by_key, scorers = (
        {each.key: each for each in made},
        {scorer(e.artifact.metrics) for e in evaluations(made)},
    )
    rows = []
    for each in evaluations(made):
        m, model = each.artifact.metrics, by_key[dict(each.inputs)["model"]].name
        if "prompts" not in m:
            continue
        score = scorer(m)
        wins = [
            {
                "over": f"{other.made.name}, prompted" if other.is_prompted else other.made.name,
                "wins": interval(m, other.head),
                "wins, greedy": interval(m, f"greedy/{other.head}"),
                "ties": percent(m, f"{other.head}ties", 0),
            }
            for other in opponents(each, by_key)
        ]
        first, *others = wins or [{}]
        rows.append(
            {
                "model": model,
                "over": "",
                "prompts": number(m, "prompts", 0),
                "scored by": score if len(scorers - {""}) > 1 else "",
                f"{score} score" if len(scorers - {""}) == 1 else "score": number(
                    m, f"{score}/score", marked=True
                ),
                "greedy": number(m, f"greedy/{score}/score", marked=True),
                "wins": "",
                "wins, greedy": "",
                "ties": "",
                "KL, nats": number(m, "kl", 2),
                "tokens": number(m, "response_tokens", 1),
                "text loss": number(m, "pretrain_loss", marked=True),
                "facts recalled": percent(m, "fact_recall"),
            }
            | first
        )
        rows += [{"model": model} | other for other in others]
    names_of = dict.fromkeys(column for row in rows for column in row)
    columns = [c for c in names_of if any(row.get(c) for row in rows)]
    return Table(columns, [[row.get(c, "") for c in columns] for row in rows])


def scorer(metrics: Metrics) -> str:
    """Return whose score decides an evaluation's wins; "" if nothing was scored."""
    return next((name for name in _SCORERS if f"{name}/score" in metrics), "")


def side(metrics: Metrics, name: str, null: float) -> int:
    """Return 1 if the interval of a figure is above `null`, -1 if below; else 0.

    It is 0, too, if the interval has no width.
    """
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return 0 if low == high else int(low > null) - int(high < null)


def matrix(made: Sequence[Made]) -> Table | None:
    """Return win rates of models (rows) over baselines (columns).

    None if no model and no baseline takes part in two comparisons.
    """
    names, wins = {each.key: each.name for each in made}, {}
    for each in evaluations(made):
        inputs = dict(each.inputs)
        if "baseline" in inputs and "win_rate" in each.artifact.metrics:
            wins[names[inputs["model"]], names[inputs["baseline"]]] = interval(
                each.artifact.metrics, ""
            )
    models, baselines = (list(dict.fromkeys(pair[i] for pair in wins)) for i in (0, 1))
    if len(wins) <= min(len(models), len(baselines)):
        return None
    return Table(
        ["", *baselines], [[m, *(wins.get((m, b), "") for b in baselines)] for m in models]
    )


def manners(evaluated: Sequence[Scored]) -> Table:
    """Return a table like `tasks`, of figures that are neither a task's nor in the headline."""
    return _figures(
        evaluated,
        lambda name, m: not name.startswith("tasks/") and name not in _in_headline(m),
        "answers",
    )


def tasks(evaluated: Sequence[Scored]) -> Table:
    """Return a table with a row for each measure of a task, and a column for each model.

    Each comparison with a baseline, item by item, has a column, too. A model whose figure differs
    in another evaluation, for example with few-shot examples, gets one more column.
    """
    return _figures(evaluated, lambda name, m: name.startswith("tasks/"), "task")


def _in_headline(m: Metrics) -> set[str]:
    shown = ("win_rate", f"{scorer(m)}/score", "kl", "pretrain_loss") if "prompts" in m else ()
    prompted = [f"prompted_base/{name}" for name in ("win_rate", "ties", f"{scorer(m)}/score")]
    return {f"{prefix}{name}" for prefix in ("", "greedy/") for name in (*shown, *prompted)}


def scored(made: Sequence[Made]) -> list[Scored]:
    """Return a report's evaluations in the form that `tasks` and `manners` take."""
    names = {each.key: each.name for each in made}
    found: list[Scored] = []
    for each in evaluations(made):
        inputs = dict(each.inputs)
        model, baseline = names[inputs["model"]], names.get(inputs.get("baseline", ""), "")
        found.append((each.name, model, baseline, each.artifact.metrics))
    return found


def _figures(
    evaluated: Sequence[Scored], wanted: Callable[[str, Metrics], bool], title: str
) -> Table:
    cells: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for evaluation, model, baseline, metrics in evaluated:
        parts = {model: ""} | (
            {baseline: "baseline/", f"{model} - {baseline}": "gain/"} if baseline else {}
        )
        for metric in metrics:
            head, name = _head_and_name(metric)
            if name.startswith(("baseline/", "gain/")) or head.endswith(("/baseline/", "/gain/")):
                continue
            if not wanted(metric, metrics):
                continue
            row = f"{head.removeprefix('tasks/').rstrip('/')} {name}".strip()
            row += f" (n={metrics[f'{head}items']:,.0f})" if f"{head}items" in metrics else ""
            for column, part in parts.items():
                shown = figure(metrics, f"{head}{part}{name}", name, part)
                if not shown:
                    continue
                taken = cells.get(row, {}).get(column, shown) != shown
                place = f"{column} ({evaluation})" if taken else column
                columns[place] = None
                cells.setdefault(row, {})[place] = shown
    return Table(
        [title, *columns], [[row, *(own.get(c, "") for c in columns)] for row, own in cells.items()]
    )


def _head_and_name(metric: str) -> tuple[str, str]:
    """Split a metric's name where the name of the baseline's metric has `baseline/`."""
    if metric.startswith(("tasks/", "checks/", "steering/", "judge/")):
        head, slash, name = metric.rpartition("/")
        return head + slash, name
    head = "greedy/" if metric.startswith("greedy/") else ""
    return head, metric.removeprefix(head)


def figure(metrics: Metrics, metric: str, name: str, part: str) -> str:
    """Return a figure as text with its 95 % interval; "" if it has none.

    Fractions are in percent. A calibration error has the bound of what chance gives instead of an
    interval. The mark * is for a difference, or a calibration error, beyond chance. The mark † is
    for too few items.
    """
    mark = FEW_MARK if is_few(metrics, metric) else ""
    if f"{metric}_chance_high" in metrics:
        error, most = 100 * metrics[metric], 100 * metrics[f"{metric}_chance_high"]
        return f"{error:.1f} % (chance: to {most:.1f})" + (mark or (" *" if error > most else ""))
    if f"{metric}_low" not in metrics:
        return ""
    mean, low, high = (metrics[f"{metric}{end}"] for end in ("", "_low", "_high"))
    sign = "+" if part == "gain/" or name.startswith("effect") or name == "overconfidence" else ""
    beyond = mark or (" *" if part == "gain/" and side(metrics, metric, 0.0) else "")
    if name.startswith(_SHARES) and not name.endswith("/score"):
        # + 0.0 turns -0.0 into 0.0.
        mean, low, high = (round(100 * x, 1) + 0.0 for x in (mean, low, high))
        return f"{mean:{sign}.1f} % [{low:.1f}, {high:.1f}]{beyond}"
    return (
        f"{mean:{sign}.3g} [{low:.3g}, {high:.3g}]"
        + (" bits" if name == "entropy" else "")
        + beyond
    )


def costs(made: Sequence[Made]) -> Table:
    """Return the time of each step; tokens and FLOPs if the step reports how many it trained on."""
    rows, total = [], 0.0
    for each in made:
        m, manifest = each.artifact.metrics, each.artifact.manifest
        total += manifest["seconds"]
        flops = 0.0
        if {"parameters", "tokens"} <= m.keys():
            trained = m.get("trained_parameters", m["parameters"])
            # No FLOPs for the gradients of frozen weights.
            flops = (4 * m["parameters"] + 2 * trained) * m["tokens"]
        code = str(manifest["code"].get("commit") or manifest["code"].get("version"))[:10]
        rows.append(
            [
                each.name,
                each.stage,
                each.version,
                f"{manifest['seconds']:,.1f}",
                f"{m['tokens']:,.0f}" if flops else "",
                f"{flops:.2g}" if flops else "",
                code + ("+" if manifest["code"].get("dirty") else ""),
            ]
        )
    rows.append(["all", "", "", f"{total:,.1f}", "", "", ""])
    return Table(["step", "stage", "version", "seconds", "tokens", "FLOPs", "code"], rows)


def changes(made: Sequence[Made]) -> Table:
    rows = [[each.label, *change] for each in made for change in each.changes]
    return Table(["step", "knob", "version before", "this version"], rows)


def events(made: Sequence[Logged]) -> Table:
    rows = [
        [each.name, str(e["step"]), e["name"], e["message"]] for each in made for e in each.events
    ]
    return Table(["step", "at", "sign", "what it says"], rows)


def reward_models(made: Sequence[Made]) -> Table:
    """Return how well each reward model orders held-out pairs."""
    shown = {
        "as labelers do": "accuracy",
        "as gold does": "gold_accuracy",
        "labelers as gold does": "labeler_gold_accuracy",
        "longer is better": "length_accuracy",
    }
    rows = []
    for each in made:
        if each.stage == "reward":
            m = each.artifact.metrics
            pairs = number(m, "held_out_pairs", 0) + (
                FEW_MARK if m.get("held_out_pairs", FEW) < FEW else ""
            )
            rows.append([each.name, pairs, *(percent(m, name) for name in shown.values())])
    return without_empty(Table(["reward model", "held-out pairs", *shown], rows))


def learned(made: Sequence[Made]) -> Table:
    """Return the results of pretraining and fine-tuning on test rows, else on held-out rows."""
    rows = []
    for each in made:
        m = each.artifact.metrics
        if each.stage not in ("pretrain", "text_to_text", "finetune"):
            continue
        head = next(
            (
                head
                for head in ("test/", "validation/", "eval/")
                if any(n.startswith(head) for n in m)
            ),
            "eval/",
        )
        for metric, value in m.items():
            path = metric.removeprefix(head)
            if (
                path == metric
                or path.startswith(("baseline/", "gain/"))
                or path.endswith(("_low", "_high", "_few", "rows"))
            ):
                continue
            name = path.rpartition("/")[2]
            beside = [
                figure(m, f"{head}{part}{path}", name, part) for part in ("baseline/", "gain/")
            ]
            rows.append([each.name, path, figure(m, metric, name, "") or f"{value:,.3f}", *beside])
    return without_empty(Table(["step", "measure", "figure", "baseline", "difference"], rows))


def without_empty(table: Table) -> Table:
    """Return the table without its empty columns."""
    kept = [i for i in range(len(table.columns)) if any(row[i] for row in table.rows)]
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows])


def samples(made: Sequence[Made]) -> list[Sample]:
    """Return the answers of every evaluated model to the same prompts, sampled at temperature 1."""
    names = {each.key: each.name for each in made}
    found: dict[str, dict[str, Answer]] = {}
    for each in evaluations(made):
        inputs = dict(each.inputs)
        for row in each.samples:
            answers = found.setdefault(row["prompt"], {})
            if "baseline" in row and "baseline" in inputs:
                answers.setdefault(
                    names[inputs["baseline"]],
                    Answer(str(row["baseline"]), _shown(row, "baseline_score")),
                )
            answers[names[inputs["model"]]] = Answer(
                str(row.get("response", "")), _shown(row, "score")
            )
    return [Sample(prompt, list(answers.items())) for prompt, answers in found.items()]


def episodes(made: Sequence[Logged]) -> list[tuple[str, Table]]:
    """Return (step, table of episodes) for each step that learns from rewards and kept some.

    The episodes are of the first and the last two iterations in the log. The table has every part
    of their reward.
    """
    found = []
    for each in made:
        if not learns_from_rewards(each.stage) or not each.samples:
            continue
        steps = sorted({row["step"] for row in each.samples if is_number(row.get("step"))})
        shown = [*steps[:1], *steps[-2:]]
        columns = list(dict.fromkeys(column for row in each.samples for column in row))
        rows = [
            [_cell(row.get(column)) for column in columns]
            for row in each.samples
            if row.get("step") in shown
        ]
        names = {"step": "iteration", "kl": "KL, nats"}
        titles = [names.get(column, column.removeprefix("reward/")) for column in columns]
        found.append((each.name, Table(titles, rows)))
    return found


def _cell(value: object) -> str:
    """Return text unchanged and a float in three digits; "" for None, if a part does not apply."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def opponents(evaluation: Made, by_key: Mapping[str, Made]) -> list[Opponent]:
    """Return the models that a model is compared with.

    The baseline is first. It is compared by the judge if nothing else scored the answers. The
    prompted base model is second. Of several, it is the one that was best on validation prompts,
    because `evaluate` used that one.
    """
    metrics = evaluation.artifact.metrics
    head = "judge/" if "win_rate" not in metrics and "judge/win_rate" in metrics else ""
    found = [
        Opponent(by_key[key], head, False) for slot, key in evaluation.inputs if slot == "baseline"
    ]
    prompted = [by_key[key] for slot, key in evaluation.inputs if slot == "prompted_base"]
    if prompted:
        best = max(prompted, key=lambda each: each.artifact.metrics.get(VALIDATION_SCORE, 0.0))
        found.append(Opponent(best, "prompted_base/", True))
    return found


def evaluations(made: Sequence[Made]) -> list[Made]:
    """Return the evaluations of models that answer.

    Those of reward models are in `reward_evaluations`. Those of `best_of_n` are of responses that
    were chosen.
    """
    others = (BestOfN.STAGE, EvaluateReward.STAGE)
    return [
        each for each in made if each.artifact.kind == "evaluation" and each.stage not in others
    ]


def reward_evaluations(made: Sequence[Made]) -> list[Made]:
    """Return the evaluations of reward models."""
    return [each for each in made if each.stage == EvaluateReward.STAGE]


def number(metrics: Metrics, name: str, digits: int = 3, marked: bool = False) -> str:
    """Return a metric as text; "" if there is none of that name.

    Args:
        marked: add the mark † if the items are too few.
    """
    if name not in metrics:
        return ""
    return f"{round(metrics[name], digits) + 0.0:,.{digits}f}" + (
        FEW_MARK if marked and is_few(metrics, name) else ""
    )


def percent(metrics: Metrics, name: str, digits: int = 1) -> str:
    return f"{100 * metrics[name]:.{digits}f} %" if name in metrics else ""


def interval(metrics: Metrics, prefix: str) -> str:
    names = [f"{prefix}{name}" for name in ("win_rate", "win_rate_low", "win_rate_high")]
    if not all(name in metrics for name in names):
        return ""
    rate, low, high = (100 * metrics[name] for name in names)
    mark = FEW_MARK if is_few(metrics, f"{prefix}win_rate") else ""
    return f"{rate:.1f} % [{low:.1f}, {high:.1f}]{mark}"


def has_few(table: Table | None) -> bool:
    """Return True if a table has a figure of too few items: then it needs `FEW_NOTE` below."""
    return table is not None and any(cell.endswith(FEW_MARK) for row in table.rows for cell in row)


def _shown(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    return f"{value:.2f}" if is_number(value) else ""
