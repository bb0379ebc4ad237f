"""Say which stage of a run is bad, on what evidence, and what to do first.

Rules hold what each step left, its metrics and logs, against thresholds. A rule that finds nothing
to read says nothing. No model is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.configs import learns_from_rewards
from align.report.finding import Finding, Verdict
from align.report.gather import Made, gather_with_unfinished
from align.report.rules.evaluation import judge_evaluation, lost_to_start
from align.report.rules.language import judge_pretrain, judge_sft
from align.report.rules.policy import judge_policy
from align.report.rules.preference import (
    judge_dpo_or_kto,
    judge_reward,
    judge_reward_evaluation,
)
from align.report.running import Logged, Unfinished
from align.report.tables import Table
from align.report.verdict import Line, Tone
from align.store.artifacts import ArtifactStore

_RULES: dict[str, Callable[[Logged, Sequence[Logged]], Iterator[Finding]]] = {
    "pretrain": judge_pretrain,
    "text_to_text": judge_pretrain,
    "sft": judge_sft,
    "reward": judge_reward,
    "dpo": judge_dpo_or_kto,
    "kto": judge_dpo_or_kto,
    "evaluate_reward": judge_reward_evaluation,
}
_WORST_FIRST: tuple[Verdict, ...] = ("bad", "cannot tell", "good")
_TONES: dict[Verdict, Tone] = {"good": "good", "bad": "bad", "cannot tell": "neutral"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The verdict on one step.

    Attributes:
        findings: at least one; the one that decides comes first.
        cause: the first bad step that it was made from; "" if none is bad, or this step is not.
        doubts: if this step is bad, the steps that it was made from of which no rule can tell.
    """

    step: str
    stage: str
    ref: str
    findings: tuple[Finding, ...]
    cause: str
    doubts: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return self.findings[0].verdict

    @property
    def line(self) -> Line:
        """The verdict as a sentence of a report."""
        first = self.findings[0]
        doubt = "cannot tell: " if self.verdict == "cannot tell" else ""
        said = f"{self.step}: {doubt}{first.figure}"
        if self.verdict == "bad":
            said += f". Expected: {first.threshold} ({first.source})"
        if self.cause:
            said += f". The likely cause is {self.cause}"
        return Line(f"{said}.", _TONES[self.verdict])

    def described(self) -> dict[str, Any]:
        """Return the diagnosis as JSON shows it."""
        return {
            "step": self.step,
            "stage": self.stage,
            "artifact": self.ref,
            "verdict": self.verdict,
            "cause": self.cause or None,
            "doubts": [*self.doubts],
            "findings": [finding._asdict() for finding in self.findings],
        }


def diagnose(made: Sequence[Made], steps: Sequence[Unfinished] = ()) -> list[Diagnosis]:
    """Return a diagnosis for each step that a rule can judge, inputs first.

    Args:
        made: what `gather` found, inputs first.
        steps: that are not finished.
    """
    logged: list[Logged] = [*made, *steps]
    by_key = {each.key: each for each in made}
    inputs = {each.key: [key for _, key in each.inputs] for each in logged}
    verdicts: dict[str, Verdict] = {}  # by key, inputs first
    names = {each.key: each.name for each in logged}
    found = []
    for each in logged:
        findings = sorted(
            _findings(each, logged, by_key), key=lambda finding: _WORST_FIRST.index(finding.verdict)
        )
        if not findings:
            continue
        verdicts[each.key] = findings[0].verdict
        before = _ancestors(each.key, inputs) if findings[0].verdict == "bad" else set()
        judged = [(names[key], verdict) for key, verdict in verdicts.items() if key in before]
        found.append(
            Diagnosis(
                step=each.name,
                stage=each.stage,
                ref=each.artifact.ref if isinstance(each, Made) else f"{each.stage}@{each.key}",
                findings=tuple(findings),
                cause=next((name for name, verdict in judged if verdict == "bad"), ""),
                doubts=tuple(name for name, verdict in judged if verdict == "cannot tell"),
            )
        )
    return found


def of_refs(
    store: ArtifactStore, refs: Sequence[str], left_out: list[str]
) -> tuple[list[Diagnosis], list[str]]:
    """Return the diagnoses of what `refs` mean, and the names of steps that no rule judges.

    Args:
        left_out: a list to which a line is added for each thing that cannot be read.

    Raises:
        StoreError: a reference matches neither an artifact nor a step that has begun.
    """
    made, steps = gather_with_unfinished(store, refs, left_out)
    found = diagnose(made, steps)
    judged = {each.step for each in found}
    return found, [each.name for each in made if each.name not in judged]


def advice(found: Sequence[Diagnosis]) -> list[str]:
    """Return what to do, in sentences: for each bad step that no other bad step explains.

    The first step of the lineage comes first. Its other signs, and the steps after it that are bad,
    are named.
    """
    lines: list[str] = []
    for each in found:
        if each.verdict != "bad" or each.cause:
            continue
        first, *others = [finding for finding in each.findings if finding.verdict == "bad"]
        lead = f"Then mend {each.step}" if lines else f"Mend {each.step} first"
        said = [f"{lead}: {first.figure}."]
        if first.advice:
            said.append(f"{first.advice[0].upper()}{first.advice[1:]}.")
        if others:
            said.append(f"More signs: {', '.join(finding.name for finding in others)}.")
        if each.doubts:
            said.append(f"Not shown to be good before it: {', '.join(each.doubts)}.")
        after = [other.step for other in found if other.cause == each.step]
        if after:
            verb = "is" if len(after) == 1 else "are"
            said.append(f"It is the likely cause why {', '.join(after)} {verb} bad, too.")
        lines.append(" ".join(said))
    return lines


def as_table(found: Sequence[Diagnosis]) -> Table:
    rows = [[each.verdict, each.step, each.findings[0].figure] for each in found]
    return Table(["verdict", "step", "figure"], rows)


def _findings(
    step: Logged, steps: Sequence[Logged], by_key: Mapping[str, Made]
) -> Iterator[Finding]:
    if isinstance(step, Unfinished):
        yield Finding(
            "stopped" if step.went_bad else "unfinished",
            "bad" if step.went_bad else "cannot tell",
            step.error if step.went_bad else step.state,
            "runs to its end",
            "the health of the numbers" if step.went_bad else "an unfinished step may recover",
            "give the same command with these knobs" if step.went_bad else "let it finish",
        )
    if step.stage in _RULES:
        yield from _RULES[step.stage](step, steps)
    elif isinstance(step, Made) and step.artifact.kind == "evaluation":
        yield from judge_evaluation(step, by_key)
    elif learns_from_rewards(step.stage):
        yield from judge_policy(step, steps)
    yield from lost_to_start(step, steps, by_key)


def _ancestors(key: str, inputs: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the keys of everything that a step was made from."""
    seen: set[str] = set()
    waiting = list(inputs.get(key, ()))
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            waiting += inputs.get(each, ())
    return seen
