"""Configs as nobody should write them, and right ones, made at random from a seed; and what has to be said of each.

A wrong one breaks one thing of a command: a knob's type, range or name, a file of YAML, an override's grammar, an
interpolation, an input, a setting, two knobs together. The same seed makes the same command.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from align.configs import STAGES, RunConfig

QUICKSTART = ["plan", "pipeline=quickstart"]
Answer = tuple[int, str, str]  # the exit code, standard output and standard error of a command


class Case(NamedTuple):
    """A command, and what its error line has to hold."""

    arguments: list[str]
    place: str
    files: tuple[tuple[str, bytes], ...] = ()


# -- what there is to break --------------------------------------------------------------------------------------------


class Knob(NamedTuple):
    words: list[str]  # of the command that has it
    key: str  # as an override says it
    kind: Any
    is_optional: bool


def _knobs(cls: Any, words: list[str], prefix: str = "") -> Iterator[Knob]:
    kinds = get_type_hints(cls)
    for knob in fields(cls):
        kind = kinds[knob.name]
        if is_dataclass(kind):
            yield from _knobs(kind, words, f"{prefix}{knob.name}.")
        elif knob.name not in ("inputs", "options"):
            inner = [one for one in get_args(kind) if one is not type(None)] if type(None) in get_args(kind) else [kind]
            yield Knob(words, prefix + knob.name, inner[0], len(get_args(kind)) > len(inner))


OF_STAGES = [knob for name, cls in STAGES.items() for knob in _knobs(cls, ["plan", name])]
OF_STEPS = [
    knob._replace(key=f"steps.{step}.{knob.key}")
    for step, stage in (("ppo", "ppo"), ("sft", "sft"), ("pretrain", "pretrain"), ("evaluate_ppo", "evaluate"))
    for knob in _knobs(STAGES[stage], QUICKSTART)
]
OF_RUNS = [
    knob
    for knob in _knobs(RunConfig, QUICKSTART)
    if knob.key not in ("name", "debug")  # without a name there is no pipeline
]
KNOBS = [*OF_STAGES, *OF_STEPS, *OF_RUNS]

LONG = "9" * 400
NO_TEXT = ["[1]", "{a:1}", "true", "null", '"a\x00b"']
NO_NUMBER = [
    "abc",
    "''",
    "''",
    "true",
    "[1]",
    "{a:1}",
    "inf",
    "nan",
    "-inf",
    "1e400",
    LONG,
    f"-{LONG}",
    "1_x",
    "0x",
    "None",
]
WRONG: dict[Any, list[str]] = {
    bool: ["1", "0", "2", "yes", "''", "null", "[true]", "{a:true}", "1.0", "on", "abc", LONG],
    int: [*NO_NUMBER, "1.5", "1e5", "9" * 30, "-" + "9" * 30, "1e-5"],
    float: NO_NUMBER,
    int | float: [*NO_NUMBER, "1.5"],
    str: NO_TEXT,
}


def wrong_values(rng: random.Random) -> Case:
    knob = rng.choice([knob for knob in KNOBS if knob.kind in WRONG])
    values = WRONG[knob.kind]
    value = rng.choice([v for v in values if v != "null" or not knob.is_optional])
    return Case([*knob.words, f"{knob.key}={value}"], knob.key)


def wrong_containers(rng: random.Random) -> Case:
    knob = rng.choice([knob for knob in KNOBS if knob.kind not in WRONG])
    value = rng.choice(["3", "abc", "true", "null", "''"])
    return Case([*knob.words, f"{knob.key}={value}"], knob.key)


POSITIVE = re.compile(r"(_size|_tokens|_length|_epochs|learning_rate|_norm|_every|rank|threads|num_steps|num_layers)$")


def out_of_range(rng: random.Random) -> Case:
    knob = rng.choice([k for k in KNOBS if k.kind in (int, float) and POSITIVE.search(k.key)])
    value = rng.choice(["0", "-1", "-1000000"])
    return Case([*knob.words, f"{knob.key}={value}"], knob.key.rpartition(".")[2])


def typos(rng: random.Random) -> Case:
    knob = rng.choice(KNOBS)
    head, _, last = knob.key.rpartition(".")
    place = rng.randint(0, len(last) - 1)
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz_")
    made = rng.choice([last[:place] + letter + last[place + 1 :], last[:place] + last[place + 1 :], last + letter])
    key = f"{head}.{made}" if head else made
    stage = knob.words[1] if knob.words != QUICKSTART else ""
    slots = {*STAGES[stage].INPUTS, *STAGES[stage].OPTIONAL} if stage else set()
    known = (
        {k.key for k in KNOBS} | {k.key.partition(".")[0] for k in KNOBS} | {"hydra", "pipeline", "sweep", "launcher"}
    )
    if not made or key in known or made in slots or made in ("inputs", "name", "debug", "model", "options"):
        key = made = "no_such_knob"
    return Case([*knob.words, f"{rng.choice(['', '+', '++'])}{key}=1"], made)


def injections(rng: random.Random) -> Case:
    """Grammar, interpolations and settings of Hydra where a number is expected."""
    knob = rng.choice([k for k in [*OF_STEPS, *OF_STAGES] if k.kind in (int, float)])
    noise = "".join(chr(rng.choice([*range(1, 0x250), 0x2028, 0x202E, 0x1F600])) for _ in range(rng.randrange(12)))
    value = rng.choice(
        [
            *("${nope}", "${nope", "${oc.env:NO_SUCH_VARIABLE}", "${oc.nope:1}", "${.nope}", "???"),
            *("'", '"', "\\", "{", "[", "}", "(", "choice(1,2)", "range(1,3)", "glob(*)", "1,2", "int(x)", "a:b:c"),
            *("$(touch owned)", "`touch owned`", "__import__('os')", "{_target_:os.system}", "!!python/object:x"),
            *(f"x{noise}", f"'{noise}", f"[{noise}", f"{{{noise}"),
        ]
    )
    return Case([*knob.words, f"{knob.key}={value}"], knob.key)


SETTINGS = [
    *[
        (f"{group}={value}", group)
        for group in ("hardware", "tracker", "launcher", "sweep")
        for value in ("3", "null", "nope")
    ],
    *[
        (f"hydra.{key}=x", "hydra")
        for key in ("mode", "run.dir", "output_subdir", "job.chdir", "verbose", "nope", "sweep", "job.name")
    ],
    *[
        (f"hydra.{word}", f"hydra.{word.partition('=')[0]}")
        for word in ("searchpath=[nope]", "sweep.dir=x", "launcher.n_jobs=2", "launcher._target_=os.system")
    ],
    *[(f"{group}={name}", group) for group in ("launcher", "hydra/launcher") for name in ("joblib", "submitit_local")],
    ("launcher=slurm", "launcher=slurm"),
    *[(f"{group}=${{hydra:nope}}", group) for group in ("hardware", "launcher", "sweep", "pipeline")],
    *[(f"{word}", "hydra") for word in ("hydra=null", "hydra=3", "hydra/job_logging=stdout", "hydra/output=x")],
    *[(f"{key}={{a: 1}}".replace(" ", ""), key) for key in ("hardware", "tracker", "steps.ppo", "steps.new")],
    *[(f"steps={value}", "steps") for value in ("null", "3", "[1]", "''")],
    *[(f"steps.ppo={value}", "steps.ppo") for value in ("null", "3", "[1]", "''")],
    *[(f"steps.ppo.stage={value}", "steps.ppo.stage") for value in ("null", "3", "[1]", "nope", "''")],
    *[(f"step={value}", "step") for value in ("nope", "[1]", "''")],
    *[(f"name={value}", "name") for value in ("'a b'", "../x", "a/b", "A", "'ü'", "'a\x00'", "x" * 70)],
    *[(f"store={value}", "store") for value in ("''", "null", "[1]", "true", "'a\x00b'")],
    *[(f"data_root={value}", "data_root") for value in ("''", "nope", "[1]")],
    *[(f"~steps.ppo.inputs.{slot}", f"steps.ppo.inputs.{slot}") for slot in ("policy", "prompts")],
    *[(word, word.strip() or "expected name=value") for word in ("=3", "", " ", "steps.ppo", "ppo")],
    ("sweep=beta", "sweep=beta"),
    ("steps.ppo.inputs.prompts=card:smallworld/trane", "steps.ppo.inputs.prompts"),
    ("steps.ppo.inputs.prompts=card:smalworld", "smalworld"),
    ("steps.ppo.inputs.policy=polcy", "steps.ppo.inputs.policy"),
    ("steps.ppo.inputs.policy=[sft,[1]]", "steps.ppo.inputs.policy"),
    ("steps.ppo.inputs.policy=3", "steps.ppo.inputs.policy"),
    ("steps.ppo.inputs.policy={a:1}", "steps.ppo.inputs.policy"),
    ("steps.ppo.inputs=[1]", "steps.ppo.inputs"),
    ("steps.ppo.inputs.nope=sft", "steps.ppo.inputs.nope"),
    ("steps.sft.inputs.model=sft", "steps.sft.inputs"),
    ("steps.ppo.top_p=0.5", "steps.ppo.top_p"),
    ("steps.ppo.minibatch_size=7", "steps.ppo.minibatch_size"),
    ("steps.ppo.lora.alpha=3", "steps.ppo.lora.alpha"),
    ("steps.ppo.ptx_coef=1", "steps.ppo.ptx_coef"),
    ("steps.ppo.kl_form=k9", "steps.ppo.kl_form"),
    ("steps.sft.text_share=0.1", "steps.sft.text_share"),
    ("steps.evaluate_ppo.tasks=[nope]", "steps.evaluate_ppo.tasks"),
    ("steps.evaluate_ppo.checks={a:3}", "steps.evaluate_ppo.checks.a"),
    ("steps.ppo.reward_functions={nope:f:1.0}", "steps.ppo.reward_functions"),
]


_FROM_NOWHERE = [
    *("hydra:nope", "hydra:job.num", "hydra:a.b", "hydra:", "hydra.nope", "oc.select:nope", "nope", "nope.a", ".nope"),
    *("nope:1", "oc.nope:1", "oc.env:NO_SUCH_VARIABLE", "oc.dict.keys:nope", "oc.dict.values:nope", "oc.decode:'['"),
    *("oc.deprecated:nope", "steps.nope.seed", "steps.ppo.nope", "seed.a", "oc.select:seed.a", "oc.create:'['"),
]


def from_nowhere(rng: random.Random) -> Case:
    """An interpolation of what is not there where null is allowed, on the command line or in a file."""
    knob = rng.choice([knob for knob in [*OF_STEPS, *OF_RUNS] if knob.is_optional])
    value = f"${{{rng.choice(_FROM_NOWHERE)}}}"
    if rng.random() < 0.5:
        return Case([*knob.words, f"{knob.key}={value}"], knob.key)
    written = f'{knob.key}: "{value}"\n'.encode()
    return Case([*knob.words, "--config", "mine.yaml"], "", (("mine.yaml", written),))


LONG_NAME = "x" * 5000
_PATHS = [
    *(f"{scheme}{LONG_NAME}" for scheme in ("", "path:", "card:", "hf:", "hf:a/", "/", "~/", "~", "a/b@")),
    *(f"path:{LONG_NAME}.jsonl", f"path:a/{LONG_NAME}/b", "path:" + "a/" * 2500),
]


def too_long(rng: random.Random) -> Case:
    """A path or a name that no system has room for."""
    stage, slot, key = rng.choice(
        [
            *((["plan", "data", "record=prompts"], "", "source"), (["plan", "import_model"], "", "source")),
            *((["plan", "tokenizer"], "", "source"), (QUICKSTART, "", "steps.ppo.inputs.prompts")),
            *((QUICKSTART, "", "steps.ppo.inputs.policy"), (QUICKSTART, "path:", "steps.evaluate_ppo.baseline")),
            *((QUICKSTART, "", "store"), (QUICKSTART, "", "data_root"), (QUICKSTART, "", "step")),
            *((QUICKSTART, "", "name"), (["plan"], "", "pipeline"), (QUICKSTART, "", "hardware")),
        ]
    )
    return Case([*stage, f"{key}={slot}{rng.choice(_PATHS)}"], key)


def wrong_settings(rng: random.Random) -> Case:
    word, place = rng.choice(SETTINGS)
    return Case([*QUICKSTART, word], place)


FILES: list[bytes] = [
    *(
        b"a: [1\nb: 2\n",
        b"a: 1\n b: 2\n",
        b"\ta: 1\n",
        b"a: b: c\n",
        b"seed: 1\nseed: 2\n",
        b"- 1\n",
        b"3\n",
        b"a\nb\n",
    ),
    *(b"seed: \xff\n", b"\x00", b"seed: \x01\n", b"seed: *x\n", b"seed: !x 1\n", b"seed: ${nope\n", b"a: {\n", b"'a\n"),
    *(
        b"--- {}\n--- {}\n",
        b"&a [*a]\n",
        b"steps: [1]\n",
        b"steps: null\n",
        b"seed: abc\n",
        b"seed: .inf\n",
        b"nope: 1\n",
    ),
    *(b"hardware: 3\n", b"hardware: {threads: 0}\n", b"hydra: {mode: MULTIRUN}\n", b"hydra: {output_subdir: x}\n"),
    *(
        b"steps: {ppo: {kl_coef: abc}}\n",
        b"steps: {ppo: {lora: 3}}\n",
        b"steps.ppo.kl_coef: [1]\n",
        b"1: 2\n",
        b"null: 1\n",
    ),
    *(
        b"sweep: beta\n",
        b"stage: sft\n",
        b"steps:\n  ppo:\n    kl_coef: 0.1\n    kl_coef: 0.2\n",
        b"seed: " + b"9" * 5000,
    ),
    *(b"[" * 3000, b"store: ''\n", b"json: 3\n", b"seed: '\xc3\xa9'\n", b"steps: {ppo: {stage: nope}}\n"),
]


def wrong_files(rng: random.Random) -> Case:
    return Case([*QUICKSTART, "--config", "mine.yaml"], "", (("mine.yaml", rng.choice(FILES)),))


KINDS: list[Callable[[random.Random], Case]] = [
    *(wrong_values, wrong_values, wrong_containers, out_of_range, typos, injections, wrong_settings, wrong_files),
    *(from_nowhere, too_long),
]


def wrong(seed: int) -> Case:
    return KINDS[seed % len(KINDS)](random.Random(seed))


# -- right ones --------------------------------------------------------------------------------------------------------


def name_of(rng: random.Random, marks: str) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "a" + "".join(rng.choice(letters + marks) for _ in range(rng.randrange(12)))


VALID: list[Callable[[random.Random], str]] = [
    lambda rng: f"seed={rng.randint(0, 2**31)}",
    lambda rng: f"store={name_of(rng, '_-')}",
    lambda rng: f"name={name_of(rng, '._-')}x",
    lambda rng: f"hardware.threads={rng.choice(['null', '1', '8'])}",
    lambda rng: f"hardware={rng.choice(['auto', 'two_processes'])}",
    lambda rng: f"tracker={rng.choice(['none', 'wandb'])}",
    lambda rng: f"json={rng.choice(['true', 'false'])}",
    lambda rng: f"steps.ppo.kl_coef={rng.uniform(0, 10)}",
    lambda rng: f"steps.ppo.learning_rate={rng.choice(['null', '1e-5', '3', '0.1'])}",
    lambda rng: f"steps.ppo.num_iterations={rng.randint(11, 10**9)}",
    lambda rng: f"steps.ppo.normalize_advantages={rng.random() < 0.5}".lower(),
    lambda rng: f"steps.ppo.schedule={rng.choice(['constant', 'linear', 'cosine'])}",
    lambda rng: f"steps.ppo.gamma={rng.uniform(0, 1)}",
    lambda rng: f"steps.sft.num_epochs={rng.randint(1, 10**6)}",
    lambda rng: f"steps.sft.batch_size={rng.randint(1, 10**6)}",
    lambda rng: f"steps.reward.seed={rng.choice(['null', '-1', '3'])}",
    lambda rng: f"steps.text.train_rows={rng.choice(['null', '10', '0'])}",
    lambda rng: f"steps.text.options.good_dialogue_share={rng.uniform(0, 1)}",
    lambda rng: f"steps.pretrain.model.hidden_size={rng.choice([32, 64, 768])}",
    lambda rng: f"steps.evaluate_ppo.split={rng.choice(['validation', 'test'])}",
    lambda rng: f"steps.evaluate_ppo.num_samples={rng.randint(0, 100)}",
    lambda rng: "steps.evaluate_ppo.steering=[brief,polite]",
    lambda rng: f"{rng.choice(['', 'hydra/'])}launcher=basic",
    lambda rng: f"steps.reward.seed=${{{rng.choice(['seed', 'oc.select:seed', 'oc.select:nope,null'])}}}",
    lambda rng: "seed=${oc.env:NO_SUCH_VARIABLE,3}",
    lambda rng: "steps.ppo.kl_coef=${oc.env:NO_SUCH_VARIABLE,0.1}",
    lambda rng: "~steps.evaluate_ppo",
    lambda rng: "step=sft",
]


def valid(rng: random.Random) -> list[str]:
    made = [make(rng) for make in rng.sample(VALID, rng.randint(1, 3))]
    words = {word.lstrip("~").partition("=")[0]: word for word in made}
    if "~steps.evaluate_ppo" in words.values():
        words = {key: word for key, word in words.items() if "steps.evaluate_ppo." not in word}
    return [*QUICKSTART, *words.values()]


def right(seed: int) -> list[str]:
    return valid(random.Random(seed))


# -- what must hold ----------------------------------------------------------------------------------------------------

_INNER = re.compile(r"object_type|full_key|ListConfig|DictConfig|could not be converted|Traceback|OmegaConf")
_IN_FILE = re.compile(r"error: (mine\.yaml(:\d+)?: |[\w./]+[=:])")


def faults_of_refusal(case: Case, ask: Callable[[list[str]], Answer]) -> list[str]:
    """What is wrong about how a wrong command is refused; run it in a folder of its own."""
    for name, text in case.files:
        Path(name).write_bytes(text)
    before = sorted(os.listdir())
    code, out, err = ask(case.arguments)
    lines = err.splitlines()
    if (code, out, len(lines)) != (2, "", 1):
        return [f"exit code {code}, {len(out)} characters printed, {len(lines)} lines of errors: {err[-300:]}"]
    (line,) = lines
    place = case.place in line or case.place.rpartition(".")[2] in line or re.search(r"mine\.yaml(:\d+)?: ", line)
    checks = {
        "no error line": line.startswith("error: "),
        "called a bug in align": "a bug in align" not in line,
        "says what is inside": not _INNER.search(line),
        "too long": len(line) < 1500,
        "says no place": place and (not case.files or _IN_FILE.match(line)),
        "something was written": sorted(os.listdir()) == before,
    }
    return [f"{what}: {line[:300]}" for what, holds in checks.items() if not holds]


def faults_of_plan(arguments: list[str], ask: Callable[[list[str]], Answer]) -> list[str]:
    """What is wrong about how a right command is planned."""
    code, out, err = ask(arguments)
    return [] if (code, err) == (0, "") and out else [f"exit code {code}: {err[-300:]}"]
