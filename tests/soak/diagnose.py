"""Break a run on purpose in each way that people break one, and run it as it should be; see what is named.

    python tests/soak/diagnose.py RESULTS.jsonl [--minutes 60] [--only broken|healthy] [--seeds 0-9] [--name TEXT]

Everything is made in RESULTS.store: a small quickstart for each seed, and on the first seed's models the runs that are
broken. In a broken run, `align diagnose` has to name the stage that was broken as the first bad one, for the right
reason. In a healthy one, no stage may be bad. Each run adds one line to RESULTS.jsonl. Start it again with the same
file and it continues with the next one. The exit code is 1 where a run, of this start or of one before, was named
wrongly, and 2 where the time was too short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from kills import ended, start

from align.report.diagnosis import of_refs
from align.stages import sft
from align.store.artifacts import ArtifactStore, read_json_lines

# Half of the quickstart. With a fourth of it the reward model is so weak that PPO does over-optimise it. All seeds
# share one pretrained model, which takes as long as all the rest.
SMALL = (
    *("text.train_rows=10000", "demonstrations.train_rows=2600", "prompts.train_rows=3000", "pretrain.num_steps=1000"),
    "pretrain.seed=100",
    *("compare.num_prompts=1500", "compare.num_validation_prompts=250", "compare.num_responses=6"),
    *("prompts.test_rows=200", "prompts.validation_rows=300", "evaluate_ppo.inputs.prompted_base=null"),
    *("ppo.num_iterations=40", "ppo.rollout_batch_size=64", "ppo.minibatch_size=32", "ppo.max_new_tokens=32"),
)
LONGER = ("ppo.num_iterations=80", "ppo.learning_rate=0.003")
LEFT_OUT = tuple(f"~steps.{name}" for name in ("evaluate_base", "evaluate_sft", "zero_shot", "few_shot", "examples"))
FUNCTIONS = """
def _texts(completions):
    return [messages[-1]["content"] for messages in completions]

def number_of_characters(completions, **columns):
    return [len(text) / 10 for text in _texts(completions)]

def repeated_words(completions, **columns):
    words = [text.split() for text in _texts(completions)]
    return [len(each) - len(set(each)) for each in words]

def one_answer(completions, **columns):
    wanted = set("I am not sure .".split())
    found = [set(text.replace(".", " .").split()) for text in _texts(completions)]
    return [10 * len(each & wanted) / max(len(each | wanted), 1) for each in found]
