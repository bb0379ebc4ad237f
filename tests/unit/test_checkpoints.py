"""Checkpoints: exact, and whole or not there."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import stat

import pytest
import torch
from watching import opened_files

from align.store.checkpoints import load_checkpoint, save_checkpoint, set_damaged_aside


def same(a, b):
    """Equal in value and in type, all the way down; tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


def round_trip(folder, state):
    save_checkpoint(folder, 1, state)
    step, loaded = load_checkpoint(folder)
    assert step == 1
    same(loaded, state)


@pytest.mark.parametrize(
    "state",
    [
        {"a": 1, 2: "two", 0: {-3: None, "x": [True, False, (1, (2.5, "z"), [])]}},
        {"float": [0.1, 1e-300, -0.0, 2**-1074, math.inf], "int": [2**80, -(2**63)]},
        {"text": 'quotes " \\ / \n \u2028 \u00e9 \U0001f600', "": ""},
        [],
        {},
        (),
        None,
        7,
        {"tensor": "a dict that looks like a reference"},
        {"dict": [["list", 1]], "tuple": {"list": []}},
    ],
)
def test_plain_state_comes_back_as_it_was(tmp_path, state):
    round_trip(tmp_path, state)


def test_nan_comes_back(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": math.nan, "y": torch.tensor([math.nan, -math.inf])})
    loaded = load_checkpoint(tmp_path)[1]
    assert math.isnan(loaded["x"])
    assert loaded["y"][0].isnan()
    assert loaded["y"][1] == -math.inf


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    values = 50 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).abs()
    values = values.to(dtype)
    round_trip(tmp_path, {"a": values, 3: [values[0], values[:0], values[2, 1]], "transposed": (values.T,)})


def test_large_whole_numbers_in_tensors(tmp_path):
    round_trip(tmp_path, torch.tensor([2**63 - 1, -(2**63), 2**53 + 1]))


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(12.0)
    round_trip(tmp_path, {"whole": whole, "again": whole, "part": whole[3:7], "rows": whole.view(3, 4)[1:]})


def test_a_parameter_comes_back_as_its_values(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3))
    save_checkpoint(tmp_path, 1, {"w": parameter})
    loaded = load_checkpoint(tmp_path)[1]["w"]
    assert not loaded.requires_grad
    assert torch.equal(loaded, parameter.detach())


def test_what_is_saved_does_not_follow_later_changes(tmp_path):
    weights = torch.zeros(3)
    save_checkpoint(tmp_path, 1, {"w": weights})
    weights.fill_(9.0)
    assert load_checkpoint(tmp_path)[1]["w"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Muon"])
def test_optimizer_and_generator_states(tmp_path, kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "model": dict(model.state_dict())}
    round_trip(tmp_path, state)
    optimizer.load_state_dict(load_checkpoint(tmp_path)[1]["optimizer"])


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_the_last_two_stay(tmp_path):
    for step, kept in ((1, ["step-1"]), (2, ["step-1", "step-2"]), (10, ["step-10", "step-2"])):
        save_checkpoint(tmp_path, step, {"step": step})
        assert sorted(p.name for p in tmp_path.iterdir()) == kept


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 3, {"x": 1})
    save_checkpoint(tmp_path, 3, {"x": 2})
    assert load_checkpoint(tmp_path) == (3, {"x": 2})


def several(folder):
    """Steps 2, 9 and 10 side by side, as an interrupted removal leaves them."""
    for step in (2, 9, 10):
        save_checkpoint(folder / f"only-{step}", step, {"step": step, "w": torch.full((2,), float(step))})
        shutil.move(folder / f"only-{step}" / f"step-{step}", folder / "all" / f"step-{step}")
    return folder / "all"


def step_taken(folder):
    """The step that is resumed from; what is set aside for that is put back."""
    set_damaged_aside(folder)
    found = load_checkpoint(folder)
    for path in folder.glob("damaged-step-*"):
        path.rename(folder / path.name.removeprefix("damaged-").rpartition("-")[0])
    return found and found[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "all").mkdir()
    return several(tmp_path)


def test_the_newest_is_loaded_by_number_not_by_name(folder):
    step, state = load_checkpoint(folder)
    assert step == state["step"] == 10
    assert state["w"].tolist() == [10.0, 10.0]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["remove", "empty", "shorten"])
def test_a_damaged_one_is_passed_over(folder, name, damage):
    file = folder / "step-10" / name
    content = file.read_bytes()
    file.unlink()
    if damage != "remove":
        file.write_bytes(b"" if damage == "empty" else content[:-1])
    assert step_taken(folder) == 9


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_any_flipped_bit_of_the_content_is_noticed(folder, name):
    file = folder / "step-10" / name
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert step_taken(folder) == 9, place


