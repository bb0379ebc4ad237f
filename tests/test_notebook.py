"""The example notebook: its cells run in order in one namespace, and the committed file has no outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples/notebook.ipynb"


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in code_cells():
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        compile("".join(cell["source"]), NOTEBOOK.name, "exec")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Jupyter, whose loop and kernel tests/test_api.py stands in for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in code_cells():
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), namespace)
    out, err = capsys.readouterr()
    assert err == ""
    assert Path(namespace["store"]).parent == tmp_path
    assert [step.cached for step in namespace["again"].values()][-1] is False
    assert all([step.cached for step in namespace["again"].values()][:-1])
    assert "report:" in out
    assert out.splitlines()[-1].startswith("lr: no such knob (did you mean learning_rate?)")
