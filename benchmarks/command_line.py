"""How long the command line takes before any work begins, beside Python's own start and Hydra's.

python benchmarks/command_line.py [--json FILE]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from _report import arguments, medians, report

_HYDRA_APP = "import hydra; hydra.main(version_base=None)(lambda cfg: None)()"


def main() -> None:
    options = arguments(__doc__)

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names = ("python", "hydra_help", "align_help", "plan_instructgpt", "plan_quickstart")
        seconds = medians(
            [
                lambda: run("-c", "pass"),
                lambda: run("-c", _HYDRA_APP, "--help"),
                lambda: run("-m", "align", "--help"),
                lambda: run("-m", "align", "plan", "pipeline=instructgpt"),
                lambda: run("-m", "align", "plan", "pipeline=quickstart"),
            ],
            rounds=9,
        )
    report({f"seconds/{name}": value for name, value in zip(names, seconds, strict=True)}, options.json)


if __name__ == "__main__":
    main()
