"""The knobs of the stages before and after PPO. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, LOSS, Curve
from align.configs.knobs import (
    MODELS,
    RECORDS,
    SPLITS,
    StageConfig,
    SupervisedConfig,
    Trained,
    check_ranges,
    knob,
    max_new_tokens_knob,
    require,
)
from align.configs.models import LoraConfig


@dataclass(slots=True, kw_only=True)
class Data(StageConfig):
    """Read rows from a card, a file or the Hub, check and split them, and store a dataset."""

    STAGE: ClassVar[str] = "data"
    # 2: all of a book is in one split
    # 3: all pieces of a cut document are in one split; T5's order
    # 4: system columns, weights of messages and KTO's bad labels are used; pairs of messages keep
    #    the turns in between; prompts are split only by what they ask; quotes in .tsv are text;
    #    rows with another number of columns are malformed; more names of files and folders name a
    #    split, and `split` overrides them; a label may call the answer of any demonstration bad;
    #    prompts keep all their messages, and an instruction keeps its input; a dataset of the Hub
    #    without a card keeps all of its splits
    # 5: a prompt that is in two message trees is in one split; cache files of `datasets` are not
    #    rows; text that only looks like messages is an answer; an answer with two ranks is left out
    VERSION: ClassVar[int] = 5
    PARALLEL: ClassVar[bool] = False
    source: str = knob(
        "",
        "card:NAME, path:FILE_OR_FOLDER or hf:ORG/NAME[@COMMIT]; without a commit, today's newest",
        reads="rows",
    )
    record: str = knob("documents", "kind of record that the rows become: " + ", ".join(RECORDS))
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation", "test"],
        metadata={"comment": "splits to keep"},
    )
    split: str | None = knob(
        None,
        "train, validation or test: put all rows into this split, whatever the files' names say;"
        " None: by names, else hash [ours]",
    )
    validation_share: float | None = knob(
        None,
        "fraction of the prompts (or documents) in validation, and the same in test, drawn by hash;"
        " None: the card's held_out, 0.05",
    )
    train_rows: int | None = knob(None, "at most this many training rows; None: all there are")
    validation_rows: int | None = knob(
        None, "at most this many validation rows; None: all there are"
    )
    test_rows: int | None = knob(None, "at most this many test rows; None: all there are")
    shot_rows: int = knob(
        0, "if all items are test: set this many apart as train, for few-shot examples [ours]"
    )
    max_chars: int | None = knob(
        None,
        "most characters per row: longer rows are dropped and counted, longer documents are cut;"
        " None: no limit",
    )
    columns: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "the record's fields and the file's columns, as {prompt: my_question}; {}: by the"
                " columns' names [ours]"
            )
        },
    )
    details: bool = knob(
        False,
        "comparisons also keep what evaluate_reward reads: a row's group (RewardBench's subset,"
        " RM-Bench's domain), the styles of its responses, every annotator's vote",
    )
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "options of a card that generates its rows; smallworld: world_seed;"
                " good_dialogue_share for documents, flaw_share for demonstrations; instructions:"
                " seed, max_instructions, kinds, held_out_kinds"
            )
        },
    )

    @property
    def output(self) -> str:
        return self.record

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.record in RECORDS, "record", self.record, "one of " + ", ".join(RECORDS))
        for split in self.splits:
            require(split in SPLITS, "splits", split, "train, validation or test")
        for name, column in self.columns.items():
            require(
                isinstance(column, str),
                f"columns.{name}",
                column,
                "the name of a column of the file",
            )
        require(
            self.split in (None, *SPLITS), "split", self.split, "train, validation or test, or null"
        )
        share = self.validation_share
        require(
            share is None or 0 < share < 0.5,
            "validation_share",
            share,
            "a number above 0 and below 0.5, or null",
        )
        drawn = self.split is None and self.record != "items"
        require(
            share is None or drawn,
            "validation_share",
            share,
            "null where all rows are one split, as items are",
        )
        require(
            not self.details or self.record == "comparisons",
            "details",
            self.details,
            f"false with record={self.record}: only comparisons have details",
        )


@dataclass(slots=True, kw_only=True)
class Tokenizer(StageConfig):
    """Train a tokenizer on documents or use a published vocabulary; both get a chat template.

    align tokenizer data=card:wikitext                                                        # GPT-2's kind
    align tokenizer data=card:wikitext algorithm=unigram vocab_size=32100 num_sentinels=100   # T5's kind
    align tokenizer data=card:wikitext vocab_size=32000 split_digits=true                     # LLaMA's kind
    align tokenizer source=path:FOLDER       # GPT-1's or GPT-2's release, or what AutoTokenizer opens
    """

    STAGE: ClassVar[str] = "tokenizer"
    VERSION: ClassVar[int] = 2  # a published tokenizer keeps its chat template
    PARALLEL: ClassVar[bool] = False
    OUTPUT: ClassVar[str] = "tokenizer"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("vocab_size", "entries"),)
    OPTIONAL: ClassVar[dict[str, str]] = {"data": "documents"}
    source: str = knob(
        "",
        "a published vocabulary, path:FOLDER or hf:ORG/NAME@COMMIT, instead of inputs.data",
        reads="tokenizer",
    )
    algorithm: str = knob("bpe", "bpe or unigram, both on bytes [GPT-2; T5: unigram]")
    vocab_size: int = knob(
        50_257, "entries, including special tokens, 256 bytes and sentinels [GPT-2; T5: 32,100]"
    )
    num_documents: int | None = knob(
        None, "train on only this many documents, the first ones; None: all"
    )
    split_digits: bool = knob(False, "make each digit a token of its own [GPT-2; LLaMA: true]")
    num_sentinels: int = knob(
        0,
        "sentinel tokens <extra_id_0>, ..., with ids from the highest down, for span corruption"
        " [T5: 100]",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.algorithm in ("bpe", "unigram"), "algorithm", self.algorithm, "bpe or unigram")
        for name in (
            ("algorithm", "vocab_size", "num_documents", "split_digits") if self.source else ()
        ):
            untouched = getattr(self, name) == type(self).__dataclass_fields__[name].default
            require(
                untouched,
                name,
                getattr(self, name),
                "no value beside source: a published vocabulary has its own",
            )

    def check_inputs(self) -> None:
        given = [name for name in ("data",) if self.inputs.get(name)] + ["source"] * bool(
            self.source
        )
        require(
            len(given) == 1,
            "inputs",
            given,
            "data (to train on) or a source (a published vocabulary), not both",
        )


@dataclass(slots=True, kw_only=True)
class Sft(SupervisedConfig):
    """Tune a model on demonstrations with a loss on the assistant's tokens only."""

    STAGE: ClassVar[str] = "sft"
    # 2: attention's softmax has the precision of its products; text has no begin token
    # 3: batches count demonstrations; lora makes an adapter; new defaults
    # 4: smaller batches and 3 epochs by default
    VERSION: ClassVar[int] = 4
    OUTPUT: ClassVar[str] = "model"
    CURVES: ClassVar[tuple[Curve, ...]] = (LOSS, LEARNING_RATE, GRADIENT)
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("eval/loss", "eval/loss"),)
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "demonstrations"}
    OPTIONAL: ClassVar[dict[str, str]] = {"text": "documents"}
    num_epochs: int = knob(
        3,
        "passes over the demonstrations; the best epoch is published [TRL; InstructGPT: 2 for the"
        " model RL starts from]",
    )
    batch_size: int = knob(
        16,
        "demonstrations per optimizer step [ours, so that a few hundred make enough steps;"
        " InstructGPT, 1.3B: 32]",
    )
    sequence_length: int | None = knob(
        None,
        "most tokens per demonstration; longer ones are left out; None: the model's context, at"
        " most 2,048 [ours]",
    )
    learning_rate: float | None = knob(
        None,
        "peak learning rate; None: 2e-5, with lora.rank 2e-4 [ours, models of 0.1B to 8B;"
        " InstructGPT, 1.3B: 9.65e-6]",
    )
    final_learning_rate_fraction: float = knob(
        0.1, "fraction of the peak learning rate at which the cosine ends [InstructGPT]"
    )
    text_share: float = knob(
        0.0,
        "fraction of the training tokens that is pretraining text; [InstructGPT] has 0.1 before RL",
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Sft, self).fill_in(bf16_is_fast)
        if self.learning_rate is None:
            self.learning_rate = 2e-5 if self.lora.rank is None else 2e-4

    def check_inputs(self) -> None:
        ok = self.text_share == 0 or (self.text_share < 1 and bool(self.inputs.get("text")))
        require(ok, "text_share", self.text_share, "0, or a share below 1 and inputs.text too")

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model", "lm"),) if self.lora.rank is None else ()


