"""The commands, files and Python of the README and of every page in docs/ work as they are printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import align, made_once
from documents import NEEDS, PAGES, ROOT, Block, blocks, commands

from align.data.demonstrations import a_list
from align.data.records import Dropped, check_text

MODEL = ROOT / ".cache/real-model"
LANGUAGES = {"sh", "python", "yaml", "json", "jsonl", "csv", "tsv", "txt", "text", "toml", "markdown"}
PROGRAMS = {"align", "make", "python", "pip", "source", "echo", "cat", "export", "wandb", "vllm", "scancel", "nohup"}
SKIPPED = {"make", "pip", "source", "export"}  # the environment is there
QUICKSTART = (
    "pipeline=quickstart",
    "tracker=none",
    "steps.text.train_rows=1000",
    "steps.demonstrations.train_rows=400",
    "steps.pretrain.num_steps=40",
    "steps.zero_shot.num_prompts=8",
    "steps.few_shot.num_prompts=8",
    "steps.compare.num_prompts=100",
    "steps.compare.num_validation_prompts=50",
    "steps.ppo.num_iterations=2",
    "steps.ppo.rollout_batch_size=16",
    "steps.ppo.minibatch_size=16",
    *(f"steps.evaluate_{name}.num_prompts=20" for name in ("base", "sft", "ppo")),
    *(f"steps.evaluate_{name}.max_new_tokens=8" for name in ("base", "sft", "ppo")),
)
# What a command of one stage is given besides, so that it ends in seconds.
STAGES = {
    "pretrain": ("num_steps=3",),
    "sft": ("num_epochs=1",),
    "reward": ("num_epochs=1",),
    "ppo": ("num_iterations=2", "rollout_batch_size=8", "minibatch_size=8", "max_new_tokens=8"),
    "grpo": ("num_iterations=2", "rollout_batch_size=8", "minibatch_size=8", "max_new_tokens=8"),
    "rloo": ("num_iterations=2", "rollout_batch_size=8", "minibatch_size=8", "max_new_tokens=8"),
    "dpo": ("num_epochs=1",),
    "raft": ("num_iterations=2", "rollout_batch_size=8", "group_size=4", "max_new_tokens=8"),
    "best_of_n": ("num_prompts=8", "num_responses=4", "num_bootstrap=10", "max_new_tokens=8"),
    "kto": ("num_epochs=1",),
    "compare": ("num_prompts=20", "num_validation_prompts=10", "max_new_tokens=8"),
    "evaluate": ("num_prompts=20", "num_bootstrap=10", "max_new_tokens=8"),
    "evaluate_reward": ("num_rankings=40", "num_bootstrap=10"),
    "prompt": ("num_prompts=8", "max_new_tokens=8"),
    "finetune": ("num_epochs=1",),
    "text_to_text": ("num_steps=3",),
}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_say_what_they_are(page: Path) -> None:
    assert page.read_text().count("```") == 2 * len(blocks(page)), "a block is not closed, or its fence is odd"
    for block in blocks(page):
        where = f"{name(page)}:{block.line}"
        assert block.language in LANGUAGES, where
        assert block.needs is None or block.needs in NEEDS, where
        if block.language == "sh":
            for command in commands(block):
                words = [word for word in command.split() if "=" not in word or word.startswith("'")]
                assert words[0] in PROGRAMS, f"{where}: {command}"


def small(arguments: list[str], page: Path) -> list[str]:
    """The arguments of `align`, with sizes at which it ends in seconds; only the page about W&B tracks its runs."""
    verb = next((word for word in arguments if word != "plan"), "")
    if "pipeline=quickstart" in arguments:
        sizes = QUICKSTART
    elif verb in STAGES and not {"--help", "--config"} & {*arguments}:
        sizes = ("tracker=none", *STAGES[verb])
    else:
        return arguments
    sizes = [size for size in sizes if size != "tracker=none" or page.stem != "use-wandb"]
    swept = {knob(word) for word in arguments if re.search(r"=[^\[{]*,", word)}
    sizes = [size for size in sizes if knob(size) not in {*swept, "pipeline"}]
    replaced = {knob(size) for size in sizes}
    return [*(word for word in arguments if knob(word) not in replaced), *sizes]


def knob(argument: str) -> str:
    return argument.partition("=")[0]


def execute(page: Path, folder: Path, able: set[str]) -> int:
    """Run a page from top to bottom in `folder`; returns how many blocks ran."""
    ran = 0
    for block in blocks(page):
        if block.needs is not None and block.needs not in able:
            continue
        if block.title is not None:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "python":
            run([sys.executable, "-c", block.text], folder, page, block)
        elif block.language == "sh":
            for command in commands(block):
                run_command(command, folder, page, block)
        else:
            continue
        ran += 1
    return ran


def run_command(command: str, folder: Path, page: Path, block: Block) -> None:
    words = shlex.split(command)
    if words[0] in SKIPPED:
        return
    if words[0] == "align" and not re.search(r"[|<>$&;]", command):
        done = align(*small(words[1:], page), check=None)
        assert done.returncode == 0, f"{name(page)}:{block.line}: {command}\n{done.stderr}"
    else:
        run(["bash", "-ec", command], folder, page, block)


def run(command: list[str], folder: Path, page: Path, block: Block) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name(page)}:{block.line}: {command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def finished(shared: Path) -> Path:
    """A folder with a store in which the quickstart has run at a small size."""

    def make(folder: Path) -> None:
        align("run", *QUICKSTART, f"store={folder / 'artifacts'}")

    return made_once(shared / "docs", make)


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with that store."""
    shutil.copytree(finished, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def with_code(needed: set[str | None]) -> list[Path]:
    return [page for page in PAGES if any(b.needs in needed and b.language in ("sh", "python") for b in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_code({None}), ids=name)
def test_a_page_runs_from_top_to_bottom(page: Path, folder: Path) -> None:
    assert execute(page, folder, set()) > 0


@pytest.mark.real
@pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is absent: run make real-model")
@pytest.mark.parametrize("page", with_code({"real-model"}), ids=name)
def test_a_page_runs_with_a_real_model(page: Path, folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache/real-model").symlink_to(MODEL)
    assert execute(page, folder, {"real-model"}) > 0


def test_the_reader_of_the_page_on_layouts_reads_its_rows() -> None:
    reader = next(
        block for block in blocks(ROOT / "docs/how-to/add-a-data-layout.md") if "def good_and_bad" in block.text
    )
    names: dict[str, Any] = {"Any": Any, "Iterator": Iterator, "Row": dict, "Dropped": Dropped}
    names |= {"check_text": check_text, "a_list": a_list}
    exec(reader.text, names)
    (row,) = names["good_and_bad"]({"task": "Add 1 and 2.", "good_answers": ["3"], "bad_answers": ["4", "12"]})
    assert row["responses"] == ["3", "4", "12"]
    assert row["ranks"] == [1, 2, 2]
    with pytest.raises(Dropped):
        list(names["good_and_bad"]({"task": "Add 1 and 2.", "good_answers": [], "bad_answers": ["4"]}))


EXAMPLES = {  # a file in examples/: the page that shows it, and its title there
    "reward_function/plain_rules.py": ("docs/tutorials/ppo-without-a-reward-model.md", "plain_rules.py"),
    "pipeline/my_pipeline.yaml": ("docs/how-to/write-config-files.md", "my_pipeline.yaml"),
    **{
        f"stage_package/{file}": ("docs/how-to/add-a-stage.md", f"my_stages/{file}")
        for file in (
            "pyproject.toml",
            "my_stages/__init__.py",
            "my_stages/dedupe.py",
            "my_stages/conf/pipeline/clean.yaml",
        )
    },
}


def test_examples_are_what_the_pages_show() -> None:
    files = [str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*") if path.is_file()]
    kept = [file for file in files if "__pycache__" not in file]
    assert sorted(kept) == sorted([*EXAMPLES, "README.md", "notebook.ipynb"])
    for file, (page, title) in EXAMPLES.items():
        (text,) = [block.text for block in blocks(ROOT / page) if block.title == title]
        assert (ROOT / "examples" / file).read_text() == text, file


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), ROOT / "examples/README.md"], ids=name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    """The site's build checks the pages in docs/; these are read in the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target
