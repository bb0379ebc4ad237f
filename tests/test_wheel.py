"""The installed package finds its configs and cards from anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_plans_the_quickstart_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    assert (tmp_path / "installed/align/report/page.html.jinja").is_file()
    assert (tmp_path / "installed/align/py.typed").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    code = "import sys, align.cli.main as cli; assert 'installed' in cli.__file__; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "plan", "pipeline=quickstart"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    here = subprocess.run(
        [sys.executable, "-m", "align", *command[3:]], cwd=empty, capture_output=True, text=True, check=True
    )
    assert done.stdout == here.stdout
    assert "0 cached" in done.stdout
    assert list(empty.iterdir()) == []
