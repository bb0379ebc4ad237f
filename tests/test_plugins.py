"""Packages that add to align: the one of docs/how-to/add-a-stage.md, and packages that are broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documents import ROOT, blocks, commands

PAGE = ROOT / "docs/how-to/add-a-stage.md"


def declare(place: Path, name: str, version: str, entry_points: dict[str, str]) -> None:
    """Write what pip writes of an installed package."""
    info = place / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[align.plugins]", *lines, ""]))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the package of the page."""
    for block in blocks(PAGE):
        if block.title is not None:
            file = tmp_path / "source" / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    project = tomllib.loads((tmp_path / "source/my_stages/pyproject.toml").read_text())["project"]
    shutil.copytree(tmp_path / "source/my_stages/my_stages", tmp_path / "site/my_stages")
    declare(tmp_path / "site", project["name"], project["version"], project["entry-points"]["align.plugins"])
    return tmp_path / "site"


def run(site: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `align` in a process of its own, for plugins are found once a process."""
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "align", *words],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": path, "WANDB_MODE": "offline", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=check,
    )


def steps(site: Path) -> dict[str, dict[str, object]]:
    """What a plan of the page's pipeline says of each step."""
    said = json.loads(run(site, "plan", "pipeline=clean", "--json").stdout)
    return {str(step["step"]): step for step in said}


def test_a_stage_of_another_package_is_planned_run_cached_and_in_the_lineage(site: Path) -> None:
    pip, *printed = [
        command.split()[1:] for block in blocks(PAGE) if block.needs == "install" for command in commands(block)
    ]
    assert pip == ["install", "-e", "my_stages"]
    plan, ran, alone, lineage = printed
    assert "2 to run, 0 cached" in run(site, *plan).stdout
    run(site, *ran, "tracker=none")
    rows = json.loads(run(site, "artifacts", "show", "clean/dedupe", "--json").stdout)["metrics"]
    assert 0 < rows["rows/train"] < 50
    assert "0 to run, 2 cached" in run(site, *plan).stdout
    assert "clean/prompts" in run(site, *lineage).stdout
    assert alone[0] == "dedupe"
    shown = run(site, "dedupe", "--help").stdout
    assert "num_words                           5              words that must differ [ours]" in shown


def test_the_code_of_the_package_and_its_version_are_in_the_keys_of_its_stages_alone(site: Path) -> None:
    before = steps(site)
    with (site / "my_stages/dedupe.py").open("a") as file:
        file.write("# changed\n")
    changed = steps(site)
    assert changed["clean/prompts"]["key"] == before["clean/prompts"]["key"]
    assert changed["clean/dedupe"]["key"] != before["clean/dedupe"]["key"]
    (site / "my-stages-0.1.dist-info").rename(site / "my-stages-0.2.dist-info")
    metadata = site / "my-stages-0.2.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("0.1", "0.2"))
    assert steps(site)["clean/dedupe"]["key"] != changed["clean/dedupe"]["key"]


BROKEN = {
    "exits": ("raise SystemExit('no licence')", "cannot be used (SystemExit: no licence)"),
    "missing": ("", "cannot be used (ModuleNotFoundError: No module named 'missing')"),
    "no_module": (
        "from align.configs import Ppo\nSTAGES = [Ppo]",
        "cannot be used (TypeError: STAGES: Ppo has no MODULE)",
    ),
    "no_stage": ("STAGES = [int]", "cannot be used (TypeError: STAGES: expected subclasses of align.con"),
    "taken": (
        "from align.configs import Ppo\nclass Mine(Ppo):\n    MODULE = 'taken'\nSTAGES = [Mine]",
        "stage ppo: the name is taken",
    ),
}


def test_packages_that_are_broken_are_named_in_a_line_each_and_stop_no_other(site: Path) -> None:
    """All at once: each is a package of its own."""
    own = run(site, "plan", "pipeline=quickstart", "--json")
    for name, (module, _) in BROKEN.items():
        declare(site, name, "1.0", {name: name})
        if module:
            (site / f"{name}.py").write_text(module + "\n")
    done = run(site, "plan", "pipeline=clean")
    assert "2 to run, 0 cached" in done.stdout
    told = done.stderr.splitlines()
    for line, (name, (_, said)) in zip(sorted(told), BROKEN.items(), strict=True):
        assert line.startswith(f"warning: plugin {name} 1.0: {said}")
    assert run(site, "plan", "pipeline=quickstart", "--json").stdout == own.stdout
    assert run(site, "artifacts", "ls", check=False).stderr.splitlines()[: len(told)] == told


CONTRACT = """
from dataclasses import dataclass
from align.configs import StageConfig, knob

@dataclass(slots=True, kw_only=True)
class Count(StageConfig):
    STAGE, MODULE, OUTPUT, INPUTS = "count", "broken", "counts", {"data": "documents"}
    most: int = knob(5, "documents [ours]")

STAGES = [Count]
"""


WRONG = [
    ('"counts"', '"evaluation"', "Count.INPUTS: an evaluation needs an input named model"),
    (
        "    most",
        "    HEADLINE = ('rows', 'tokens')\n    most",
        "Count.HEADLINE: expected pairs (metric, label), got ('r",
    ),
    ("    most", "    CURVES = ('loss',)\n    most", "Count.CURVES: expected Curve objects"),
    ("@dataclass(slots=True, kw_only=True)\n", "", "Count.most: write @dataclass(slots=True, kw_only=True) above"),
    ('knob(5, "documents [ours]")', "5", "Count.most: declare it by knob(DEFAULT, COMMENT)"),
    ("[Count]", "Count", "expected a list of classes, got <class '"),
    (
        "@dataclass(slots=True, kw_only=True)\nclass Count(StageConfig)",
        "class Base(StageConfig):\n    least: int = 1\n\n@dataclass(slots=True, kw_only=True)\nclass Count(Base)",
        "Base.least: write @dataclass(slots=True, kw_only=True) above",
    ),
    (
        "STAGES = [Count]",
        "class More(Count):\n    STAGE = 'more'\n    most: int = knob(6, 'documents')\n\nSTAGES = [More]",
        "More.most: write @dataclass(slots=True, kw_only=True) above",
    ),
]


def test_a_contract_that_is_wrong_is_refused_before_anything_runs(site: Path) -> None:
    """All in one command: each is a package of its own."""
    for number, (right, wrong, _) in enumerate([("", "", ""), *WRONG]):
        declare(site, f"broken{number}", "1.0", {f"broken{number}": f"broken{number}"})
        text = CONTRACT.replace('"broken"', f'"broken{number}"').replace('"count"', f'"count{number}"')
        assert right in text
        (site / f"broken{number}.py").write_text(text.replace(right, wrong, 1))
    told = run(site, "plan", "pipeline=clean").stderr.splitlines()
    assert len(told) == len(WRONG)  # the first one is right
    for number, (line, (_, _, said)) in enumerate(zip(told, WRONG, strict=True), 1):
        assert line.startswith(f"warning: plugin broken{number} 1.0: cannot be used (TypeError: STAGES: {said}")


def test_a_package_that_adds_nothing_says_so(site: Path) -> None:
    declare(site, "broken", "1.0", {"broken": "broken"})
    (site / "broken.py").write_text(CONTRACT.replace("STAGES", "STAGE"))
    assert "it adds nothing: it has no STAGES, conf/ or data_cards/" in run(site, "plan", "pipeline=clean").stderr


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("    metrics = {}", "    metrics = {}['x']", "dedupe.py:8 (in run): KeyError: 'x'"),
        pytest.param(
            "    return metrics",
            "    return {'rows': 'many'}",
            "TypeError: run returned 'many' as the metric 'rows'; expected an int or a float",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "    return metrics",
            "    return None",
            "TypeError: run returned None; expected a dictionary of names and numbers",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_in_a_package_names_what_is_wrong_and_the_package(
    site: Path, right: str, wrong: str, said: str
) -> None:
    file = site / "my_stages/dedupe.py"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    done = run(site, "run", "pipeline=clean", "tracker=none", check=False)
    assert done.returncode == 2
    assert f"{said}; raised by the stage dedupe of plugin my_stages 0.1" in done.stderr


def test_a_module_alone_has_its_own_source_in_the_key_and_not_what_lies_beside_it(site: Path) -> None:
    text = (site / "my_stages/__init__.py").read_text()
    (site / "single.py").write_text(text.replace('"dedupe"', '"unique"'))
    declare(site, "single", "1.0", {"single": "single"})
    given = ("plan", "unique", "prompts=card:smallworld", "--json")
    before = json.loads(run(site, *given).stdout)[-1]["key"]
    (site / "beside.py").write_text("1\n")
    assert json.loads(run(site, *given).stdout)[-1]["key"] == before
    with (site / "single.py").open("a") as file:
        file.write("# changed\n")
    assert json.loads(run(site, *given).stdout)[-1]["key"] != before
