"""Tables for a terminal: nothing is cut inside a word, no number is cut at all, and each line fits."""

import itertools
import random
import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.tree import Tree

import align
from align.runtime.console import plain_console, sentence_lines, table_lines, wide_console

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def laid_out(columns, rows, width=80):
    return [line for lines, _ in table_lines(columns, rows, width) for line in lines]


def test_a_table_that_fits_stands_as_it_is():
    rows = [["base", "0.012", "a b"], ["a_model", "12.5", ""]]
    assert table_lines(["model", "score", "why"], rows, 80) == [
        (["model    score  why"], "bold"),
        (["base     0.012  a b", "a_model   12.5"], ""),
    ]


def test_a_table_without_titles_has_no_head():
    assert laid_out(["", ""], [["one", "two words"]]) == ["one  two words"]


def test_text_gives_way_and_numbers_do_not():
    lines = laid_out(
        ["step", "wins", "why"],
        [["evaluate_ppo", "67.2 [64.4, 69.8]", "input policy changed; input reward_model changed"]],
        60,
    )
    assert lines == [
        "step                       wins  why",
        "evaluate_ppo  67.2 [64.4, 69.8]  input policy changed; input",
        "                                 reward_model changed",
    ]


def test_names_break_after_a_slash_or_an_underscore_or_lose_their_middle():
    rows = [["my_long_pipeline/evaluate_the_policy", "1"], ["x" * 10 + "yz" * 10, "2"]]
    assert laid_out(["", "n"], rows, 20) == [
        "                   n",
        "my_long_pipeline/  1",
        "evaluate_the_",
        "policy",
        "xxxxxxx...zyzyzyz  2",
    ]


def test_columns_that_do_not_fit_stand_below_with_the_first_again():
    columns = ["member", *(f"metric/{i}" for i in range(9))]
    rows = [[str(m), *("0.123456" for _ in range(9))] for m in range(2)]
    lines = laid_out(columns, rows, 40)
    assert max(map(len, lines)) <= 40
    assert sum(line.startswith("member") for line in lines) == 3
    assert sum(line.count("0.123456") for line in lines) == 18


def test_a_wide_letter_counts_as_two_columns():
    (line,) = laid_out(["", ""], [["文" * 40, "0.5"]], 30)
    assert line.endswith("  0.5")
    assert len(line) + line.count("文") <= 30


def test_no_command_reaches_the_terminal():
    assert laid_out(["", ""], [["a\x1b[31mb", "c\nd"]]) == ["a [31mb  c d"]


def name(rng):
    parts = ["".join(rng.choices(LETTERS, k=rng.randint(1, 40))) for _ in range(rng.randint(1, 5))]
    return rng.choice("/_ ").join(parts)


def number(rng):
    mean, low, high = (rng.uniform(-1e6, 1e6) for _ in range(3))
    return rng.choice([f"{mean:.4g}", f"{mean:,.1f}", f"{mean:.1f} [{low:.1f}, {high:.1f}]", f"{mean:+.3g} *", "409 k"])


@pytest.mark.parametrize("seed", range(40))
def test_any_table_fits_cuts_no_number_and_breaks_no_word(seed):
    rng = random.Random(seed)
    width = rng.choice([60, 80, 100, 132])
    kinds = [name, *rng.choices([name, number], k=rng.randint(1, 11))]
    titles = [name(rng) for _ in kinds]
    rows = [[kind(rng) for kind in kinds] for _ in range(rng.randint(1, 6))]
    lines = laid_out(titles, rows, width)
    assert max(map(len, lines)) <= width
    shown = " ".join(lines)
    for column, kind in enumerate(kinds):
        for row in rows if kind is number else []:
            assert row[column] in shown
            shown = shown.replace(row[column], "", 1)
    whole = {word for cell in [*titles, *itertools.chain(*rows)] for word in re.split(r"[\s/_]+", cell)}
    for word in re.findall(r"[a-z.]*[a-z][a-z.]*", shown):
        head, dots, tail = word.partition("...")
        assert any(w.startswith(head) and w.endswith(tail) if dots else w == word for w in whole), word


@pytest.mark.parametrize("width", [40, 80])
def test_a_sentence_breaks_between_words_alone(width):
    text = (
        "In 15.8 % of 19, 0.0 % of 8 and 100.0 % of 9. It worked: ppo wins 68.0 % [65.0, 71.0] over sft (better, "
        "beyond chance) on 600 prompts, by gold score."
    )
    lines = sentence_lines(text, width)
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == text
    assert all(line.startswith("  ") for line in lines[1:])
    assert not any(line.strip().startswith("%") for line in lines)
    assert sentence_lines("see " + "/a" * 60, 40) == ["see", "  " + "/a" * 60]


FOREIGN = r"\[x^2\] [/red] [bold]a[/bold] [link=x] :smile: 12 'a' [ ["


@pytest.mark.parametrize("console", [plain_console, wide_console])
def test_a_console_prints_what_others_wrote_as_it_is(console, capsys):
    """Markup, names of emoji and numbers; a closing tag that nothing opens would end in an error."""
    printer = console()
    printer.print(FOREIGN, soft_wrap=True)
    printer.print(Tree(FOREIGN))
    table = Table(box=None, pad_edge=False)
    table.add_column(FOREIGN)
    table.add_row(FOREIGN)
    printer.print(table)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [FOREIGN] * 4


def test_every_console_is_a_plain_one():
    """One that is made elsewhere would read markup in a path or in a model's text."""
    package = Path(align.__file__).parent
    makers = [
        path.name for path in package.rglob("*.py") if re.search(r"\b(?:Console|from_markup)\(", path.read_text())
    ]
    assert makers == ["console.py"]
