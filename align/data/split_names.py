"""Find the split that a user's file belongs to, by its name and the names of its folders."""

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
# Many data sets have one of these in their own name, as `alpaca_eval_test` has. So these words
# count only if no other word names a split.
_WEAK_WORDS = dict.fromkeys(("eval", "evals", "evaluation"), "validation")
_SPLITS = {**_WEAK_WORDS, **_WORDS}
_ENDS = re.compile(r"(.+?)(?:sets?|data)")  # `testset` means `test`, `traindata` means `train`
_ADDED = ("set", "sets", "data", "split")  # these add nothing to a word for a split
# A word that begins or ends with one of these may mean a split.
_PIECES = ("train", "test", "eval", "valid", "heldout", "holdout")
# Latin letters, with accents and without.
_LETTERS = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]+")
_USUAL_WORDS = frozenset(
    "latest greatest fastest shortest lightest smartest brightest tightest sweetest neatest contest"
    " contests protest protests attest detest testimony testimonies testimonial testimonials"
    " testament trainer trainers tester testers retrieval medieval strain terrain restrain"
    " constrain quatrain invalid".split()
)


class Named(NamedTuple):
    """The split that a name means, and the word that says so."""

    split: str
    word: str


def split_of_name(path: PurePath) -> str | None:
    """Return the split that a file's path below its source names, or None. See `named_by`."""
    found = named_by(path)
    return None if found is None else found.split


def named_by(path: PurePath) -> Named | None:
    """Return the split that a file's path below its source names, and the word; None if no word.

    The words of the file's own name decide, in any case: `Test.jsonl`,
    `train_sft-00000-of-00001.parquet`, `my_data.test.jsonl`, `myTest.jsonl`, `testdata.jsonl`. If
    they name no split, the folders decide, the nearest first: `train/part-0.parquet`.

    Raises:
        ConfigError: a name has words for two splits.
    """
    for name in (path.name, *(folder.name for folder in path.parents)):
        splits = _splits_in(name)
        if len(splits) > 1:
            raise ConfigError(
                f"{path}: its name has words for two splits, {' and '.join(sorted(splits))}; rename"
                " it after one"
            )
        for split, word in splits.items():
            return Named(split, word)
    return None


def splits_of_names(root: PurePath, paths: Sequence[PurePath]) -> list[str | None]:
    """Return the split of each of a source's files: either all files name one, or none does.

    If none does, the name of the source's folder decides for all.

    Args:
        root: the folder that the files are below.
        paths: the files.

    Raises:
        ConfigError: some files name a split and others do not, or a name has words for two splits.
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
            f"{root}: {odd} is named as no split, and {other} is {split} by the word {word!r};"
            " rename one of them (to train; validation, dev, val, valid, eval; test, held_out),"
            " remove one, or, where all rows are one split, give split=train, split=validation"
            " or split=test"
        )
    return [named[path].split for path in below]


def split_of_file(path: PurePath) -> str | None:
    """Return the split of a single file: by its own name, else by its folder's name.

    The folder counts only if its name says a split and nothing else: `test`, `held_out` and
    `dev_set` do. `test_of_prompts` does not: it may be a folder for experiments.

    Raises:
        ConfigError: the name has words for two splits.
    """
    own = split_of_name(PurePath(path.name))
    if own is not None:
        return own
    words = _words(path.parent.name)
    if all(_bare(word) in _SPLITS or word in _ADDED for word in words):
        return split_of_name(PurePath(path.parent.name))
    return None


def doubtful_word(path: PurePath) -> str | None:
    """Return a word of a path that a reader may take for a split although it does not count.

    Examples: `mytest`, or a word for a split in the name of a folder that is ignored. Everyday
    words such as `latest` are not returned. None if there is no such word.
    """
    for name in (path.name, *(folder.name for folder in path.parents)):
        for word in _words(name):
            is_like = word.startswith(_PIECES) or word.endswith(_PIECES) or _bare(word) in _SPLITS
            if is_like and word not in _USUAL_WORDS:
                return word
    return None


def says_split(name: str) -> bool:
    """True if the name of a file or a folder has a word for a split."""
    return bool(_splits_in(name))


def _splits_in(name: str) -> dict[str, str]:
    """Return the splits that the words of a name mean, each with its word."""
    words = [_bare(word) for word in _words(name)]
    strong = {_WORDS[word]: word for word in words if word in _WORDS}
    weak = {_WEAK_WORDS[word]: word for word in words if word in _WEAK_WORDS}
    # `alpaca_eval_train` is the training split of AlpacaEval. `train_eval` and `eval_train` are
    # unclear, so both splits are returned.
    at_an_end = bool(words) and (
        words[0] in _WEAK_WORDS or _without_added(words)[-1] in _WEAK_WORDS
    )
    if [*strong] == ["train"] and at_an_end:
        return strong | weak
    return strong or weak


def _without_added(words: list[str]) -> list[str]:
    kept = [word for word in words if word not in _ADDED]
    return kept or words


def _words(name: str) -> list[str]:
    """Return the words of a file or folder name, lower-case, without suffixes, cut at capitals."""
    stem = re.sub(
        r"(?i)(\.(jsonl?|ndjson|csv|tsv|parquet|arrow|xml|txt|md|gz|bz2|xz|zst))+$", "", name
    )
    words: list[str] = []
    for letters in _LETTERS.findall(unicodedata.normalize("NFC", stem)):
        # No word for a split has an accent, so words with accents are not cut at capitals.
        parts = (
            re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", letters) if letters.isascii() else [letters]
        )
        words += [part.lower() for part in parts]
    return re.sub("(held|hold) out", r"\1out", " ".join(words)).split()


def _bare(word: str) -> str:
    """Return a word for a split without a trailing `set` or `data`; other words unchanged."""
    ended = _ENDS.fullmatch(word)
    return ended[1] if ended and ended[1] in _SPLITS else word
