"""The stages before and after PPO. Sources as in `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, LOSS, Curve
from align.configs.knobs import (
    MODELS,
    RECORDS,
    SPLITS,
    StageConfig,
    Trained,
    check_ranges,
    knob,
    max_new_tokens_knob,
    precision_knob,
    require,
)
from align.configs.models import LoraConfig


@dataclass(slots=True, kw_only=True)
class Data(StageConfig):
    """Rows from a card, a file or the Hub, checked and split, as a dataset artifact."""

    STAGE: ClassVar[str] = "data"
    # 2: a book is wholly in one split; 3: so is a cut document; T5's order; 4: system columns, weights of messages and
    # KTO's bad labels are used; turns between in pairs of messages stay; prompts are split by what they ask alone;
    # quotes in .tsv are text, rows of another width are malformed, and more names of files and folders name a split,
    # over which `split` wins; a label may call the answer of any demonstration bad; prompts keep all their messages and
    # an instruction its input; a set of the Hub without a card has all of its splits.
    # 5: one prompt of two trees of messages is in one split; caches of `datasets` are no rows; text that merely looks
    # like messages is an answer; an answer that has two ranks is left out.
    VERSION: ClassVar[int] = 5
    PARALLEL: ClassVar[bool] = False
    source: str = knob(
        "", "card:NAME, path:FILE_OR_FOLDER or hf:ORG/NAME[@COMMIT]; without one, today's newest", reads="rows"
    )
    record: str = knob("documents", "what the rows become: " + ", ".join(RECORDS))
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation", "test"], metadata={"comment": "which splits to keep"}
    )
    split: str | None = knob(
        None,
        "train, validation or test: the split of all rows, whatever a file's name is; None: by names, else hash [ours]",
    )
    validation_share: float | None = knob(
        None, "of what is asked, in validation, and as much in test, drawn by hash; None: the card's held_out, 0.05"
    )
    train_rows: int | None = knob(None, "at most so many rows; None: all there are")
    validation_rows: int | None = knob(None, "at most so many rows; None: all there are")
    test_rows: int | None = knob(None, "at most so many rows; None: all there are")
    shot_rows: int = knob(0, "of items that are all test: so many are set apart as train, to draw shots from [ours]")
    max_chars: int | None = knob(None, "longer rows are dropped and counted, documents cut; characters; None: no limit")
    columns: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "comment": "record field: the file's column, as {prompt: my_question}; {}: by the columns' names [ours]"
        },
    )
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "comment": "of a card that generates its rows: world_seed; good_dialogue_share of documents, "
            "flaw_share of demonstrations"
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
            require(isinstance(column, str), f"columns.{name}", column, "the name of a column of the file")
        require(self.split in (None, *SPLITS), "split", self.split, "train, validation or test, or null")
        share = self.validation_share
        require(share is None or 0 < share < 0.5, "validation_share", share, "a number above 0 and below 0.5, or null")
        drawn = self.split is None and self.record != "items"
        require(share is None or drawn, "validation_share", share, "null where all rows are one split, as items are")


@dataclass(slots=True, kw_only=True)
class Tokenizer(StageConfig):
    """Train a tokenizer on documents, or take a published vocabulary; either with a chat template.

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
        "", "a published vocabulary, path:FOLDER or hf:ORG/NAME@COMMIT, instead of inputs.data", reads="tokenizer"
    )
    algorithm: str = knob("bpe", "bpe or unigram, both on bytes [GPT-2; T5: unigram]")
    vocab_size: int = knob(50_257, "entries, special tokens, 256 bytes and sentinels among them [GPT-2; T5: 32,100]")
    num_documents: int | None = knob(None, "train on the first so many; None: all")
    split_digits: bool = knob(False, "each digit is a token of its own [GPT-2; LLaMA: true]")
    num_sentinels: int = knob(0, "tokens <extra_id_0>, ..., ids from the highest down, for span corruption [T5: 100]")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.algorithm in ("bpe", "unigram"), "algorithm", self.algorithm, "bpe or unigram")
        for name in ("algorithm", "vocab_size", "num_documents", "split_digits") if self.source else ():
            untouched = getattr(self, name) == type(self).__dataclass_fields__[name].default
            require(untouched, name, getattr(self, name), "no value beside source: a published vocabulary has its own")

    def check_inputs(self) -> None:
        given = [name for name in ("data",) if self.inputs.get(name)] + ["source"] * bool(self.source)
        require(len(given) == 1, "inputs", given, "data (to train on) or a source (a published vocabulary), not both")


