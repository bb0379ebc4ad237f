"""Checks on answers: listed words, a classifier's label, or a user's function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from align.data.model_files import check_model
from align.errors import ConfigError
from align.runtime.user_functions import check_file, load_function
from align.verifiers.episodes import Episodes
from align.verifiers.functions import RewardFunction, call_functions

# Returns a number for each answer, or None if the check does not apply to it.
Check = Callable[[Episodes], Sequence[float | None]]

_BATCH = 16  # answers that a classifier reads at once


def load_check(reference: str, device: torch.device) -> Check:
    """Load the check that `checks.NAME` refers to.

    `align.runtime.user_functions.check_file` describes the three forms.

    Raises:
        ConfigError: it cannot be loaded.
    """
    kind, path = check_file(reference)
    if kind == "words":
        return _word_list(path)
    if kind == "classifier":
        return _classifier(path, reference.rpartition("#")[2] if "#" in reference else "", device)
    return _function(reference)


def _word_list(path: Path) -> Check:
    """Return a check that gives 1 if an answer has a listed word or phrase, else 0.

    Words match whole and in any case. The file has one word or phrase per line; lines that begin
    with # are comments.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    listed = [" ".join(line.split()) for line in lines if line and not line.startswith("#")]
    if not listed:
        raise ConfigError(f"words:{path}: expected a word or phrase per line, got none")
    either = "|".join(
        re.escape(phrase).replace("\\ ", r"\s+") for phrase in sorted(listed, key=len)[::-1]
    )
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
    return lambda episodes: [float(bool(pattern.search(answer))) for answer in episodes.texts]


def _classifier(folder: Path, label: str, device: torch.device) -> Check:
    """Return a check that gives the probability of a label.

    A text classifier, as `transformers` saves it, computes the probability.
    """
    try:
        check_model(folder, sorted(path for path in folder.iterdir() if not path.is_dir()))
    except ValueError as error:
        raise ConfigError(f"classifier:{folder}: {error}") from None
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # Always plain attention: the config may name a kernel of the Hub, which would be fetched and
    # run.
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise ConfigError(
            f"classifier:{folder}: it holds no classifier ({min(loading['missing_keys'])} is"
            " missing)"
        )
    model = model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="right")
    labels = [str(name) for _, name in sorted(model.config.id2label.items())]
    if label not in labels:
        raise ConfigError(
            f"classifier:{folder}: expected #LABEL with one of {', '.join(labels)}, got {label!r}"
        )
    alone = model.config.problem_type == "multi_label_classification" or len(labels) == 1
    most = getattr(model.config, "max_position_embeddings", None) or 512

    @torch.no_grad()
    def check(episodes: Episodes) -> list[float]:
        found: list[float] = []
        for start in range(0, len(episodes.texts), _BATCH):
            batch = [answer or " " for answer in episodes.texts[start : start + _BATCH]]
            inputs = tokenizer(
                batch, padding=True, truncation=True, max_length=most - 2, return_tensors="pt"
            )
            logits = model(**inputs.to(device)).logits.float()
            shares = logits.sigmoid() if alone else logits.softmax(-1)
            found += shares[:, labels.index(label)].tolist()
        return found

    return check


def _function(reference: str) -> Check:
    function = RewardFunction("check", reference, load_function(reference), role="check")
    return lambda episodes: call_functions([function], episodes)["check"]
