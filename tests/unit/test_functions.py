"""Functions of the user's own: how they are named, found, loaded and digested, and how their errors are shown."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys

import pytest

from align.errors import ConfigError
from align.runtime.user_functions import find_source, load_function, short_names, source_digests
from align.verifiers.episodes import Episodes
from align.verifiers.functions import call_functions, load_functions

ROWS = [{"prompt": [{"role": "user", "content": text}], "solution": r"$\frac{1}{3}$"} for text in ("one?", "two?")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty present folder; modules that were imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def answers(reference, texts=("x", "yy"), ids=None, occasion=""):
    episodes = Episodes(ROWS, [[1]] * 2, ids or [[2], [2]], texts)
    (function,) = load_functions([reference])
    return call_functions([function], episodes, occasion=occasion)[function.name]


# -- finding and loading -------------------------------------------------------------------------------------------


def test_a_module_of_the_present_folder_is_found_and_loaded(folder):
    path = folder / "rewards_of_mine.py"
    path.write_text("def brevity(completions, **others):\n    return [-len(c[0]['content']) for c in completions]\n")
    assert find_source("rewards_of_mine:brevity") == path
    assert answers("rewards_of_mine:brevity") == [-1.0, -2.0]


def test_the_present_folder_is_where_one_is_when_it_is_asked_for(folder, monkeypatch):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "only_in_there.py").write_text("f = len\n")
    with pytest.raises(ConfigError):
        find_source("only_in_there:f")
    monkeypatch.chdir(inner)
    assert find_source("only_in_there:f") == inner / "only_in_there.py"


def test_a_module_in_a_package_is_found(folder):
    (folder / "package_of_mine").mkdir()
    (folder / "package_of_mine" / "__init__.py").write_text("")
    (folder / "package_of_mine" / "part.py").write_text("class Reward:\n    pass\n")
    assert find_source("package_of_mine.part:Reward") == folder / "package_of_mine" / "part.py"
    assert load_function("package_of_mine.part:Reward").__name__ == "Reward"


def test_an_installed_module_is_found(folder):
    assert str(find_source("json:dumps")) == json.__file__
    assert load_function("json:dumps") is json.dumps


def test_finding_a_module_runs_neither_it_nor_the_packages_around_it(folder):
    (folder / "loud_of_mine").mkdir()
    loud = "from pathlib import Path\nPath('ran').touch()\ndef f(): pass\n"
    for name in ("__init__.py", "part.py"):
        (folder / "loud_of_mine" / name).write_text(loud)
    source_digests("loud_of_mine.part:f")
    assert not (folder / "ran").exists()
    load_function("loud_of_mine.part:f")
    assert (folder / "ran").exists()


@pytest.mark.parametrize("look", [find_source, load_function])
@pytest.mark.parametrize(
    "reference",
    ["", "json", "json:", ":dumps", "json:dumps:loads", "json:a b", "json:a.b", "json:a.b(1)", "json:f(1)(2)", "j:1"],
)
def test_what_is_not_module_and_function_is_refused(folder, look, reference):
    with pytest.raises(ConfigError, match=r"expected MODULE:FUNCTION or MODULE:FACTORY\(ARGUMENTS\), .*got ") as caught:
        look(reference)
    assert repr(reference) in str(caught.value)


@pytest.mark.parametrize("look", [find_source, load_function])
@pytest.mark.parametrize(
    "module", ["no_such_module_of_mine", "no_such.module", "json.no_such", "sys", ".json", "empty"]
)
def test_a_module_without_a_file_is_refused(folder, look, module):
    (folder / "empty").mkdir()  # a folder without __init__.py is a package to Python, of no file
    with pytest.raises(ConfigError, match="in this folder or in the environment") as caught:
        look(f"{module}:f")
    assert f"no module {module!r} " in str(caught.value)


@pytest.mark.parametrize("look", [find_source, load_function])
@pytest.mark.parametrize("module", ["rules_of_min", "rules_of_mine.py"])
def test_a_module_that_is_misspelled_is_refused_with_the_one_beside_it(folder, look, module):
    (folder / "rules_of_mine.py").write_text("def brevity(): pass\n")
    with pytest.raises(ConfigError, match=r"or in the environment \(did you mean rules_of_mine\?\), got "):
        look(f"{module}:brevity")


@pytest.mark.parametrize("look", [find_source, load_function])
def test_a_function_that_is_misspelled_is_refused_before_anything_runs(folder, look):
    (folder / "half_of_mine.py").write_text("def brevity(): pass\ndef other():\n    def brevty(): pass\n")
    expected = r"^half_of_mine:brevty: half_of_mine has no function 'brevty' \(did you mean brevity\?\)$"
    with pytest.raises(ConfigError, match=expected):
        look("half_of_mine:brevty")
    with pytest.raises(ConfigError, match=r"no function 'acuracy_reward' \(did you mean accuracy_reward\?\)"):
        look("trl.rewards:acuracy_reward")


@pytest.mark.parametrize(
    "source",
    [
        "from json import *\n",
        "def __getattr__(name):\n    return len\n",
        "globals()['dumps'] = len\n",
        "try:\n    import json as dumps\nexcept ImportError:\n    dumps = None\n",
        "if True:\n    dumps: object = len\n",
        "(a, dumps), b = (1, len), 2\n",
        "from json import loads as dumps\n",
    ],
)
def test_a_name_that_the_source_may_bind_is_not_refused(folder, source):
    (folder / "odd_of_mine.py").write_text(source)
    assert find_source("odd_of_mine:dumps") == folder / "odd_of_mine.py"


def test_what_cannot_be_called_is_refused(folder):
    (folder / "number_of_mine.py").write_text("number = 3\n")
    with pytest.raises(ConfigError, match=r"^number_of_mine:number: number_of_mine has no function 'number'"):
        load_function("number_of_mine:number")


# -- factories -----------------------------------------------------------------------------------------------------

FACTORY = "def make(*given, **named):\n    return lambda completions, **others: [given, named]\n"


@pytest.mark.parametrize(
    ("call", "given", "named"),
    [
        ("make()", (), {}),
        ("make(1, -2.5)", (1, -2.5), {}),
        ("make(a='x: y, z', b=None, c=True)", (), {"a": "x: y, z", "b": None, "c": True}),
        ("make([1, (2, 3)], words={'a': [1]})", ([1, (2, 3)],), {"words": {"a": [1]}}),
    ],
)
def test_a_factory_is_called_with_literal_arguments(folder, call, given, named):
    (folder / "factory_of_mine.py").write_text(FACTORY)
    assert load_function(f"factory_of_mine:{call}")(completions=[]) == [given, named]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("make(x)", "got x$"),
        ("make(n=__import__('os').getpid())", r"got __import__\('os'\).getpid\(\)$"),
        ("make(*[1])", r"got \*\[1\]$"),
        ("make(**{})", r"expected arguments one by one, got \*\*\{\}$"),
    ],
)
def test_an_argument_that_is_no_literal_is_refused_and_not_run(folder, call, said):
    (folder / "factory_of_mine.py").write_text(FACTORY)
    with pytest.raises(ConfigError, match=said):
        find_source(f"factory_of_mine:{call}")


def test_a_factory_that_fails_or_makes_no_function_is_one_line(folder):
    (folder / "bad_of_mine.py").write_text("def make(n):\n    return 1 / n\n")
    with pytest.raises(
        ConfigError, match=r"^bad_of_mine.py:2 \(in make\): ZeroDivisionError: .*factory of bad_of_mine"
    ):
        load_function("bad_of_mine:make(0)")
    with pytest.raises(ConfigError, match=r"^bad_of_mine:make\(2\): expected a factory that returns a function, got 0"):
        load_function("bad_of_mine:make(2)")


# -- names ---------------------------------------------------------------------------------------------------------


def test_names_are_short_unique_and_never_those_of_other_parts():
    references = ["a:f", "b:f", "a:g", "a:length", "a:g2(1)", "a:g2(2)", "a:g2(3)"]
    assert short_names(references, taken=("length",)) == {
        "a:f": "a.f",
        "b:f": "b.f",
        "a:g": "g",
        "a:length": "a.length",
        "a:g2(1)": "a.g2",
        "a:g2(2)": "a.g2_2",
        "a:g2(3)": "a.g2_3",
    }


# -- what a function raises ----------------------------------------------------------------------------------------


def test_an_exception_is_shown_at_the_deepest_line_of_the_user_s_code(folder):
    (folder / "parts").mkdir()
    (folder / "parts/inner.py").write_text("import json\n\n\ndef read(text):\n    return json.loads(text)\n")
    (folder / "outer.py").write_text(
        "from parts import inner\n\n"
        "def f(completions, **others):\n    return [inner.read(c[0]['content']) for c in completions]\n"
    )
    expected = (
        r"^parts/inner.py:5 \(in read\): JSONDecodeError: Expecting value: line 1 column 1 \(char 0\); "
        r"raised by your reward function outer:f at iteration 3$"
    )
    with pytest.raises(ConfigError, match=expected) as caught:
        answers("outer:f", occasion=" at iteration 3")
    assert caught.value.exit_code == 2
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('two\\nlines')", r"mine_raises.py:2 \(in f\): ValueError: two lines; raised by"),
        ("raise SystemExit(3)", r"mine_raises.py:2 \(in f\): SystemExit: 3; raised by"),
        ("raise KeyError", r"mine_raises.py:2 \(in f\): KeyError; raised by"),
        ("raise ValueError('x' * 9999)", "ValueError: x{300}; raised by"),
        ("import no_such_module_at_all", r"mine_raises.py:2 \(in f\): ModuleNotFoundError: No module named"),
        ("yield 1.0; raise ValueError('late')", r"mine_raises.py:2 \(in f\): ValueError: late; raised by"),
        ("__import__('ast').parse('a b')", r"mine_raises.py:2 \(in f\): SyntaxError: invalid syntax; raised by"),
        ("eval('a b')", r"mine_raises.py:2 \(in f\): SyntaxError: invalid syntax; raised by"),
        ("raise type('Odd', (Exception,), {'__str__': 1})", r"mine_raises.py:2 \(in f\): Odd; raised by"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_whatever_a_function_raises_is_its_own(folder, body, said, kind):
    if kind == "async def" and "yield" in body:
        pytest.skip("an asynchronous generator is no answer")
    (folder / "mine_raises.py").write_text(f"{kind} f(**given):\n    {body}\n")
    with pytest.raises(ConfigError, match=f"^(?s:.*){said}") as caught:
        answers("mine_raises:f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n1 / 0\ndef f(): pass\n", "^broken_of_mine.py:2: ZeroDivisionError: division by zero; raised when"),
        ("import no_such_module_of_mine as f\n", "^broken_of_mine.py:1: ModuleNotFoundError: No module named"),
        ("def f(:\n", "^broken_of_mine:f: broken_of_mine.py:1: SyntaxError: "),
        ("raise SystemExit(1)\nf = len\n", "^broken_of_mine.py:1: SystemExit: 1; raised when"),
    ],
)
def test_a_module_that_raises_when_imported_is_one_line(folder, source, said):
    (folder / "broken_of_mine.py").write_text(source)
    with pytest.raises(ConfigError, match=said) as caught:
        load_function("broken_of_mine:f")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_syntax_error_is_found_without_importing(folder):
    (folder / "broken_of_mine.py").write_text("def f():\n    return (1\n")
    with pytest.raises(ConfigError, match=r"^broken_of_mine:f: broken_of_mine.py:2: SyntaxError: "):
        find_source("broken_of_mine:f")


# -- what is in the key --------------------------------------------------------------------------------------------


@pytest.fixture
def package(folder):
    """main imports helper, which imports sub.deep inside a function; unused is nobody's."""
    files = {
        "main.py": "import json, torch\nimport helper\nfrom tools import words\n\ndef f(**given): pass\n",
        "helper.py": "def g():\n    from sub.deep import h\n",
        "sub/__init__.py": "from . import beside\n",
        "sub/deep.py": "from ..sub.far import x\nfrom .other import y as z\n",
        "sub/far.py": "import main\n",  # in a circle
        "sub/other.py": "",
        "sub/beside.py": "",
        "tools/words.py": "",  # in a package without __init__.py
        "unused.py": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_key_holds_all_own_modules_that_a_function_imports_and_no_others(package):
    own = {"main", "helper", "tools.words", "sub", "sub.deep", "sub.far", "sub.other", "sub.beside"}
    assert source_digests("main:f").keys() == own


@pytest.mark.parametrize("name", ["helper.py", "sub/__init__.py", "sub/other.py", "tools/words.py", "unused.py"])
def test_a_change_of_an_imported_module_changes_the_digests(package, name):
    before = source_digests("main:f")
    (package / name).write_text((package / name).read_text() + "\n# changed\n")
    assert (source_digests("main:f") != before) == (name != "unused.py")


def test_the_digests_do_not_depend_on_where_the_folder_lies(package, monkeypatch):
    before = source_digests("main:f")
    moved = package.with_name(package.name + "_moved")
    package.rename(moved)
    monkeypatch.chdir(moved)
    assert source_digests("main:f") == before


def test_looking_imports_nothing_heavy():
    look = (
        "from align.runtime.user_functions import source_digests; "
        "found = source_digests('trl.rewards:think_format_reward')"
    )
    check = "import sys; assert len(found) > 3, found; assert not {'torch', 'trl', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", f"{look}; {check}"], check=True)


