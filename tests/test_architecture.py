"""The shape of the house: sizes, names, what a stage file says of itself."""

import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from align.configs import STAGES, HardwareConfig, LoraConfig, ModelConfig, RunConfig, TrackerConfig

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "align").rglob("*.py"))
CONFIGS = [*STAGES.values(), ModelConfig, LoraConfig, HardwareConfig, TrackerConfig, RunConfig]
NESTED = {"model", "hardware", "tracker", "inputs"}


def test_every_target_of_make_has_a_rule() -> None:
    """A phony target without one counts as made."""
    rules = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", rules, re.MULTILINE)
    assert phony.split() == re.findall(r"^([a-z-]+):.* ## ", rules, re.MULTILINE)


def test_no_module_is_named_after_nothing() -> None:
    assert {"utils", "base", "helpers", "common", "manager"}.isdisjoint(path.stem for path in MODULES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_says_what_it_takes_and_makes_and_is_called_run(stage: str) -> None:
    module = importlib.import_module(STAGES[stage].MODULE or f"align.stages.{stage}")
    assert "\nTakes: " in module.__doc__
    assert "\nMakes: " in module.__doc__
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    public = [name for name in own if not name.startswith("_") and not isinstance(vars(module)[name], type)]
    assert public[0] == "run"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_knob_is_explained(config: type) -> None:
    for knob in fields(config):
        if knob.name not in NESTED:
            assert knob.metadata.get("comment"), knob.name


def test_every_stage_file_has_a_contract() -> None:
    modules = {config.MODULE.rpartition(".")[2] or stage for stage, config in STAGES.items()}
    assert {path.stem for path in (ROOT / "align/stages").glob("*.py")} == {*modules, "__init__"}


def test_a_pipeline_has_its_account_and_a_card_its_front_matter() -> None:
    for config in (ROOT / "conf/pipeline").glob("*.yaml"):
        folder = ROOT / "pipelines" / config.stem
        assert (folder / "README.md").is_file()
        assert (folder / "expected.yaml").is_file()
