"""What `--help` says fits a terminal, and says the same at every width."""

import pytest

from align.cli.help import command_help, overview
from align.configs import STAGES


@pytest.mark.parametrize("verb", ["", "run", "plan", "model", *STAGES])
def test_help_fits_80_columns_and_loses_no_word(verb, monkeypatch):
    def text():
        return command_help(verb) if verb else overview()

    whole = text()
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, text().splitlines())) <= 80
    assert text().split() == whole.split()


def test_without_a_terminal_a_knob_is_one_line(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (line,) = [line for line in command_help("sft").splitlines() if line.lstrip().startswith("learning_rate ")]
    assert "null: 2e-5, with lora.rank 2e-4" in line
