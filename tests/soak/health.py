"""Break PPO on purpose in each way that people break it, and run it as it should be; see what is said of each.

    python tests/soak/health.py RESULTS.jsonl [--minutes 30] [--only broken|healthy] [--seeds 0-9]

It makes a small smallworld pipeline up to the reward models once, in RESULTS.store, and then only PPO steps. A broken
run has to be told by an event or refused before it begins; a healthy one, over all seeds, has to bring no event. Each
run adds one line to RESULTS.jsonl. Start it again with the same file and it continues with the next one. The exit
code is 1 where a run, of this start or of one before, found something wrong, and 2 where the time was too short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from kills import ended, start

from align.models.load import load_model
from align.models.packed import response_logprobs
from align.rl import judging
from align.sampling import sampler
from align.stages import ppo
from align.store.artifacts import read_json_lines
from align.verifiers.reward_models import RewardModel

SMALL = (
    *("text.train_rows=6000", "demonstrations.train_rows=1300", "prompts.train_rows=2000", "pretrain.num_steps=600"),
    *("compare.num_prompts=500", "compare.num_validation_prompts=50", "compare.num_responses=4"),
    *("prompts.test_rows=26", "prompts.validation_rows=100"),
)
PPO = ("num_iterations=40", "rollout_batch_size=32", "minibatch_size=16", "max_new_tokens=32")
Patch = Callable[[pytest.MonkeyPatch, Path], None]


class Broken(NamedTuple):
    """A way to break PPO: overrides of its step, or a change of what the forked process computes.

    Attributes:
        rules: any of which has to speak; none where the step has to be refused.
    """

    name: str
    rules: Sequence[str]
    overrides: Sequence[str] = ()
    patch: Patch | None = None


# -- what is broken ------------------------------------------------------------------------------------------------


PAYS_FOR_LENGTH = """
def number_of_characters(completions, **columns):
    return [len(messages[-1]["content"]) / 10 for messages in completions]
