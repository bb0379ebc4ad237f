"""Which split a user's file is, by its name and the names of its folders."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from align.errors import ConfigError

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "tests", "testing", "heldout", "holdout", "holdouts"), "test"),
}
# Many sets have one of these in their own name, as `alpaca_eval_test`: it counts only where no other word does.
_WEAK_WORDS = dict.fromkeys(("eval", "evals", "evaluation"), "validation")
_SPLITS = {**_WEAK_WORDS, **_WORDS}
_ENDS = re.compile(r"(.+?)(?:sets?|data)")  # `testset` and `traindata` are what `test` and `train` are
_ADDED = ("set", "sets", "data", "split")  # beside a word for a split they say nothing more
_PIECES = ("train", "test", "eval", "valid", "heldout", "holdout")  # a word that begins or ends so may mean a split
# Latin letters, with accents and without.
_LETTERS = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]+")
_USUAL_WORDS = frozenset(
    "latest greatest fastest shortest lightest smartest brightest tightest sweetest neatest contest contests protest "
    "protests attest detest testimony testimonies testimonial testimonials testament trainer trainers tester testers "
    "retrieval medieval strain terrain restrain constrain quatrain invalid".split()
)


class Named(NamedTuple):
    """The split that a name says, and the word that says it."""

    split: str
    word: str


def split_of_name(path: PurePath) -> str | None:
    """The split that a file's path below its source names; None if it names none. See `named_by`."""
    found = named_by(path)
    return None if found is None else found.split


def named_by(path: PurePath) -> Named | None:
    """The split that a file's path below its source names, and by which word; None if it names none.

    A word of the file's own name decides, in capitals or not: `Test.jsonl`, `train_sft-00000-of-00001.parquet`,
    `my_data.test.jsonl`, `myTest.jsonl`, `testdata.jsonl`. Only where it has none do its folders, the nearest first:
    `train/part-0.parquet`.

    Raises:
        ConfigError: a name has words for two splits.
    """
    for name in (path.name, *(folder.name for folder in path.parents)):
        splits = _splits_in(name)
        if len(splits) > 1:
            raise ConfigError(
                f"{path}: its name has words for two splits, {' and '.join(sorted(splits))}; rename it after one"
            )
        for split, word in splits.items():
            return Named(split, word)
    return None


def splits_of_names(root: PurePath, paths: Sequence[PurePath]) -> list[str | None]:
    """The split of each of a source's files: each of them names one, or none does.

    Where none does, the name of the source's folder counts for all.

    Args:
        root: the folder that they are below.
        paths: the files.

    Raises:
        ConfigError: some name a split and others do not, or one has words for two.
    """
    below = [path.relative_to(root) for path in paths]
    found = {path: named_by(path) for path in below}
    named = {path: name for path, name in found.items() if name is not None}
    if not named:
        return [split_of_name(PurePath(root.name))] * len(paths)
    if len(named) < len(found):
        odd = next(path for path, name in found.items() if name is None)
        other, (split, word) = next(iter(named.items()))
        raise ConfigError(
            f"{root}: {odd} is named as no split, and {other} is {split} by the word {word!r}; rename one of them (to "
            f"train; validation, dev, val, valid, eval; test, held_out), take one away, or, where all rows are one "
            f"split, give split=train, split=validation or split=test"
        )
    return [named[path].split for path in below]


def split_of_file(path: PurePath) -> str | None:
    """The split of a single file: by its own name, else by that of its folder where it says a split and nothing else.

    A folder named `test`, `held_out` or `dev_set` says it; `test_of_prompts` may be where somebody tries things.

    Raises:
        ConfigError: its name has words for two splits.
    """
    own = split_of_name(PurePath(path.name))
    if own is not None:
        return own
    words = _words(path.parent.name)
    if all(_bare(word) in _SPLITS or word in _ADDED for word in words):
        return split_of_name(PurePath(path.parent.name))
    return None


def doubtful_word(path: PurePath) -> str | None:
    """A word of a path that counts as no split, in which a reader may see one all the same; None: it has none.

    It is a word as `mytest`, or a word for a split in the name of a folder that does not count. Everyday words such as
    `latest` are none.
    """
    for name in (path.name, *(folder.name for folder in path.parents)):
        for word in _words(name):
            is_like = word.startswith(_PIECES) or word.endswith(_PIECES) or _bare(word) in _SPLITS
            if is_like and word not in _USUAL_WORDS:
                return word
    return None


def says_split(name: str) -> bool:
    """True for the name of a file or a folder that has a word for a split."""
    return bool(_splits_in(name))


def _splits_in(name: str) -> dict[str, str]:
    """The splits that the words of a name stand for, each with its word."""
    words = [_bare(word) for word in _words(name)]
    strong = {_WORDS[word]: word for word in words if word in _WORDS}
    weak = {_WEAK_WORDS[word]: word for word in words if word in _WEAK_WORDS}
    # `alpaca_eval_train` is the training split of a set; `train_eval` and `eval_train` may be either split.
    at_an_end = bool(words) and (words[0] in _WEAK_WORDS or _without_added(words)[-1] in _WEAK_WORDS)
    if [*strong] == ["train"] and at_an_end:
        return strong | weak
    return strong or weak


def _without_added(words: list[str]) -> list[str]:
    kept = [word for word in words if word not in _ADDED]
    return kept or words


def _words(name: str) -> list[str]:
    """The words of a file's or a folder's name, without its suffixes: in small letters, cut at capitals too."""
    stem = re.sub(r"(?i)(\.(jsonl?|ndjson|csv|tsv|parquet|arrow|xml|txt|md|gz|bz2|xz|zst))+$", "", name)
    words: list[str] = []
    for letters in _LETTERS.findall(unicodedata.normalize("NFC", stem)):
        # No word for a split has an accent, so a word that has one is not cut at its capitals.
        parts = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", letters) if letters.isascii() else [letters]
        words += [part.lower() for part in parts]
    return re.sub("(held|hold) out", r"\1out", " ".join(words)).split()


def _bare(word: str) -> str:
    """A word for a split without `set` or `data` behind it; another word as it is."""
    ended = _ENDS.fullmatch(word)
    return ended[1] if ended and ended[1] in _SPLITS else word
