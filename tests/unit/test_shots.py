"""What stands before an item: shots of the training split, and a line on manner."""

from __future__ import annotations

import pytest

from align.evals.shots import prefixed, prefixed_prompt, solved, with_shots


def item(question: str, answer: str, wrong: str = " no") -> dict:
    return {"contexts": [f"Q: {question}\nA:"] * 2, "completions": [wrong, f" {answer}"], "labels": [0, 1]}


POOL = [item(f"is it {i}?", f"it is {i}") for i in range(20)]
always = lambda _: True  # noqa: E731


def test_an_item_is_solved_by_its_right_candidate():
    assert solved(item("so?", "yes")) == "Q: so?\nA: yes"
    assert solved({"contexts": ["Al", "Bo"], "completions": [" ran"] * 2, "labels": [0, 1]}) == "Bo ran"


def test_shots_stand_before_every_context_with_a_line_between():
    (found,) = with_shots([item("so?", "yes")], POOL, 3, 0, always)
    first, second = found["contexts"]
    assert first == second
    *shots, last = first.split("\n\n")
    assert last == "Q: so?\nA:"
    assert len(set(shots)) == 3
    assert set(shots) <= {solved(each) for each in POOL}
    assert found["completions"] == item("so?", "yes")["completions"]


def test_an_item_is_never_among_its_own_shots():
    """With as many shots as there are others, all others and nothing else."""
    twice = [*POOL, POOL[4]]
    for each, found in zip(POOL, with_shots(POOL, twice, 18, 0, always), strict=True):
        shots = found["contexts"][0].split("\n\n")[:-1]
        assert solved(each) not in shots
        assert len(shots) == 18


def test_each_item_has_shots_of_its_own_that_hang_on_the_seed():
    items = [item("one?", "1"), item("two?", "2")]
    found, again, other = (with_shots(items, POOL, 3, seed, always) for seed in (0, 0, 1))
    shots = [each["contexts"][0].rpartition("\n\n")[0] for each in found]
    assert found == again
    assert shots[0] != shots[1]
    assert shots[0] != other[0]["contexts"][0].rpartition("\n\n")[0]


def test_shots_are_left_off_until_the_item_can_be_read():
    room = lambda each: len(each["contexts"][0]) < 60  # noqa: E731
    (found,) = with_shots([item("so?", "yes")], POOL, 5, 0, room)
    (whole,) = with_shots([item("so?", "yes")], POOL, 5, 0, always)
    assert 40 < len(found["contexts"][0]) < 60
    assert whole["contexts"][0].endswith(found["contexts"][0])


def test_too_few_training_items_are_said():
    with pytest.raises(ValueError, match="expected 20 training items to draw shots from, got 19; give data that has"):
        with_shots(POOL[:1], POOL, 20, 0, always)


def test_a_line_on_manner_stands_before_what_is_asked():
    assert prefixed(item("so?", "yes"), "Kindly:")["contexts"] == ["Kindly:\nQ: so?\nA:"] * 2
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "user", "content": "v"}]
    assert [m["content"] for m in prefixed_prompt(prompt, "Kindly:")] == ["s", "Kindly:\nu", "v"]
