"""Import a model from the Hub, a local folder or a GGUF file.

Takes: nothing from the store; a source outside it. That is a model as `transformers` saves it
(decoder-only, encoder-decoder or reward model); a LoRA adapter as `peft` saves it, and its base; a
GGUF file; or GPT-1's parameters and vocabulary as OpenAI published them.
Makes: a model in its original precision, with its own tokenizer and chat template. An adapter is
merged into its base, in float32. The model gets a padding token that ends neither a text nor a
turn, and our chat template if it has none. An encoder-decoder becomes a seq2seq_model; only a
missing padding token is added, so that sentinel ids stay. A sequence classifier with one label
becomes a reward_model, which is read at the token where plain Transformers reads it.
"""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import ImportModel
from align.data.cards import Source, resolve_base, resolve_model
from align.errors import ConfigError
from align.evals.model_check import fit_model, fit_reward_model
from align.models.build import fuse_activation
from align.models.heads import ScalarModel
from align.models.load import drift_of_storing, save_model
from align.models.published import open_adapted, open_model
from align.models.vocabulary import draw_rows
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.store.references import expanded
from align.text.chat import check_chat, keep_stops, read_whole_dialogues
from align.text.encoding import chat_template_of
from align.text.published import open_tokenizer
from align.text.tokenizers import ALIGN, KEEP, complete

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "encoder", "tekken")


def run(cfg: ImportModel, inputs: Inputs, job: Job) -> Metrics:
    source = resolve_model(cfg.source, None)
    base = resolve_base(cfg.source, cfg.base, job.store)
    job.log.info("reading the model and checking it; a large one takes minutes")
    try:
        if base is None:
            with source.alone() as opened:
                model, tokenizer = open_model(opened, cfg.kind), _open_tokenizer(opened)
        else:
            with base.alone() as opened:
                model = open_adapted(source, opened, cfg.kind)
                tokenizer = _open_tokenizer(source if _has_tokenizer(source) else opened)
            job.log.info("the adapter is merged into its base")
        metrics = _precision(model, tokenizer, source, base is None, job)
        keep_stops(tokenizer, getattr(model, "generation_config", None))
        _complete(cfg, model, tokenizer, job)
        if cfg.kind != "seq2seq_model":
            fitted = fit_model if cfg.kind == "model" else fit_reward_model
            for line in (*check_chat(tokenizer), *fitted(model)):
                job.log.info(line)
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(f"source: {cfg.source}: {' '.join(str(error).split())[:400]}") from None
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.pad_token_id, model.config.eos_token_id = (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    fuse_activation(model.config)
    if cfg.kind == "reward_model":
        ScalarModel(model).save(job.out)
        tokenizer.save_pretrained(job.out)
    else:
        save_model(model, tokenizer, job.out)
    return metrics | {"parameters": float(model.num_parameters())}


def _has_tokenizer(source: Source) -> bool:
    return any(
        path.name.startswith(_TOKENIZER_FILES) or path.name == source.gguf for path in source.files
    )


def _open_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    if source.root is not None and not _has_tokenizer(source):
        # For some architectures, transformers would silently make an empty tokenizer.
        raise ValueError("it holds no tokenizer; put its tokenizer.json beside the weights")
    return open_tokenizer(source)


def _precision(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    is_whole: bool,
    job: Job,
) -> Metrics:
    """Log the precision that the weights are stored in.

    Returns:
        For a GGUF file, the change of log-probs by that precision; else nothing.
    """
    name = str(model.stored_dtype).removeprefix("torch.")
    if not source.gguf:
        job.log.info(
            f"weights stay in {name}, as they came" if is_whole else f"weights are stored in {name}"
        )
        return {}
    drift = drift_of_storing(
        model, tokenizer("The cat sat on the mat. Who sat on the mat? The cat.")["input_ids"]
    )
    job.log.info(
        f"GGUF: weights are dequantised and stored in {name}, which moves log-probs by {drift:.4f}"
        " nats on average"
    )
    return {"bf16_drift": drift}


def _complete(
    cfg: ImportModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job
) -> None:
    """Add what the tokenizer lacks, and an embedding row in the model for each token."""
    no_template = cfg.chat_template == KEEP and chat_template_of(tokenizer) is None
    if cfg.kind == "reward_model" and (no_template or cfg.chat_template == ALIGN):
        raise ValueError(
            "a reward model reads dialogues in the format that it was trained on: its tokenizer's"
            " own chat template, or the one that you give by chat_template=path:FILE"
        )
    before = set(tokenizer.get_vocab().values())
    _require_near_ids(before, model)
    added = complete(
        tokenizer, None if cfg.kind == "seq2seq_model" else _template(cfg.chat_template)
    )
    if cfg.kind == "reward_model":
        read_whole_dialogues(tokenizer, model.config.pad_token_id)
    rows = model.get_input_embeddings().num_embeddings
    without = sorted(i for i in before if i >= rows)
    if without:
        added.append(
            f"rows for {len(without)} entries of its tokenizer that the model had none for"
        )
    new = {*without, *(set(tokenizer.get_vocab().values()) - before)}
    draw_rows(
        model,
        sorted(new),
        derive_seed(0, "import_model", "rows"),
        untrained=[tokenizer.pad_token_id],
    )
    if added:
        job.log.info(f"added {', '.join(added)}")


def _require_near_ids(ids: set[int], model: PreTrainedModel) -> None:
    """Raise `ValueError` if an id is so large that most embedding rows would have no token."""
    largest, rows = max(ids, default=0), model.get_input_embeddings().num_embeddings
    if largest >= max(rows, 2 * len(ids)):
        raise ValueError(
            f"its tokenizer has {len(ids):,} entries, and the id of one is {largest:,}; expected"
            f" ids below {rows:,}, the rows of the model's embeddings"
        )


def _template(named: str) -> str:
    """Return `keep`, `align`, or the text of a template file."""
    if named in (KEEP, ALIGN):
        return named
    return expanded(named.removeprefix("path:")).read_text(encoding="utf-8")
