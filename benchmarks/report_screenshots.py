r"""Look at pages of `align report` and `align sweep show` in a browser: screenshots, and what a browser can check.

Every page is opened 1280 and 400 pixels wide, light and dark. It fails where the page scrolls sideways, where a
deciding column (model, score, win rate) is out of sight, where a script fails, or where axe-core finds a serious or
critical fault. The project has no browser; make an environment of its own, beside the project's:

    python -m venv .venv-browser && .venv-browser/bin/pip install playwright
    npm pack axe-core && tar xzf axe-core-*.tgz          # gives package/axe.min.js; without --axe it is not asked
    .venv-browser/bin/python benchmarks/report_screenshots.py artifacts/reports/quickstart.html \
        --axe package/axe.min.js --folder screenshots --picture docs/report.png

Chromium is the one on the PATH, else playwright's own (`playwright install chromium`).
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from pathlib import Path
from typing import Any

_WIDTHS, _SCHEMES, _HEIGHT = (1280, 400), ("light", "dark"), 900
_SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"
_HIDDEN = """[...document.querySelectorAll('.deciding [data-label]')]
    .filter(cell => ['model', 'score', 'win rate'].includes(cell.dataset.label) && cell.innerText.trim())
    .filter(cell => cell.getBoundingClientRect().right > innerWidth).length"""
_AXE = "axe.run(document, {resultTypes: ['violations']})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE.html")
    parser.add_argument("--axe", type=Path, metavar="axe.min.js", help="axe-core, to check accessibility")
    parser.add_argument("--folder", type=Path, help="for a screenshot of each page, width and scheme")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="the first page, wide and narrow, in one")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed here; the top of this file says how to get it", file=sys.stderr)
        return 2
    faults = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for page in options.pages:
            for width in _WIDTHS:
                for scheme in _SCHEMES:
                    faults += _look(browser, page, width, scheme, options)
        if options.picture:
            _picture(browser, options.pages[0], options.picture)
        browser.close()
    print(f"{faults} faults")
    return int(faults > 0)


def _look(browser: Any, file: Path, width: int, scheme: str, options: argparse.Namespace) -> int:
    """Open a page once, print what is wrong with it, and return how many things are."""
    # Without the page's own policy axe can be put into it; the tests check that policy.
    context = browser.new_context(
        viewport={"width": width, "height": _HEIGHT}, color_scheme=scheme, bypass_csp=options.axe is not None
    )
    page, found = context.new_page(), []
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("request", lambda request: request.url.startswith("file:") or found.append(f"it loads {request.url}"))
    page.goto(file.resolve().as_uri())
    if (over := page.evaluate(_SIDEWAYS)) > 0:
        found.append(f"the page scrolls sideways by {over} pixels")
    if hidden := page.evaluate(_HIDDEN):
        found.append(f"{hidden} deciding cells are out of sight")
    if options.axe:
        page.evaluate(options.axe.read_text())
        for violation in page.evaluate(_AXE)["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = violation["nodes"]
                found.append(f"axe: {violation['id']}, {len(nodes)} times, as {nodes[0]['html'][:120]}")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.folder / f"{file.stem}-{width}-{scheme}.png", full_page=True)
    context.close()
    print(f"{file.name} {width} {scheme}: {'; '.join(found) or 'nothing to complain of'}")
    return len(found)


def _picture(browser: Any, file: Path, out: Path) -> None:
    """The top of a page at both widths, side by side, as the README shows it."""
    shots = []
    for width, scheme, height in ((1280, "light", 1400), (400, "dark", 1400)):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.goto(file.resolve().as_uri())
        shots.append(base64.b64encode(page.screenshot()).decode())
        context.close()
    images = "".join(f'<img height="1400" src="data:image/png;base64,{shot}">' for shot in shots)
    context = browser.new_context(viewport={"width": 1720, "height": 1440})
    page = context.new_page()
    page.set_content(f'<body style="margin:10px;display:flex;gap:20px;background:#888">{images}</body>')
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.screenshot(path=out)
    context.close()


if __name__ == "__main__":
    sys.exit(main())