@dataclass(slots=True, kw_only=True)
class Compare(StageConfig):
    """Sample several responses to each prompt and let simulated labelers rank them."""

    STAGE: ClassVar[str] = "compare"
    VERSION: ClassVar[int] = 2  # max_new_tokens is 256
    OUTPUT: ClassVar[str] = "comparisons"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("prompts/train", "prompts"),)
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {"reward_model": "reward_model"}
    num_prompts: int | None = knob(None, "training prompts to use; None: all there are")
    skip_prompts: int = knob(
        0,
        "skip this many training prompts before those, to train another reward model on separate"
        " data",
    )
    num_validation_prompts: int | None = knob(None, "held-out prompts to use; None: all there are")
    num_responses: int = knob(4, "responses sampled for each prompt, K [InstructGPT: 4 to 9]")
    num_strays: int = knob(
        0,
        "responses to other prompts that are added to each training ranking [ours; the paper has"
        " none]",
    )
    temperature: float = knob(1.0, "temperature of sampling [InstructGPT, RL]")
    max_new_tokens: int | None = max_new_tokens_knob()
    choose_from: int | None = knob(
        None,
        "sample responses to this many training prompts, and keep the `num_prompts` on which the"
        " members of inputs.reward_model disagree most [Christiano et al. 2017, section 2.2.4]",
    )
    num_labelers: int = knob(
        40,
        "simulated labelers [InstructGPT: about 40]; 0: none, which makes candidates for `collect`",
    )
    agreement: float = knob(
        0.73, "fraction of pairs that two labelers order alike [InstructGPT: 72.6 +- 1.5 %]"
    )
    tie_width: float = knob(
        0.05,
        "responses whose ratings by a labeler differ by less are a tie, in units of gold score"
        " [ours]",
    )
    seed: int | None = knob(None, "random seed; None: the run's seed")

    @property
    def output(self) -> str:
        return "comparisons" if self.num_labelers else "candidates"

    def need_of_gold(self, given: Container[str]) -> str:
        if not self.num_labelers:
            return ""
        return (
            "inputs.prompts: simulated labelers need prompts with a gold scorer; use a card's"
            " comparisons"
        )

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.num_responses >= 2, "num_responses", self.num_responses, "at least 2")
        require(
            self.num_labelers > 0 or self.num_responses + self.num_strays <= 9,
            "num_responses",
            self.num_responses,
            "at most 9 with num_strays, because people rank at most 9",
        )
        require(0.5 < self.agreement < 1, "agreement", self.agreement, "a number between 0.5 and 1")
        if self.choose_from is not None:
            require(
                self.num_prompts is not None and self.choose_from > self.num_prompts,
                "choose_from",
                self.choose_from,
                "a number above num_prompts, which must be given too",
            )

    def check_inputs(self) -> None:
        require(
            ("reward_model" in self.inputs) == (self.choose_from is not None),
            "choose_from",
            self.choose_from,
            "a number beside inputs.reward_model, and null without it",
        )


