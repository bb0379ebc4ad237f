"""A linear layer on the last token of a language model that stays one: GPT-1's fine-tuned model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.errors import ConfigError
from align.losses.lm import head_logprobs
from align.losses.tasks import segment_means
from align.models.load import attention_of
from align.models.packed import before_responses, head_is_plain, response_logprobs
from align.text.packing import ROUND, Packed, pack
from align.text.task_formats import Example, Goal

MEAN = "align_score_mean"
_DEVIATION = 0.02  # of new weights [GPT-1, code]


class Outputs(NamedTuple):
    """S sequences, row after row."""

    logits: torch.Tensor  # [S, C] float32
    lm_losses: torch.Tensor | None  # [S] float32: nats a token, the mean over each sequence; None: not asked for


class TaskModel(torch.nn.Module):
    """A causal language model under a linear layer without a bias, read at the last token of each sequence.

    Args:
        lm: in eval mode; trained along.
        num_outputs: of the layer, which is drawn from N(0, 0.02).
        dropout: of the states before it.
    """

    def __init__(self, lm: PreTrainedModel, num_outputs: int, dropout: float):
        super().__init__()
        self.lm, self._dropout = lm, dropout
        self.score = torch.nn.Linear(
            lm.config.get_text_config(decoder=True).hidden_size, num_outputs, bias=False, device=lm.device
        )
        torch.nn.init.normal_(self.score.weight, std=_DEVIATION)
        self._plain = head_is_plain(lm)  # measured now, while nothing drops out

    def forward(self, examples: Sequence[Example], with_lm: bool) -> Outputs:
        """Every sequence of every example through the model in one packed row."""
        sequences = [sequence for example in examples for sequence in example.sequences]
        packed = pack(sequences, self.lm.device)
        where = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
        hidden = self.lm.base_model(**where).last_hidden_state[0]
        states = self._dropped(hidden[packed.ends].float(), [len(example.sequences) for example in examples])
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.score(states)
        return Outputs(logits, self._lm_losses(hidden, packed, sequences) if with_lm else None)

    def _dropped(self, states: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Dropout that is the same for all sequences of an example, as in GPT-1's code."""
        if not self.training or self._dropout == 0:
            return states
        kept = F.dropout(torch.ones(len(counts), states.shape[1], device=states.device), self._dropout)
        return states * kept.repeat_interleave(torch.tensor(counts, device=states.device), 0)

    def _lm_losses(self, hidden: torch.Tensor, packed: Packed, sequences: list[list[int]]) -> torch.Tensor:
        """Each token but the first of a sequence is to be predicted, the special ones, too, as in GPT-1's code."""
        following = [sequence[1:] for sequence in sequences]
        if self._plain:
            at = before_responses(packed, following)
            targets = torch.tensor([token for tokens in following for token in tokens], device=at.device)
            count, head = len(at), self.lm.get_output_embeddings()
            at, targets = (F.pad(x, (0, -count % ROUND)) for x in (at, targets))
            logprobs = head_logprobs(hidden.index_select(0, at), head.weight, head.bias, targets).logprobs[:count]
        else:  # the head does more than the product, so the model is to do it
            logprobs = response_logprobs(self.lm, packed, following)
        return segment_means(-logprobs, torch.tensor([len(tokens) for tokens in following], device=logprobs.device))


@torch.no_grad()
def add_embeddings(lm: PreTrainedModel, new: Sequence[int]) -> None:
    """Rows for the tokens `new`, N(0, 0.02), where the model reads them and where it predicts them."""
    size = lm.get_input_embeddings().num_embeddings
    if new and max(new) >= size:
        lm.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    drawn = torch.randn(len(new), lm.get_input_embeddings().embedding_dim) * _DEVIATION
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        layer.weight[list(new)] = drawn.to(layer.weight)


def require_classifier(config: PreTrainedConfig) -> None:
    """Raise `ConfigError` where `transformers` has no sequence classifier of this architecture to save."""
    try:
        with torch.device("meta"):
            found = AutoModelForSequenceClassification.from_config(config)
        ok = isinstance(getattr(found, "score", None), torch.nn.Linear) and found.score.bias is None
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(
            f"inputs.model: transformers has no sequence classifier for {config.model_type}; take another architecture"
        )


@torch.no_grad()
def save_classifier(
    lm: PreTrainedModel, score: torch.Tensor, tokenizer: PreTrainedTokenizerBase, task: str, goal: Goal, folder: Path
) -> None:
    """A folder that `AutoModelForSequenceClassification` and `AutoTokenizer` open, whose logits are the row's.

    Of a pair in both orders they are to be added; of multiple choice there is one scalar an answer. To scores
    `align_score_mean` of the config is to be added, which a layer without a bias cannot hold.

    Args:
        score: the linear layer's weight [C, H].
    """
    config = copy.deepcopy(lm.config)
    config.id2label = dict(enumerate(goal.labels or (goal.kind,)))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if goal.kind == "class" else "regression"
    config.pad_token_id = tokenizer.pad_token_id
    config.align_task = task
    if goal.kind == "score":
        setattr(config, MEAN, goal.usual)
    classifier = AutoModelForSequenceClassification.from_config(
        config, dtype=torch.float32, attn_implementation=attention_of(config)
    )
    classifier.base_model.load_state_dict(lm.base_model.state_dict())
    classifier.score.weight.copy_(score * goal.deviation)
    classifier.save_pretrained(folder, safe_serialization=True)
    tokenizer.padding_side = "right"  # `transformers` counts positions from the left, padding among them
    tokenizer.save_pretrained(folder)
