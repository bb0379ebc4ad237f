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
from align.report.rules.preference import judge_dpo, judge_reward
from align.report.running import Logged, Unfinished
from align.report.tables import Table
from align.report.verdict import Line, Tone
from align.store.artifacts import ArtifactStore

_RULES: dict[str, Callable[[Logged, Sequence[Logged]], Iterator[Finding]]] = {
    "pretrain": judge_pretrain,
    "text_to_text": judge_pretrain,
    "sft": judge_sft,
    "reward": judge_reward,
    "dpo": judge_dpo,
}
_WORST_FIRST: tuple[Verdict, ...] = ("bad", "cannot tell", "good")
_TONES: dict[Verdict, Tone] = {"good": "good", "bad": "bad", "cannot tell": "neutral"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The verdict on one step.

    Attributes:
        findings: at least one; the one that decides comes first.
        cause: the first bad step that it was made from; "" if none is bad, or this step is not.
    """

    step: str
    stage: str
    ref: str
    findings: tuple[Finding, ...]
    cause: str

    @property
    def verdict(self) -> Verdict:
        return self.findings[0].verdict

    @property
    def line(self) -> Line:
        """The verdict as a sentence of a report."""
        first = self.findings[0]
        said = f"{self.step}: {first.figure}"
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
    bad: dict[str, str] = {}  # names of bad steps by their keys, inputs first
    found = []
    for each in logged:
        findings = sorted(
            _findings(each, logged, by_key), key=lambda finding: _WORST_FIRST.index(finding.verdict)
        )
        if not findings:
            continue
        before = _ancestors(each.key, inputs)
        is_bad = findings[0].verdict == "bad"
        cause = next((name for key, name in bad.items() if key in before), "") if is_bad else ""
        if is_bad:
            bad[each.key] = each.name
        ref = each.artifact.ref if isinstance(each, Made) else f"{each.stage}@{each.key}"
        found.append(
            Diagnosis(
                step=each.name, stage=each.stage, ref=ref, findings=tuple(findings), cause=cause
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
    """Return sentences on what to do first: one for each bad step that no other one explains."""
    return [
        f"First: {each.step} is bad ({each.findings[0].figure}); {each.findings[0].advice}."
        for each in found
        if each.verdict == "bad" and not each.cause
    ]


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
    if isinstance(step, Made) and step.artifact.kind == "evaluation":
        yield from judge_evaluation(step, by_key)
        return
    yield from lost_to_start(step, steps, by_key)
    if learns_from_rewards(step.stage):
        yield from judge_policy(step, steps)
    elif step.stage in _RULES:
        yield from _RULES[step.stage](step, steps)


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