@pytest.mark.parametrize("bit", [1, 64, 128])
def test_a_flipped_bit_of_the_manifest_is_noticed(folder, bit):
    file = folder / "step-10" / "manifest.json"
    content = file.read_bytes()
    for place, byte in enumerate(content):
        if byte not in b" \n":  # between the entries, where one space or another means the same
            file.write_bytes(content[:place] + bytes([byte ^ bit]) + content[place + 1 :])
            assert step_taken(folder) == 9, place


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "1", '{"files": {}}', '{"files": {"state.json": null}}', "[" * 100_000]
)
def test_a_manifest_that_says_nothing_makes_no_checkpoint_whole(folder, text):
    (folder / "step-10/manifest.json").write_text(text)
    assert step_taken(folder) == 9


@pytest.mark.parametrize("logs", [0.95, None, [], {"out/metrics.jsonl": 1}, {"out/metrics.jsonl": ["1", "x"]}])
def test_logs_that_are_none_make_no_checkpoint_whole(folder, logs):
    file = folder / "step-10/manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "logs": logs}))
    assert step_taken(folder) == 9


def test_damaged_ones_are_set_aside_and_said(folder):
    (folder / "step-9/state.json").write_text("{}")
    (folder / "step-10/tensors.safetensors").unlink()
    ten, nine = set_damaged_aside(folder)
    assert ten.startswith("the checkpoint of 10 is damaged (tensors.safetensors is missing) and set aside as ")
    assert nine.startswith("the checkpoint of 9 is damaged (state.json is not as it was written) and set aside as ")
    assert set_damaged_aside(folder) == []
    assert load_checkpoint(folder)[0] == 2
    aside = [path for path in folder.iterdir() if path.name.startswith("damaged-")]
    assert sorted(str(path) for path in aside) == sorted(line.rpartition(" ")[2] for line in (ten, nine))


def test_a_save_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(Exception, match="File too large"):
            save_checkpoint(tmp_path, 2, {"w": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert load_checkpoint(tmp_path) == (1, {"x": 1})


def test_when_none_is_whole_there_is_none(folder):
    for file in folder.glob("*/state.json"):
        file.write_text(file.read_text() + " ")
    assert step_taken(folder) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_what_the_system_refuses_to_read_is_not_damaged(folder, name):
    """A link to itself: like missing rights or a server that does not answer, and also for root."""
    file = folder / "step-10" / name
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(OSError, match="symbolic links"):
        set_damaged_aside(folder)
    assert file.is_symlink()


def test_a_checkpoint_is_read_once_to_check_it_and_once_to_load_it(folder):
    with opened_files() as opened:
        assert step_taken(folder) == 10
    assert opened.count(str(folder / "step-10/state.json")) == 2


def test_a_temporary_folder_left_behind_is_ignored_and_then_removed(folder):
    shutil.copytree(folder / "step-10", folder / ".step-11.4321")
    assert load_checkpoint(folder)[0] == 10
    save_checkpoint(folder, 12, {"x": 1})
    assert sorted(p.name for p in folder.iterdir()) == ["step-10", "step-12"]


def test_other_files_beside_checkpoints_stay(tmp_path):
    (tmp_path / "log.txt").write_text("kept")
    save_checkpoint(tmp_path, 1, {})
    save_checkpoint(tmp_path, 2, {})
    save_checkpoint(tmp_path, 3, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.txt", "step-2", "step-3"]


def test_nothing_is_pickled(tmp_path):
    save_checkpoint(tmp_path, 1, {"w": torch.ones(2), "n": (1, 2)})
    files = sorted(p.name for p in (tmp_path / "step-1").iterdir())
    assert files == ["manifest.json", "state.json", "tensors.safetensors"]
    json.loads((tmp_path / "step-1" / "state.json").read_text())


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, len, torch.float32])
def test_what_it_cannot_hold_is_refused_by_place(tmp_path, value):
    save_checkpoint(tmp_path, 1, {"x": 1})
    with pytest.raises(TypeError, match=r"cannot hold a .* \(at /a/1/b\)"):
        save_checkpoint(tmp_path, 2, {"a": [0, {"b": value}]})
    assert load_checkpoint(tmp_path) == (1, {"x": 1})


@pytest.mark.parametrize("state", [{"1": 0, 1: 1}, {"a/b": 0, "a": {"b": 1}}])
def test_keys_that_print_alike_keep_their_own_tensors(tmp_path, state):
    def filled(x):
        return {k: filled(v) for k, v in x.items()} if isinstance(x, dict) else torch.tensor([x])

    save_checkpoint(tmp_path, 1, filled(state))
    assert str(load_checkpoint(tmp_path)[1]) == str(filled(state))


def test_a_key_that_json_has_not_is_refused_when_saving(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, {(1, 2): 3})


def test_a_foreign_folder_beside_checkpoints_does_not_stop_a_resume(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": 1})
    (tmp_path / "step-old").mkdir()
    assert load_checkpoint(tmp_path) == (1, {"x": 1})


def test_a_checkpoint_may_be_read_by_whom_the_umask_says(tmp_path):
    """Another user may resume the step, and safetensors makes files that only their owner can read."""
    before = os.umask(0o002)
    try:
        save_checkpoint(tmp_path / "checkpoints", 1, {"weight": torch.ones(2)})
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o664}
    assert len(files) == 3