# -- TRL's own -----------------------------------------------------------------------------------------------------

THOUGHT = "<think>\nA third.\n</think>\nIt is $\\boxed{\\frac{1}{3}}$"
HALF = "<think>\nA half.\n</think>\nIt is $\\boxed{\\frac{1}{2}}$"
needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)


def test_every_reward_function_of_trl_is_tried_here():
    import trl.rewards

    tried = {"accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward", "think_format_reward"}
    tried |= {"get_repetition_penalty_reward", "get_soft_overlong_punishment"}
    assert {name for names in trl.rewards._import_structure.values() for name in names} == tried


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("think_format_reward", [1.0, 0.0]),
        ("get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)", [0.0, -0.5]),
        ("get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)", [0.0, -6 / 7]),
        pytest.param("accuracy_reward", [1.0, 0.0], marks=needs_math_verify),
        pytest.param("reasoning_accuracy_reward", [1.0, 0.0], marks=needs_math_verify),
        pytest.param(
            "get_cosine_scaled_reward(max_len=10)",
            [0.75 + 0.25 * math.cos(0.3 * math.pi), -0.75 - 0.25 * math.cos(0.8 * math.pi)],
            marks=needs_math_verify,
        ),
    ],
)
def test_the_functions_of_trl_run_as_they_are(call, expected):
    got = answers(f"trl.rewards:{call}", texts=[THOUGHT, HALF[len("<think>") :]], ids=[[1, 2, 3], [5] * 8])
    assert got == pytest.approx(expected)


@needs_math_verify
def test_a_solution_that_cannot_be_read_leaves_a_sample_out():
    rows = [{**ROWS[0], "solution": "no mathematics at all"}, ROWS[1]]
    episodes = Episodes(rows, [[1]] * 2, [[2], [2]], [THOUGHT, THOUGHT])
    functions = load_functions(["trl.rewards:accuracy_reward"])
    assert call_functions(functions, episodes)["accuracy_reward"] == [None, 1.0]


@pytest.mark.parametrize(
    "call", ["accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward(max_len=1)"]
)
def test_without_math_verify_one_line_says_what_to_install(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match="needs the package math-verify: pip install math-verify"):
        find_source(f"trl.rewards:{call}")
