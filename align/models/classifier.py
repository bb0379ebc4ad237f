"""GPT-1's fine-tuned model: a linear layer on the last token of a language model.

The model keeps its language-model head.
"""

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
_DEVIATION = 0.02  # standard deviation of new weights [GPT-1, code]


class Outputs(NamedTuple):
    """The outputs for S sequences; those of one example are consecutive."""

    logits: torch.Tensor  # [S, C] float32
    # [S] float32: mean over each sequence, nats per token; None if not requested.
    lm_losses: torch.Tensor | None


class TaskModel(torch.nn.Module):
    """A causal language model with a linear layer, read at the last token of each sequence.

    The layer has no bias.

    Args:
        lm: in eval mode; trained together with the layer.
        num_outputs: outputs of the layer, whose weights are drawn from N(0, 0.02).
        dropout: dropout rate of the states before the layer.
    """

    def __init__(self, lm: PreTrainedModel, num_outputs: int, dropout: float):
        super().__init__()
        self.lm, self._dropout = lm, dropout
        self.score = torch.nn.Linear(
            lm.config.get_text_config(decoder=True).hidden_size,
            num_outputs,
            bias=False,
            device=lm.device,
        )
        torch.nn.init.normal_(self.score.weight, std=_DEVIATION)
        self._plain = head_is_plain(lm)  # test it now, while dropout is off

    def forward(self, examples: Sequence[Example], with_lm: bool) -> Outputs:
        """Run all sequences of all examples through the model in one packed row."""
        sequences = [sequence for example in examples for sequence in example.sequences]
        packed = pack(sequences, self.lm.device)
        where = {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
            "use_cache": False,
        }
        hidden = self.lm.base_model(**where).last_hidden_state[0]
        states = self._dropped(
            hidden[packed.ends].float(), [len(example.sequences) for example in examples]
        )
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.score(states)
        return Outputs(logits, self._lm_losses(hidden, packed, sequences) if with_lm else None)

    def _dropped(self, states: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Apply dropout with one mask for all sequences of an example, as in GPT-1's code."""
        if not self.training or self._dropout == 0:
            return states
        kept = F.dropout(
            torch.ones(len(counts), states.shape[1], device=states.device), self._dropout
        )
        return states * kept.repeat_interleave(torch.tensor(counts, device=states.device), 0)

    def _lm_losses(
        self, hidden: torch.Tensor, packed: Packed, sequences: list[list[int]]
    ) -> torch.Tensor:
        """Return the mean language-model loss of each sequence, nats per token.

        Targets are all tokens but the first of a sequence, special tokens included, as in GPT-1's
        code.
        """
        following = [sequence[1:] for sequence in sequences]
        if self._plain:
            at = before_responses(packed, following)
            targets = torch.tensor(
                [token for tokens in following for token in tokens], device=at.device
            )
            count, head = len(at), self.lm.get_output_embeddings()
            at, targets = (F.pad(x, (0, -count % ROUND)) for x in (at, targets))
            logprobs = head_logprobs(
                hidden.index_select(0, at), head.weight, head.bias, targets
            ).logprobs[:count]
        else:  # the head is more than a matrix product: run the model's own
            logprobs = response_logprobs(self.lm, packed, following)
        return segment_means(
            -logprobs, torch.tensor([len(tokens) for tokens in following], device=logprobs.device)
        )


@torch.no_grad()
def add_embeddings(lm: PreTrainedModel, new: Sequence[int]) -> None:
    """Draw rows N(0, 0.02) for the tokens `new` in the embeddings and in the head.

    The model grows if it has too few rows.
    """
    size = lm.get_input_embeddings().num_embeddings
    if new and max(new) >= size:
        lm.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    drawn = torch.randn(len(new), lm.get_input_embeddings().embedding_dim) * _DEVIATION
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        layer.weight[list(new)] = drawn.to(layer.weight)


def require_classifier(config: PreTrainedConfig) -> None:
    """Raise `ConfigError` if `transformers` has no fitting sequence classifier for this config."""
    try:
        with torch.device("meta"):
            found = AutoModelForSequenceClassification.from_config(config)
        ok = isinstance(getattr(found, "score", None), torch.nn.Linear) and found.score.bias is None
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(
            f"inputs.model: transformers has no sequence classifier for {config.model_type}; take"
            " another architecture"
        )


@torch.no_grad()
def save_classifier(
    lm: PreTrainedModel,
    score: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    goal: Goal,
    folder: Path,
) -> None:
    """Write a folder that `AutoModelForSequenceClassification` and `AutoTokenizer` can open.

    Its logits are those of a sequence. For a pair in both orders, the caller adds the logits of
    both sequences. For multiple choice, there is one scalar per answer. For scores, the saved layer
    includes the standard deviation. The caller adds `align_score_mean` from the config, because a
    layer without a bias cannot store it.

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
    # `transformers` counts positions from the left, padding included.
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)
