"""A store may come from anybody: nothing of it is markup, script or an address in a page, wherever it is put."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from small_store import add, bounds, compared, evaluation, seal_again

import align.report
from align.errors import StoreError
from align.report.gather import gather
from align.report.page import render, write_report, write_whole
from align.report.rows import Row
from align.report.sweep_page import write_page
from align.store.artifacts import ArtifactStore
from align.store.sweep_records import Record

OWN = Path(align.report.__file__).parent
MARK = "owned"  # stands in every payload: in a page it may stand in text, or in the value of an attribute for text

PAYLOADS = """\
<script>owned()</script>
<ScRiPt>owned()</ScRiPt>
<script src=//owned></script>
<script>/*owned*/</script
<<script>owned()//<</script>
</title><script>owned()</script>
</style><script>owned()</script>
</script><script>owned()</script>
</textarea><script>owned()</script>
</svg><script>owned()</script>
</text><script>owned()</script>
</td></tr></table><script>owned()</script>
--><script>owned()</script>
--!><script>owned()</script>
<!--><script>owned()</script>
]]><script>owned()</script>
"><script>owned()</script>
'><script>owned()</script>
`><script>owned()</script>
"/><img src=x onerror=owned()>
" onmouseover="owned()
' onmouseover='owned()
" autofocus onfocus=owned() x="
" style="background:url(//owned)
" data-key="owned" onclick="owned()
x onclick=owned() y
<img src=x onerror=owned()>
<img src="x" onerror="owned()">
<img src=javascript:owned()>
<img/src/onerror=owned()>
<img src=`x` onerror=owned()>
<svg onload=owned()>
<svg/onload=owned()>
<svg><script>owned()</script></svg>
<svg><animate onbegin=owned() attributeName=x dur=1s>
<svg><a xlink:href="javascript:owned()"><text>x</text></a></svg>
<svg><use href="data:image/svg+xml,owned#x"/></svg>
<svg><foreignObject><iframe srcdoc="owned"></iframe></foreignObject></svg>
<math><mtext><script>owned()</script></mtext></math>
<math href="javascript:owned()">x</math>
<iframe src="javascript:owned()"></iframe>
<iframe srcdoc="<script>owned()</script>"></iframe>
<object data="javascript:owned()"></object>
<embed src="javascript:owned()">
<a href="javascript:owned()">x</a>
<a href=" &#106;avascript:owned()">x</a>
<a href="data:text/html,owned">x</a>
<form action="//owned"><button>x</button></form>
<button formaction="javascript:owned()">x</button>
<input autofocus onfocus=owned()>
<select autofocus onfocus=owned()></select>
<textarea autofocus onfocus=owned()></textarea>
<details open ontoggle=owned()>
<video><source onerror=owned()></video>
<audio src=x onerror=owned()></audio>
<body onload=owned()>
<marquee onstart=owned()>
<base href="//owned/">
<meta http-equiv="refresh" content="0;url=//owned">
<meta http-equiv="Content-Security-Policy" content="owned">
<link rel=stylesheet href=//owned>
<style>@import "//owned";</style>
<style>*{background:url(//owned)}</style>
<div style="background:url(//owned)">
<p id=owned>
<template><script>owned()</script></template>
<noscript><p title="</noscript><img src=x onerror=owned()>">
<plaintext>owned
<xmp><p title="</xmp><script>owned()</script>">
{{ owned }}
{% raw %}owned{% endraw %}
{{ ''.__class__ }}owned
${owned}
$\\frac{owned}{$
\\[owned^2\\]
[/red]owned[bold]
&lt;script&gt;owned()&lt;/script&gt;
&#60;script&#62;owned()&#60;/script&#62;
javascript:owned()
\u202eowned\u2066
\x00<script>owned()</script>
\x1b]0;owned\x07<b>
\ud83d<i>owned
""".replace("\\ud83d", "\ud83d").splitlines()


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its elements, and where the store's text stands."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.policy = ""
        self.places: set[str] = set()
        self.links: set[str] = set()
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self._inside = tag
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.links |= {given[name] for name in ("href", "src", "xlink:href", "action", "data") if name in given}
        self.places |= {name for name, value in given.items() if MARK in value or MARK in name}
        if MARK in tag:
            self.places.add(f"<{tag}>")

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "style": self.styles}.get(self._inside, []).append(data)

    def handle_comment(self, data: str) -> None:
        self.elements.append(("!--", ()))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def check(page: Page, plain: Page) -> None:
    """A page has no element, attribute, address or script that one with plain words has not."""
    assert set(page.elements) - set(plain.elements) == set()
    assert {link for link in page.links if not link.startswith("#")} == {x for x in plain.links if x[0] != "#"}
    assert page.places <= TEXT_PLACES
    assert MARK not in "".join([*page.scripts, *page.styles, page.policy])
    allowed = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert allowed["style-src-elem"] == hashed((OWN / "style.css").read_text())
    assert [hashed(style) for style in page.styles] == [allowed["style-src-elem"]]
    assert allowed["script-src"] == (hashed((OWN / "page.js").read_text()) if plain.scripts else "'none'")
    assert [hashed(script) for script in page.scripts] == [allowed["script-src"]] * len(plain.scripts)
    assert "unsafe" not in allowed["script-src"] + allowed["style-src-elem"] + allowed["default-src"]


TEXT_PLACES = {"aria-label", "data-label", "title", "data-meaning", "class", "data-key", "data-ends"}


def store_of(root: Path, text: str, stage: str = "") -> ArtifactStore:
    """A store in which every text that its maker chooses is `text`."""
    store = ArtifactStore(root)
    log = [
        {"step": i, "loss": 1.0 / i, "objective/score": 0.1 * i, f"reward/{text}": 0.5, "reward/b": i} for i in (1, 2)
    ]
    event = {"step": 3, "name": text, "message": text}
    config = {"seed": 0, text: text, "reward_functions": {text: 1.0}}
    add(store, "toy/sft", "model", {}, log=log, config={"seed": 1, text: "before"})
    sft = add(store, "toy/sft", "model", {}, log=log, config={"seed": 1, text: text}, events=[event])
    episode = {"step": 1, "prompt": text, "response": text, "score": 1.0, f"reward/{text}": 1.0, text: text}
    ppo = add(
        store, "toy/ppo", text, {text: sft}, {"parameters": 1.0}, config, log=log, samples=[episode], events=[event]
    )
    sample = {"prompt": text, "response": text, "score": 0.5, "baseline": text, "baseline_score": 0.2}
    metrics = evaluation(0.6, 0.5, 0.7) | bounds("gold/score", 0.8) | compared(f"tasks/{text}/", text, 0.5, 0.4)
    metrics |= compared("", f"checks/{text}", 0.5, 0.4) | {f"{text}_low": 1.0, text: 1.0, f"{text}_high": 1.0}
    bins = [{"task": text, "model": "model", "low": 0.5, "answers": 9, "confidence": 0.55, "accuracy": 0.5}]
    models = {"model": ppo, "baseline": sft}
    add(store, "toy/evaluate", "evaluation", models, metrics, config, samples=[sample], calibration=bins)
    for manifest in root.glob("objects/*/*/manifest.json"):
        made = json.loads(manifest.read_text())
        made["code"] = {"commit": text, "dirty": True}
        for entries in made["inputs"].values():
            for entry in entries:
                entry["ref"] = text
        manifest.write_text(json.dumps(made))
    seal_again(root)
    work = root / "work" / "ppo" / ("a" * 64)
    (work / "out").mkdir(parents=True)
    (work / "step.json").write_text(json.dumps({"name": "toy/ppo", "begun": 5.0, "error": text}))
    (work / "steps.json").write_text(json.dumps({"total": 5, "unit": text}))
    (work / "out" / "metrics.jsonl").write_text(json.dumps(log[0]) + "\n")
    (work / "out" / "events.jsonl").write_text(json.dumps(event) + "\n")
    os.utime(work / "out" / "metrics.jsonl", (9e9, 9e9))  # younger than the step's artifact
    folder = re.sub(r"[/\x00\ud800-\udfff]", "", text)[:100]
    stranger = root / "work" / "ppo" / folder
    stranger.mkdir(parents=True)
    (stranger / "step.json").write_text("{}")
    return store


def report(root: Path, text: str) -> Page:
    store = store_of(root, text)
    out = root / "page.html"
    write_report(store, ["toy"], out, text, follows=True)
    shutil.rmtree(root / "objects")
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain_report(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(tmp_path_factory.mktemp("plain"), f"{MARK} words")


def some(pages: int) -> list:
    """The payloads on so many pages by default; on a page of its own each is slow."""
    many = ["  ".join(PAYLOADS[start::pages]) for start in range(pages)]
    return [*many, *(pytest.param(text, marks=pytest.mark.slow) for text in PAYLOADS)]


@pytest.mark.parametrize("text", some(3))
def test_no_text_of_a_store_is_more_than_text_in_a_report(text: str, tmp_path: Path, plain_report: Page) -> None:
    check(report(tmp_path, text), plain_report)


def sweep(root: Path, text: str) -> Page:
    store = ArtifactStore(root / "store")
    records = []
    for number, value in enumerate(("a", text)):
        metrics = evaluation(0.6, 0.5, 0.7) | {"gold/score": 0.5 + number, text: 1.0}
        made = add(store, f"toy/evaluate_{number}", "evaluation", {}, metrics, created=float(number))
        knobs = {f"steps.ppo.{text}": value, "steps.ppo.b": str(number)}
        records.append(Record(number, knobs, "done", "", {"toy/evaluate": made}))
    records.append(Record(2, dict.fromkeys(records[0].knobs, text), "failed", text, {}))
    folder = root / re.sub(r"[/\x00\ud800-\udfff]", "", text)[:100]
    folder.mkdir()
    (folder / "0.html").touch()
    return Page(write_page(folder, records, "gold/score").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain_sweep(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return sweep(tmp_path_factory.mktemp("plain"), f"{MARK} words")


@pytest.mark.parametrize("text", some(2))
def test_no_text_of_a_sweep_is_more_than_text_in_its_page(text: str, tmp_path: Path, plain_sweep: Page) -> None:
    check(sweep(tmp_path, text), plain_sweep)


# -- a store that align did not write --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "store")
    add(store, "toy/sft", "model", {}, log=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    return store


@pytest.mark.parametrize("key", ['x" onclick="owned()', "<b>", "a" * 63, "A" * 64, "..."])
def test_an_artifact_whose_key_is_none_is_refused_by_its_folder(store: ArtifactStore, key: str) -> None:
    (folder,) = store.root.glob("objects/sft/*")
    moved = folder.rename(folder.with_name(key))
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"key": key}))
    (version,) = store.root.glob("names/toy/sft/v0.json")
    version.write_text(json.dumps(json.loads(version.read_text()) | {"key": key}))
    seal_again(store.root)
    with pytest.raises(StoreError, match="expected a name of 64 hexadecimal digits"):
        gather(store, ["toy/sft"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("metrics", {"loss": "<b>"}), ("metrics", []), ("config", "x"), ("code", None), ("created", "x")),
        *(("seconds", {}), ("seconds", 10**400), ("created", float("nan")), ("created", 1e300)),
    ],
)
def test_a_manifest_of_other_types_is_refused_by_its_field(store: ArtifactStore, field: str, value: object) -> None:
    (file,) = store.root.glob("objects/sft/*/manifest.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    seal_again(store.root)
    with pytest.raises(StoreError, match=f"manifest.json: {field} is not what align writes"):
        gather(store, ["toy/sft"])


TORN = [b'{"step": 3, "lo', b"\x00\x00\x00", b'{"step": "3"}', b"[1]", b'{"loss": 1.0}', b"\xff{}", b'{"step": 3}x']
TORN += [b"[" * 100_000, b'{"step": NaN}', b'{"step": Infinity}', b'{"step": 1' + b"0" * 400 + b"}"]


@pytest.mark.parametrize("inputs", [[], {"a": 1}, {"a": ["b"]}, {"a": [{"stage": "sft"}]}])
def test_a_manifest_whose_inputs_are_none_is_damaged(store: ArtifactStore, inputs: object) -> None:
    (file,) = store.root.glob("objects/sft/*/manifest.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"inputs": inputs}))
    seal_again(store.root)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        gather(store, ["toy/sft"])


def test_an_evaluation_of_no_model_is_refused(store: ArtifactStore) -> None:
    add(store, "toy/evaluate", "evaluation", {}, evaluation(0.6, 0.5, 0.7))
    with pytest.raises(StoreError, match=r"manifest\.json: inputs is not what align writes"):
        gather(store, ["toy/evaluate"])


@pytest.mark.parametrize("wrong", [{"model": "x"}, {"answers": 0}, {"answers": -1}])
def test_a_bin_of_no_model_or_no_answers_is_left_out_of_its_chart(tmp_path: Path, wrong: Row) -> None:
    store = ArtifactStore(tmp_path)
    one = {"task": "t", "model": "model", "low": 0.5, "answers": 9, "confidence": 0.55, "accuracy": 0.5}
    model = add(store, "toy/sft", "model", {})
    bins = [one, {**one, "task": "unplaced", **wrong}]
    add(store, "toy/evaluate", "evaluation", {"model": model}, evaluation(0.6, 0.5, 0.7), calibration=bins)
    page = render("toy", gather(store, ["toy/evaluate"]))[0]
    assert "right in 50 %" in page
    assert "unplaced" not in page


@pytest.mark.parametrize("row", [b'{"step": 2, "loss": 1' + b"0" * 400 + b"}", b'{"step": 2, "loss": NaN}'])
def test_a_number_that_cannot_be_drawn_is_left_out_of_its_curve(store: ArtifactStore, row: bytes) -> None:
    (file,) = store.root.glob("objects/sft/*/metrics.jsonl")
    manifest = json.loads((file.parent / "manifest.json").read_text())
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n' + row + b"\n")
    manifest["files"][file.name]["size"] = file.stat().st_size
    (file.parent / "manifest.json").write_text(json.dumps(manifest))
    seal_again(store.root)
    (made,) = gather(ArtifactStore(store.root), [f"sft@{file.parent.name}"])
    assert "loss" in render("toy", [made])[0]


@pytest.mark.parametrize("step", [[], {}, None, "x"])
def test_an_episode_of_no_iteration_is_left_out(tmp_path: Path, step: object) -> None:
    store = ArtifactStore(tmp_path)
    episodes = [{"step": 1, "prompt": "first", "score": 1.0}, {"step": step, "prompt": "unplaced", "score": 10**400}]
    add(store, "toy/ppo", "model", {}, samples=episodes)
    page = render("toy", gather(store, ["toy/ppo"]))[0]
    assert "first" in page
    assert "unplaced" not in page


@pytest.mark.parametrize("line", TORN)
def test_a_line_that_cannot_be_read_is_left_out_and_said(store: ArtifactStore, line: bytes) -> None:
    (folder,) = store.root.glob("objects/sft/*")
    whole = (folder / "metrics.jsonl").read_bytes()
    for torn in (whole + line, whole + line + b"\n", line + b"\n" + whole):
        (folder / "metrics.jsonl").write_bytes(torn)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["metrics.jsonl"]["size"] = len(torn)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        seal_again(store.root)
        (made,) = gather(ArtifactStore(store.root), [f"sft@{folder.name}"])
        assert made.log == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
        for page in render("toy", [made]):
            assert re.search("Left out: 1 line of .*metrics.*jsonl cannot be read", page)


def test_two_processes_write_one_page_whole(tmp_path: Path) -> None:
    """The one that began first may end last: each has a file of its own until it is whole."""
    page = tmp_path / "page.html"
    seen = []

    def names() -> list[str]:
        return [path.name for path in tmp_path.iterdir()]

    original = Path.write_text

    def write(path: Path, text: str, **how: str) -> int:
        written = original(path, text, **how)
        seen.append(path.name)
        if len(seen) == 1:
            write_whole(page, "second")
        return written

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_text", write)
        write_whole(page, "first")
    assert page.read_text() == "first"
    assert len(set(seen)) == 2
    assert names() == ["page.html"]
