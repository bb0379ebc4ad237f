"""The tables of docs/explanation/ppo-facts.md name tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/explanation/ppo-facts.md"


def rows() -> dict[int, str]:
    _, tables = PAGE.read_text().split("## 35 facts")
    tables = tables.split("\n## ")[0]
    return {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)$", tables, re.MULTILINE)}


def test_every_fact_has_a_place() -> None:
    assert sorted(rows()) == list(range(1, 36))
    for number, row in rows().items():
        assert "::test_" in row or "choice: " in row, number


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", "\n".join(rows().values()))
    assert len(named) > 35
    missing = []
    for file, test in named:
        path = TESTS / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.parse("")
        if test not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{test}")
    assert missing == []
