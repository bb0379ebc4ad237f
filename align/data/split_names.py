"""Which split a user's file is, by its name and the names of its folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from align.errors import ConfigError

_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development", "devset", "validset"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "heldout"), "test"),
}
# Many sets have one of these in their own name, as `alpaca_eval_test`: it counts only where no other word does.
_WEAK_WORDS = dict.fromkeys(("eval", "evaluation"), "validation")


def split_of_name(path: PurePath) -> str | None:
    """The split that a file's path below its source names; None if it names none.

    A word of the file's own name decides, in capitals or not: `Test.jsonl`, `train_sft-00000-of-00001.parquet`,
    `my_data.test.jsonl`. Only where it has none do its folders, the nearest first: `train/part-0.parquet`.

    Raises:
        ConfigError: a name has words for two splits.
    """
    for name in (path.name, *(folder.name for folder in path.parents)):
        splits = _words(name)
        if len(splits) > 1:
            raise ConfigError(
                f"{path}: its name has words for two splits, {' and '.join(sorted(splits))}; rename it after one"
            )
        if splits:
            return splits.pop()
    return None


def splits_of_names(root: PurePath, paths: Sequence[PurePath]) -> list[str | None]:
    """The split of each of a source's files: each of them names one, or none does.

    Args:
        root: the folder that they are below.
        paths: the files.

    Raises:
        ConfigError: some name a split and others do not, or one has words for two.
    """
    splits = [split_of_name(path.relative_to(root)) for path in paths]
    if None in splits and any(splits):
        odd = paths[splits.index(None)].relative_to(root)
        raise ConfigError(
            f"{root}: {odd} is named as no split, and other files are; rename it to train, validation (dev, val, "
            f"valid, eval) or test (held_out), or take it away"
        )
    return splits


def is_split_word(name: str) -> bool:
    """True for a name that is a word for a split and nothing else, as a folder `test` has."""
    return name.lower() in _WORDS


def _words(name: str) -> set[str]:
    """The splits that the words of a name stand for."""
    words = re.findall("[a-z]+", re.sub("held[-_ ]out", "heldout", name.lower()))
    strong = {_WORDS[word] for word in words if word in _WORDS}
    return strong or {_WEAK_WORDS[word] for word in words if word in _WEAK_WORDS}
