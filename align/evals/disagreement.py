"""How far the members of an ensemble of reward models disagree, to choose what people rank next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from align.data.records import Row
from align.errors import ConfigError
from align.models.compute import Compute
from align.models.heads import Ensemble, load_reward_model
from align.models.load import context_length, load_tokenizer
from align.verifiers.episodes import Episodes
from align.verifiers.reward_models import RewardModel


def load_members(folder: Path, device: torch.device) -> list[RewardModel]:
    """Load each member of an ensemble as a scorer of its own.

    Raises:
        ConfigError: the artifact is one model.
    """
    model = load_reward_model(folder, device)
    if not isinstance(model, Ensemble):
        raise ConfigError(
            "inputs.reward_model: expected an ensemble (align reward num_members=3 ...), because"
            " its members' disagreement chooses the prompts; got one model"
        )
    tokenizer, context = load_tokenizer(folder), context_length(model.classifier)
    return [RewardModel("member", member, tokenizer, context) for member in model]


def disagreement(
    members: Sequence[RewardModel],
    rows: Sequence[Row],
    responses: Sequence[Sequence[str]],
    compute: Compute,
) -> list[float]:
    """Return how far the members disagree on each prompt.

    A member says with which probability people prefer one response to another. The result is the
    variance of that probability over members, as a mean over the prompt's pairs of responses.

    Args:
        rows: prompts.
        responses: K to each prompt.
    """
    owners = [row for row, own in zip(rows, responses, strict=True) for _ in own]
    texts = [text for own in responses for text in own]
    scores = torch.stack([m(Episodes(owners, [], [], texts), compute) for m in members])
    found = []
    for own in scores.split([len(each) for each in responses], dim=1):
        pairs = [own[:, i] - own[:, j] for i, j in itertools.combinations(range(own.shape[1]), 2)]
        found.append(float(torch.sigmoid(torch.stack(pairs)).var(dim=1, correction=0).mean()))
    return found
