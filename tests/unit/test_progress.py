"""Progress of long work."""

import re

import pytest
from rich.console import Console

from align.runtime import progress
from align.runtime.progress import Progress

PPO = {
    **{"objective/score": -1.25, "reward/model": 0.5, "reward/get_soft_overlong_punishment": -0.5},
    **{
        "reward/brevity": -12.0,
        "reward/missing_eos": 0.1,
        "objective/kl": 1.5,
        "gold/score": 0.4,
        "policy/entropy": 3.0,
    },
}
NUMBERS = [
    "score -1.25",
    "kl 1.5",
    "gold/score 0.4",
    "model 0.5",
    "get_soft_overlong_punishment -0.5",
    "brevity -12",
    "missing_eos 0.1",
]


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (3000, r"  data: 2,000/3,000 rows read  [\d,]+/s  0:00 left"),
        (None, r"  data: 2,000 rows read  [\d,]+/s"),
    ],
)
def test_a_plain_line_says_how_far_how_fast_and_how_long_where_that_is_known(monkeypatch, capsys, total, line):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Progress("data").over(total, 0, "rows read") as advance:
        advance(1500)
        advance(500)
    assert re.fullmatch(line, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    ("seconds", "pace"), [(40.0, "20.0 s each  0:20 left"), (0.4, "5.0/s  0:00 left"), (0.004, "500/s  0:00 left")]
)
def test_a_pace_below_one_a_second_is_said_in_seconds_each(monkeypatch, capsys, seconds, pace):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress("ppo").over(3, 0, "iterations") as advance:
        clock[0] = seconds
        advance(2)
    assert capsys.readouterr().err.rstrip() == f"  ppo: 2/3 iterations  {pace}"


@pytest.mark.parametrize("unit", ["iterations", "greedy responses of the prompted base model"])
def test_plain_lines_fit_80_columns_and_hold_every_number_whole(monkeypatch, capsys, unit):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    bar = Progress("quickstart/evaluate_ppo")
    with bar.over(5_000_000, 0, unit) as advance:
        bar.show(PPO)
        advance(123_456)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("  quickstart/evaluate_ppo: 123,456/5,000,000")
    assert any(unit in line for line in [first, *others])
    assert all(line.startswith("    ") for line in others)
    assert max(map(len, [first, *others])) <= 80
    assert [number for number in NUMBERS if not any(number in line for line in [first, *others])] == []


def test_before_the_first_unit_is_done_no_pace_is_made_up(monkeypatch):
    console = Console(width=80, force_terminal=True, record=True, stderr=True)
    monkeypatch.setattr(progress, "plain_console", lambda stderr: console)
    with Progress("ppo").over(60, 0, "iterations"):
        pass
    shown = console.export_text(styles=False)
    assert "0/60 iterations" in shown
    assert "left" not in shown


@pytest.mark.parametrize("width", [72, 80, 200])
def test_on_a_narrow_terminal_every_part_of_the_reward_is_shown_whole(monkeypatch, width):
    console = Console(width=width, force_terminal=True, record=True, stderr=True)
    monkeypatch.setattr(progress, "plain_console", lambda stderr: console)
    bar = Progress("quickstart/ppo")
    with bar.over(500, 0, "iterations") as advance:
        bar.show(PPO)
        advance(1)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.export_text(styles=False))
    last = shown[shown.rindex("quickstart/ppo") :]
    assert [number for number in NUMBERS if number not in last] == []
    assert max(map(len, shown.splitlines())) <= width
    assert "1/500" in last
    assert "length" not in last