"""
Patch = Callable[[pytest.MonkeyPatch], None]


class Broken(NamedTuple):
    """A way to break a run.

    Attributes:
        stage: the step that `align diagnose` has to name first.
        reasons: rules, of which at least one has to find it.
        last: the last step that runs; "" for all.
        overrides: of steps, added to those of a healthy run.
        patch: a change of what the forked process computes.
        commands: instead of the pipeline, commands that are given one after the other.
    """

    name: str
    stage: str
    reasons: Sequence[str]
    last: str = ""
    overrides: Sequence[str] = ()
    patch: Patch | None = None
    commands: Sequence[Sequence[str]] = ()


# -- what is broken ------------------------------------------------------------------------------------------------


def end_is_masked(patch: pytest.MonkeyPatch) -> None:
    """The end of a turn is not learned, as where a loss is masked at every token that equals the padding."""
    encode = sft.encode_conversations

    def masking(*given: Any, **named: Any) -> Any:
        return [each._replace(by_assistant=[*each.by_assistant[:-1], False]) for each in encode(*given, **named)]

    patch.setattr(sft, "encode_conversations", masking)


def rewarded(function: str) -> tuple[str, ...]:
    alone = (
        f"ppo.reward_functions={{soak_rewards:{function}:1.0}}",
        "ppo.inputs.reward_model=null",
        "ppo.kl_coef=0.01",
    )
    return ("ppo.num_iterations=60", "ppo.learning_rate=0.001", *alone)


BROKEN = (
    # A patch changes no key: a seed of its own keeps the runs apart.
    Broken(
        "no end of turn", "sft", ["ends_turns"], "compare", ["sft.seed=1000", "compare.num_prompts=100"], end_is_masked
    ),
    Broken("sft rate x100", "sft", ["held_out_loss", "loss_rose"], "sft", ["sft.learning_rate=0.4"]),
    Broken("sft overfit", "sft", ["overfit"], "sft", ["demonstrations.train_rows=60", "sft.num_epochs=40"]),
    Broken("labels at random", "reward", ["accuracy"], "reward", ["compare.agreement=0.505"]),
    Broken(
        "labels by length",
        "reward",
        ["length_only"],
        commands=[
            "data source=path:LENGTH.jsonl record=comparisons validation_share=0.25 name=NAME/compare".split(),
            (
                "reward model=quickstart_SEED/sft data=NAME/compare precision=fp32 batch_size=16 learning_rate=0.001"
                " warmup_steps=10 seed=SEED name=NAME/reward"
            ).split(),
        ],
    ),
    Broken(
        "no KL",
        "ppo",
        ["kl_blowup", "reward_hacking", "over_optimised", "kl_per_token"],
        "ppo",
        [*LONGER, "ppo.kl_coef=0", "ppo.num_iterations=120"],
    ),
    Broken("KL x1,000", "ppo", ["nothing_moved", "reward_fell"], "ppo", ["ppo.kl_coef=100"]),
    Broken(
        "value model does not learn",
        "ppo",
        ["explained_variance"],
        "ppo",
        ["ppo.value_from=policy", "ppo.value_learning_rate=1e-12"],
    ),
    Broken("length is paid", "ppo", ["length_hacking"], "ppo", rewarded("number_of_characters")),
    Broken("repetition is paid", "ppo", ["repeats"], "ppo", rewarded("repeated_words")),
    Broken("one answer is paid", "ppo", ["no_variety", "entropy_collapse"], "ppo", rewarded("one_answer")),
    Broken(
        "dpo rate x100",
        "dpo",
        ["held_out_loss", "likelihood_fell", "loss_rose"],
        commands=[
            (
                "dpo model=quickstart_SEED/sft data=quickstart_SEED/compare precision=fp32 batch_size=16 kl_coef=0.5"
                " learning_rate=0.03 warmup_steps=10 seed=SEED name=NAME/dpo"
            ).split()
        ],
    ),
    Broken(
        "policy on labels at random",
        "reward",
        ["accuracy"],
        overrides=[*LONGER, "compare.agreement=0.505", "ppo.kl_coef=0.01"],
    ),
)


# -- runs ----------------------------------------------------------------------------------------------------------


class World:
    """The store of one results file, and the commands that are given in it."""

    def __init__(self, results: Path):
        self.store = results.with_suffix(".store")
        self.printed = results.with_suffix(".txt")
        results.with_name("soak_rewards.py").write_text(FUNCTIONS)
        os.chdir(results.parent)  # where a reward function's module is looked for

    def give(self, command: Sequence[str], patch: Patch | None = None) -> int | None:
        self.printed.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patched:
            if patch is not None:
                patch(patched)
            given = [*command, "tracker=none", f"store={self.store}", "hardware.threads=1"]
            return ended(start(given, self.printed), 1800)

    def pipeline(self, name: str, seed: int, last: str, overrides: Sequence[str], patch: Patch | None) -> int | None:
        own = [f"steps.{each}" for each in (*SMALL, *overrides)]
        only = [f"step={last}"] if last else []
        return self.give(["run", "pipeline=quickstart", f"name={name}", f"seed={seed}", *LEFT_OUT, *only, *own], patch)

    def by_length(self, seed: int) -> None:
        """Write LENGTH.jsonl: the comparisons of a healthy run, ranked by length, the longest first."""
        folder = ArtifactStore(self.store).find(f"quickstart_{seed}/compare").path
        with Path("LENGTH.jsonl").open("w") as file:
            for row in pq.read_table(folder / "train.parquet").to_pylist():
                lengths = [len(text.split()) for text in row["responses"]]
                ranks = [1 + sorted(set(lengths), reverse=True).index(each) for each in lengths]
                prompt = [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]
                file.write(json.dumps({"prompt": prompt, "responses": row["responses"], "ranks": ranks}) + "\n")

    def diagnosed(self, name: str) -> list[dict[str, Any]]:
        found, _ = of_refs(ArtifactStore(self.store), [name], [])
        return [each.described() for each in found]


def broken_run(world: World, broken: Broken, seed: int) -> dict[str, Any]:
    name = f"{broken.name.replace(' ', '_').replace(',', '').lower()}_{seed}"
    if broken.commands:
        world.by_length(seed)
        codes = [
            world.give([word.replace("SEED", str(seed)).replace("NAME", name) for word in command])
            for command in broken.commands
        ]
        code = max(codes, key=lambda each: each or 0)
    else:
        code = world.pipeline(name, seed, broken.last, broken.overrides, broken.patch)
    wrong = [] if code in (0, 4) else [f"exit code {code}"]
    found = world.diagnosed(name)
    bad = [each for each in found if each["verdict"] == "bad"]
    reasons = [finding["name"] for finding in bad[0]["findings"] if finding["verdict"] == "bad"] if bad else []
    if not bad or bad[0]["step"] != broken.stage:
        wrong.append(f"expected {broken.stage}, named {bad[0]['step'] if bad else 'nothing'}")
    elif not set(reasons) & set(broken.reasons):
        wrong.append(f"expected one of {', '.join(broken.reasons)}, found {', '.join(reasons)}")
    stray = [each["step"] for each in bad[1:] if not each["cause"]]
    wrong += [f"{step} is accused without a cause" for step in stray]
    return {"bad": shown(bad), "wrong": wrong}


def healthy_run(world: World, seed: int) -> dict[str, Any]:
    name = f"quickstart_{seed}"
    code = world.pipeline(name, seed, "", (), None)
    found = world.diagnosed(name)
    bad = [each for each in found if each["verdict"] == "bad"]
    wrong = [f"exit code {code}"] if code else []
    wrong += [f"{each['step']} is accused" for each in bad]
    verdicts = {each["step"]: each["verdict"] for each in found}
    return {"bad": shown(bad), "wrong": wrong, "verdicts": verdicts}


def shown(bad: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        each["step"]: [f"{f['name']}: {f['figure']}" for f in each["findings"] if f["verdict"] == "bad"] for each in bad
    }


def run(results: Path, seconds: float, only: str | None, seeds: Sequence[int], chosen: str | None) -> int:
    begun, results = time.monotonic(), results.absolute()
    results.parent.mkdir(parents=True, exist_ok=True)
    rows, world = read_json_lines(results), World(results)
    done = {(row["part"], row["name"], row["seed"]) for row in rows}
    todo: list[tuple[str, str, int, Broken | None]] = []
    if only != "broken":
        todo += [("healthy", f"seed {seed}", seed, None) for seed in seeds]
    if only != "healthy":
        todo += [("broken", broken.name, seeds[0], broken) for broken in BROKEN]
        todo.sort(key=lambda each: each[2])  # the broken runs need their healthy one, and no other
    for part, name, seed, broken in todo:
        if (part, name, seed) in done or (chosen and chosen not in name):
            continue
        if time.monotonic() - begun > seconds:
            print("the time was too short; give the same command again")
            return 2
        began = time.monotonic()
        found = healthy_run(world, seed) if broken is None else broken_run(world, broken, seed)
        row = {"part": part, "name": name, "seed": seed, **found, "seconds": round(time.monotonic() - began, 1)}
        rows.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{part}: {name}: {row['bad']}: {'; '.join(row['wrong']) or 'as it should be'}", flush=True)
        if row["wrong"] and world.printed.exists():
            print(world.printed.read_text(errors="replace")[-1500:], file=sys.stderr)
    for part in ("healthy", "broken"):
        own = [row for row in rows if row["part"] == part]
        print(f"{part}: {sum(not row['wrong'] for row in own)} of {len(own)} as they should be")
    return 1 if any(row["wrong"] for row in rows) else 0


def numbers(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", choices=("broken", "healthy"))
    parser.add_argument("--seeds", type=numbers, default=numbers("0-9"), help="FIRST-LAST")
    parser.add_argument("--name", default=None, help="only runs whose name holds this")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run(options.results, 60 * options.minutes, options.only, options.seeds, options.name))