@dataclass(slots=True, kw_only=True)
class Sft(StageConfig):
    """Supervised tuning on demonstrations: loss on the assistant's tokens only."""

    STAGE: ClassVar[str] = "sft"
    # 2: attention's softmax is in the precision of its products; text has no begin token; 3: batches of demonstrations,
    # lora makes an adapter, new defaults; 4: smaller batches and 3 epochs unless asked
    VERSION: ClassVar[int] = 4
    OUTPUT: ClassVar[str] = "model"
    CURVES: ClassVar[tuple[Curve, ...]] = (LOSS, LEARNING_RATE, GRADIENT)
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("eval/loss", "eval/loss"),)
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "demonstrations"}
    OPTIONAL: ClassVar[dict[str, str]] = {"text": "documents"}
    num_epochs: int = knob(
        3, "passes over the demonstrations; the best epoch is kept [TRL; InstructGPT: 2 for the model RL starts from]"
    )
    batch_size: int = knob(
        16, "demonstrations an optimizer step [ours, so that a few hundred make enough steps; InstructGPT, 1.3B: 32]"
    )
    sequence_length: int | None = knob(
        None, "tokens; longer demonstrations are left out; None: the model's context, at most 2,048 [ours]"
    )
    learning_rate: float | None = knob(
        None, "peak; None: 2e-5, with lora.rank 2e-4 [ours, models of 0.1B to 8B; InstructGPT, 1.3B: 9.65e-6]"
    )
    warmup_steps: int = knob(0, "linear [InstructGPT]")
    final_learning_rate_fraction: float = knob(0.1, "of the peak, where the cosine ends [InstructGPT]")
    weight_decay: float = knob(0.0, "decoupled [ours]")
    max_grad_norm: float = knob(1.0, "global norm of the gradient [GPT-3]")
    text_share: float = knob(0.0, "share of pretraining text in the training tokens; [InstructGPT] has 0.1 before RL")
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})
    precision: str = precision_knob()
    seed: int | None = knob(None, "None: the run's seed")

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
    """Sample several responses to each prompt and have simulated labelers rank them."""

    STAGE: ClassVar[str] = "compare"
    VERSION: ClassVar[int] = 2  # max_new_tokens is 256
    OUTPUT: ClassVar[str] = "comparisons"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("prompts/train", "prompts"),)
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "prompts": "prompts"}
    num_prompts: int | None = knob(None, "training prompts; None: all there are")
    skip_prompts: int = knob(0, "training prompts left out before those, for a reward model with data of its own")
    num_validation_prompts: int | None = knob(None, "held-out prompts; None: all there are")
    num_responses: int = knob(4, "sampled for each prompt, K [InstructGPT: 4 to 9]")
    num_strays: int = knob(0, "responses to other prompts added to each training ranking [ours; the paper has none]")
    temperature: float = knob(1.0, "of sampling [InstructGPT, RL]")
    max_new_tokens: int | None = max_new_tokens_knob()
    num_labelers: int = knob(40, "[InstructGPT: about 40]")
    agreement: float = knob(0.73, "share of pairs that two labelers order alike [InstructGPT: 72.6 +- 1.5 %]")
    tie_width: float = knob(0.05, "liking closer than this is ranked a tie, in gold score [ours]")
    seed: int | None = knob(None, "None: the run's seed")

    def need_of_gold(self, given: Container[str]) -> str:
        return "inputs.prompts: simulated labelers need prompts with a gold scorer; use a card's comparisons"

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.num_responses >= 2, "num_responses", self.num_responses, "at least 2")
        require(0.5 < self.agreement < 1, "agreement", self.agreement, "a number between 0.5 and 1")


@dataclass(slots=True, kw_only=True)
class Reward(StageConfig):
    """Train a reward model on rankings with InstructGPT's K-wise loss."""

    STAGE: ClassVar[str] = "reward"
    # 2: attention's softmax is in the precision of its products; 3: lora makes an adapter, new defaults; 4: equal
    # responses of a ranking are read, and counted in tokens, once
    VERSION: ClassVar[int] = 4
    OUTPUT: ClassVar[str] = "reward_model"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("loss, nats a pair", ("loss",)),
        Curve("share of pairs in the labelers' order", ("accuracy",)),
        LEARNING_RATE,
        GRADIENT,
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("accuracy", "accuracy"), ("gold_accuracy", "by gold"))
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "comparisons"}
    OPTIONAL: ClassVar[dict[str, str]] = {"demonstrations": "demonstrations"}
    num_epochs: int = knob(1, "passes; a second one overfits [InstructGPT]")
    batch_size: int = knob(64, "prompts an optimizer step, all responses of each [InstructGPT]")
    sequence_length: int | None = knob(
        None,
        "tokens of a prompt and a response; rankings with a longer one are left out; None: the model's context, at "
        "most 2,048 [ours]",
    )
    learning_rate: float | None = knob(
        None, "peak; None: 1e-5, with lora.rank 1e-4 [InstructGPT, 6B: 9e-6; ours with adapters]"
    )
    warmup_steps: int = knob(0, "linear [InstructGPT]")
    final_learning_rate_fraction: float = knob(0.1, "of the peak, where the cosine ends [InstructGPT]")
    weight_decay: float = knob(0.0, "decoupled, on matrices only [ours]")
    max_grad_norm: float = knob(1.0, "global norm of the gradient [GPT-3]")
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})
    precision: str = precision_knob()
    seed: int | None = knob(None, "None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.lora.dropout == 0, "lora.dropout", self.lora.dropout, "0: dropout is off in a reward model")

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Reward, self).fill_in(bf16_is_fast)
        if self.learning_rate is None:
            self.learning_rate = 1e-5 if self.lora.rank is None else 1e-4

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model", "scalar"),) if self.lora.rank is None else ()


@dataclass(slots=True, kw_only=True)
class ImportModel(StageConfig):
    """Bring a model in from the Hub, a folder or a GGUF file, in its own precision and with its own chat template."""

    STAGE: ClassVar[str] = "import_model"
    VERSION: ClassVar[int] = 3  # the model's stop strings are kept
    PARALLEL: ClassVar[bool] = False
    source: str = knob("", "hf:ORG/NAME@COMMIT, path:FOLDER or path:FILE.gguf", reads="model")
    base: str = knob(
        "",
        "of a LoRA adapter as peft saves it: the model that it is on, as a source; empty: where the adapter says",
        reads="base",
    )
    kind: str = knob(
        "model",
        "expected kind, for hf: sources: model, seq2seq_model (T5) or reward_model (a sequence classifier with one "
        "label); for path: its config.json decides",
    )
    chat_template: str = knob(
        "keep",
        "keep: the model's own, ours only where it has none; align: ours; path:FILE: a Jinja file [ours]",
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