"""


def another_reference(patch: pytest.MonkeyPatch, store: Path) -> None:
    load, other = ppo.load_actors, load_model(newest(store, "pretrain"), torch.device("cpu"))

    def loading(*arguments: Any) -> Any:
        actors = load(*arguments)

        @torch.no_grad()
        def ref_logprobs(packed: Any, responses: Any, temperature: float) -> torch.Tensor:
            return response_logprobs(other, packed, responses, temperature)

        actors.ref_logprobs = ref_logprobs
        return actors

    patch.setattr(ppo, "load_actors", loading)


def scores_as(change: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    def apply(patch: pytest.MonkeyPatch, store: Path) -> None:
        score = RewardModel.__call__
        patch.setattr(RewardModel, "__call__", lambda self, *given: change(score(self, *given)))

    return apply


def no_end(patch: pytest.MonkeyPatch, store: Path) -> None:
    for module in (sampler, judging):
        patch.setattr(module, "stop_ids", lambda tokenizer: [tokenizer.vocab_size + 1])


LENGTH = "reward_functions={soak_rewards:number_of_characters:1.0}"
BROKEN = (
    Broken("learning rate x100", ("approx_kl", "clip_fraction", "kl_blowup"), ["learning_rate=0.03"]),
    Broken("no KL", ("kl_blowup", "reward_hacking"), ["kl_coef=0", "learning_rate=0.001", "num_iterations=80"]),
    Broken("length as reward", ("length_hacking", "cut_off"), [LENGTH, "inputs.reward_model=null", "kl_coef=0.01"]),
    Broken("temperature near 0", ("entropy_collapse",), ["temperature=0.02"]),
    Broken("temperature 0", (), ["temperature=0"]),
    Broken(
        "reward sign flipped",
        ("reward_hacking",),
        ["reward_model_weights=[-1.0]", "learning_rate=0.001", "num_iterations=80"],
    ),
    Broken("value learning rate 0", (), ["value_learning_rate=0"]),
    Broken(
        "value model that never learns", ("explained_variance",), ["value_from=policy", "value_learning_rate=1e-12"]
    ),
    Broken("no end token", ("cut_off",), (), no_end),
    Broken("one prompt", (), ["inputs.prompts=path:ONE_PROMPT"]),
    Broken("another reference", ("wrong_reference",), (), another_reference),
    Broken("constant reward model", ("flat_reward",), (), scores_as(torch.zeros_like)),
    Broken("saturated reward model", ("flat_reward",), (), scores_as(lambda s: torch.tanh(50 + s))),
    Broken("tiny batch", ("few_episodes",), ["rollout_batch_size=2", "minibatch_size=1"]),
)


# -- runs ----------------------------------------------------------------------------------------------------------


def newest(store: Path, step: str) -> Path:
    folder = store / "names/quickstart" / step
    version = json.loads((folder / "aliases/latest").read_text())["version"]
    record = json.loads((folder / f"v{version}.json").read_text())
    return store / "objects" / record["stage"] / record["key"]


def command_of(store: Path, seed: int, overrides: Sequence[str]) -> list[str]:
    own = [f"steps.{each}" for each in SMALL]
    given = [each.replace("ONE_PROMPT", str(store.parent / f"{store.stem}.one.jsonl")) for each in overrides]
    if seed >= 0:
        own += ["step=ppo", f"steps.ppo.seed={seed}", *(f"steps.ppo.{each}" for each in (*PPO, *given))]
    return ["run", "pipeline=quickstart", "tracker=none", f"store={store}", "hardware.threads=1", *own]


def events_of(store: Path) -> Iterator[dict[str, Any]]:
    """Of the PPO step that was made last."""
    folders = sorted(store.glob("objects/ppo/*"), key=lambda path: path.stat().st_mtime)
    works = sorted(store.glob("work/ppo/*/out"), key=lambda path: path.stat().st_mtime)
    for folder in works[-1:] or folders[-1:]:
        yield from read_json_lines(folder / "events.jsonl")


def ran(store: Path, seed: int, broken: Broken | None) -> dict[str, Any]:
    printed, begun = store.with_suffix(".txt"), time.monotonic()
    printed.unlink(missing_ok=True)
    before = set(store.glob("objects/ppo/*"))
    with pytest.MonkeyPatch.context() as patch:
        if broken is not None and broken.patch is not None:
            broken.patch(patch, store)
        # A key says what a step is made from, and not what was patched: a seed of its own keeps the runs apart.
        own = seed if broken is None else 1000 * (1 + BROKEN.index(broken)) + seed
        code = ended(start(command_of(store, own, () if broken is None else broken.overrides), printed), 900)
    made = set(store.glob("objects/ppo/*")) - before
    events = [(event["step"], event["name"]) for event in events_of(store)] if made or code == 4 else []
    names, wrong = sorted({name for _, name in events}), []
    said = printed.read_text(errors="replace")
    if broken is None:
        wrong += [f"exit code {code}"] if code != 0 else []
        wrong += [f"told of a healthy run: {name}" for name in names]
    elif not broken.rules:
        wrong += [f"exit code {code}: not refused"] if code != 2 else []
    else:
        wrong += [f"exit code {code}"] if code not in (0, 4) else []
        wrong += [] if set(broken.rules) & set(names) or code == 4 else [f"none of {', '.join(broken.rules)} spoke"]
    wrong += ["a traceback was printed"] if "Traceback" in said else []
    if wrong:
        print(said[-3000:], file=sys.stderr)
    return {"exit_code": code, "events": events, "wrong": wrong, "seconds": round(time.monotonic() - begun, 1)}


def prepare(store: Path) -> None:
    if (store / "whole").exists():
        return
    printed = store.with_suffix(".txt")
    code = ended(start([*command_of(store, -1, ()), "step=reward"], printed), 1800)
    assert code == 0, printed.read_text()
    prompt = {"prompt": [{"role": "user", "content": "What is the capital of Ostavia?"}]}
    store.with_suffix(".one.jsonl").write_text(200 * (json.dumps(prompt) + "\n"))
    (store / "whole").touch()


def run(results: Path, seconds: float, only: str | None, seeds: Sequence[int], chosen: str | None) -> int:
    store, begun = results.absolute().with_suffix(".store"), time.monotonic()
    results = results.absolute()
    results.with_name("soak_rewards.py").write_text(PAYS_FOR_LENGTH)
    os.chdir(results.parent)  # where a reward function's module is looked for
    rows = read_json_lines(results)
    prepare(store)
    todo: list[tuple[str, str, int, Broken | None]] = []
    if only != "healthy":
        todo += [("broken", broken.name, seeds[0], broken) for broken in BROKEN]
    if only != "broken":
        todo += [("healthy", f"seed {seed}", seed, None) for seed in seeds]
    done = {(row["part"], row["name"], row["seed"]) for row in rows}
    for part, name, seed, broken in todo:
        if (part, name, seed) in done or (chosen and chosen not in name):
            continue
        if time.monotonic() - begun > seconds:
            print("the time was too short; give the same command again")
            return 2
        row = {"part": part, "name": name, "seed": seed, **ran(store, seed, broken)}
        rows.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{part}: {name}: {row['events']}: {'; '.join(row['wrong']) or 'as it should be'}", flush=True)
    bad = [row for row in rows if row["wrong"]]
    print(f"{len(rows)} runs, {len(bad)} found something wrong")
    return 1 if bad else 0


def numbers(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", choices=("broken", "healthy"))
    parser.add_argument("--seeds", type=numbers, default=numbers("0-9"), help="FIRST-LAST")
    parser.add_argument("--name", default=None, help="only runs whose name holds this")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run(options.results, 60 * options.minutes, options.only, options.seeds, options.name))