@dataclass(slots=True, kw_only=True)
class Collect(StageConfig):
    """Wait until people have ranked or answered enough candidates, and take what they gave.

    The first `num_rows` count, in the order in which they came. So what comes later changes no key,
    and a larger number does.
    """

    STAGE: ClassVar[str] = "collect"
    PARALLEL: ClassVar[bool] = False
    OUTPUT: ClassVar[str] = "comparisons"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("rows", "rows"),)
    INPUTS: ClassVar[dict[str, str]] = {"candidates": "candidates"}
    labels: str = knob(
        "", "name of the file of votes, labels/NAME.db of the store (align label)", reads="votes"
    )
    record: str = knob(
        "comparisons",
        "comparisons: how people rank the responses; demonstrations: the answers that people write"
        " to the prompts [InstructGPT, section 3.4, has both]",
    )
    num_rows: int = knob(
        1000, "rankings, or answers, to wait for, on training and validation prompts together"
    )

    @property
    def output(self) -> str:
        return self.record

    def __post_init__(self) -> None:
        check_ranges(self)
        kinds = ("comparisons", "demonstrations")
        require(self.record in kinds, "record", self.record, " or ".join(kinds))

    def check_inputs(self) -> None:
        require(bool(self.labels), "labels", self.labels, "the name of a file of votes")


@dataclass(slots=True, kw_only=True)
class Reward(SupervisedConfig):
    """Train a reward model on rankings with InstructGPT's K-wise loss."""

    STAGE: ClassVar[str] = "reward"
    # 2: attention's softmax has the precision of its products
    # 3: lora makes an adapter; new defaults
    # 4: equal responses in a ranking are computed, and their tokens counted, only once
    VERSION: ClassVar[int] = 4
    OUTPUT: ClassVar[str] = "reward_model"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("loss, nats per pair", ("loss",)),
        Curve("share of pairs in the labelers' order", ("accuracy",)),
        LEARNING_RATE,
        GRADIENT,
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("accuracy", "accuracy"),
        ("gold_accuracy", "by gold"),
    )
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "comparisons"}
    OPTIONAL: ClassVar[dict[str, str]] = {"demonstrations": "demonstrations"}
    num_epochs: int = knob(1, "passes over the rankings; a second one overfits [InstructGPT]")
    batch_size: int = knob(
        64, "prompts per optimizer step, with all responses to each [InstructGPT]"
    )
    sequence_length: int | None = knob(
        None,
        "most tokens of a prompt and a response; rankings with a longer one are left out; None: the"
        " model's context, at most 2,048 [ours]",
    )
    learning_rate: float | None = knob(
        None,
        "peak learning rate; None: 1e-5, with lora.rank 1e-4 [InstructGPT, 6B: 9e-6; ours with"
        " adapters]",
    )
    final_learning_rate_fraction: float = knob(
        0.1, "fraction of the peak learning rate at which the cosine ends [InstructGPT]"
    )
    margin: float = knob(
        0.0,
        "how much further apart two rewards should be per point between the labeler's ratings; 0:"
        " ratings do not count [Llama 2, equation 2, has such a margin]",
    )
    center_rewards_coefficient: float = knob(
        0.0,
        "weight of the squared sum of a pair's rewards, which keeps rewards near 0 [Eisenstein et"
        " al. 2023: 0.01]",
    )
    num_members: int = knob(
        1,
        "models of an ensemble, which start from different heads and see the rankings in different"
        " orders; their mean reward counts [Stiennon et al. 2020 pick one of 3 to 10 seeds]",
    )
    member_fraction: float = knob(
        1.0, "fraction of the training rankings that each member sees, drawn for each [ours]"
    )
    held_out_labelers: str = knob(
        "",
        "GROUP/GROUPS: leave out the labelers of one group, such as 1/5, and say how well their"
        " rankings are predicted [InstructGPT: 5 groups]",
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.lora.dropout == 0,
            "lora.dropout",
            self.lora.dropout,
            "0: dropout is off in a reward model",
        )
        require(
            0 < self.member_fraction <= 1,
            "member_fraction",
            self.member_fraction,
            "a number above 0, at most 1",
        )
        require(
            self.num_members == 1 or self.lora.rank is None,
            "num_members",
            self.num_members,
            "1 with lora.rank: members of an ensemble are whole models",
        )
        if self.held_out_labelers:
            group, groups = self.labeler_group
            require(
                1 <= group <= groups and groups > 1,
                "held_out_labelers",
                self.held_out_labelers,
                "GROUP/GROUPS, such as 1/5",
            )

    @property
    def labeler_group(self) -> tuple[int, int]:
        """The group of labelers that is left out, and the number of groups; (0, 0): no such form."""
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", self.held_out_labelers)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Reward, self).fill_in(bf16_is_fast)
        if self.learning_rate is None:
            self.learning_rate = 1e-5 if self.lora.rank is None else 1e-4

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model", "scalar"),) * self.num_members if self.lora.rank is None else ()


@dataclass(slots=True, kw_only=True)
class ImportModel(StageConfig):
    """Import a model from the Hub, a folder or a GGUF file with its precision and chat template."""

    STAGE: ClassVar[str] = "import_model"
    VERSION: ClassVar[int] = 3  # the model's stop strings are kept
    PARALLEL: ClassVar[bool] = False
    source: str = knob("", "hf:ORG/NAME@COMMIT, path:FOLDER or path:FILE.gguf", reads="model")
    base: str = knob(
        "",
        "for a LoRA adapter as peft saves it: the source of its base model; empty: the base that"
        " the adapter names",
        reads="base",
    )
    kind: str = knob(
        "model",
        "expected kind, for hf: sources: model, seq2seq_model (T5) or reward_model (a sequence"
        " classifier with one label); for path: its config.json decides",
    )
    chat_template: str = knob(
        "keep",
        "keep: the model's own, or align's if it has none; align: align's; path:FILE: a Jinja file"
        " [ours]",
        reads="file",
    )

    @property
    def output(self) -> str:
        return self.kind

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.kind in MODELS, "kind", self.kind, " or ".join(MODELS))
        known = self.chat_template in ("keep", "align") or self.chat_template.startswith("path:")
        require(known, "chat_template", self.chat_template, "keep, align or path:FILE")
