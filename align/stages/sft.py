"""Supervised tuning on demonstrations, with trl.SFTTrainer.

Takes: a model and demonstrations; optionally pretraining text to mix in.
Makes: a model; with LoRA an adapter on the base of the model that was given.
Departs from InstructGPT: the checkpoint is chosen by validation loss after each epoch; there by a reward model's score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from align.artifacts import sha256_file, write_json
from align.configs import Sft
from align.data.records import read_rows
from align.errors import ConfigError, HealthStop
from align.job import Inputs, Job, Metrics
from align.losses.lm import token_losses
from align.models.adapters import Adapters, linear_names, token_layers
from align.models.load import (
    context_length,
    load_model,
    load_tokenizer,
    precision_lines,
    round_to_stored,
    save_model,
)
from align.models.vocabulary import DRAWN
from align.seeds import derive_seed
from align.text.chat import encode_conversations
from align.text.packing import micro_batches, pack
from align.text.tokens import encode_text

_SEAL = "align.json"  # in a checkpoint folder of the trainer: the sha256 of its files, written last


def run(cfg: Sft, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    for line in precision_lines(model):
        job.info(line)
    length = cfg.sequence_length or context_length(model)
    train, dropped = _examples(inputs.folders("data"), "train", tokenizer, length)
    held_out, _ = _examples(inputs.folders("data"), "validation", tokenizer, length)
    if dropped:
        job.info(f"{dropped} demonstrations are longer than {length} tokens and left out")
    if not train:
        raise ConfigError(f"inputs.data: no demonstration fits into {length} tokens")
    if not held_out:
        job.info("there are no validation rows, so nothing will say how well it learns")
    num_demonstrations = len(train)
    train += _text_examples(cfg, inputs, train, tokenizer, length, job)
    arguments = _arguments(cfg, job, length, bool(held_out))
    configs = [model.config, model.config.get_text_config(decoder=True)]
    as_published = [dict(vars(config)) for config in configs]
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(train),
        eval_dataset=datasets.Dataset.from_list(held_out) if held_out else None,
        processing_class=tokenizer,
        peft_config=_lora(cfg, model),
        callbacks=[_Reporter(job)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log as a dict
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # peft's wrapper of a tied head has none, and the trainer asks for it
    trainer.train(resume_from_checkpoint=_newest_sealed(Path(str(arguments.output_dir)), job))

    trained = trainer.accelerator.unwrap_model(trainer.model)
    for config, before in zip(configs, as_published, strict=True):
        _restore(config, before)
    is_adapter = isinstance(trained, PeftModel) and not cfg.lora.merged
    num_trained = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    if isinstance(trained, PeftModel):
        if is_adapter and job.is_main:
            Adapters(trained.base_model.model, folder).save("default", job.out, tokenizer)
        trained = trained.merge_and_unload()
    if not is_adapter:
        round_to_stored(trained)  # before it is measured
        if job.is_main:
            save_model(trained, tokenizer, job.out)
    metrics = {"demonstrations": float(num_demonstrations), "dropped": float(dropped)}
    metrics["tokens"] = float(cfg.num_epochs * sum(len(example["input_ids"]) for example in train))
    metrics["parameters"] = float(trained.num_parameters())
    metrics["trained_parameters"] = float(num_trained)
    return metrics | ({"eval/loss": _loss(trained, held_out, job, cfg.precision)} if held_out else {})


def _examples(
    folders: list[Path], split: str, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Token ids and labels, -100 where the assistant did not write; and how many were too long."""
    conversations = [row["messages"] for row in read_rows(folders, split)]
    encoded = encode_conversations(tokenizer, conversations, f"inputs.data: {split} row")
    fitting = [
        {
            "input_ids": e.ids,
            "labels": [token if by else -100 for token, by in zip(e.ids, e.by_assistant, strict=True)],
        }
        for e in encoded
        if len(e.ids) <= length
    ]
    return fitting, len(encoded) - len(fitting)


def _text_examples(
    cfg: Sft,
    inputs: Inputs,
    train: list[dict[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    job: Job,
) -> list[dict[str, list[int]]]:
    """Rows of pretraining text, all of it to be learned, that make up `text_share` of the training tokens."""
    if cfg.text_share == 0:
        return []
    tokens = sum(len(example["input_ids"]) for example in train) * cfg.text_share / (1 - cfg.text_share)
    rows = encode_text((row["text"] for row in read_rows(inputs.folders("text"), "train")), tokenizer, length)
    generator = torch.Generator().manual_seed(derive_seed(cfg.seed or 0, "sft", "text"))
    if len(rows) * length < tokens:
        job.info(f"text_share={cfg.text_share} takes {tokens:,.0f} tokens, and the text has {len(rows) * length:,}")
    chosen = rows[torch.randperm(len(rows), generator=generator)[: math.ceil(tokens / length)]].tolist()
    return [{"input_ids": ids, "labels": ids} for ids in chosen]


@torch.no_grad()
def _loss(model: PreTrainedModel, examples: list[dict[str, list[int]]], job: Job, precision: str) -> float:
    """The mean loss over the tokens that the assistant wrote, in nats; the trainer's is a mean of batch means."""
    model.eval()
    mine = job.share(examples)
    total = torch.zeros(2, dtype=torch.float64, device=job.device)
    for group in micro_batches([len(example["input_ids"]) for example in mine], job.hardware.micro_batch_tokens):
        packed = pack([mine[i]["input_ids"] for i in group], job.device)
        labels = torch.tensor([label for i in group for label in mine[i]["labels"]], device=job.device)
        at = (labels != -100).nonzero().squeeze(1)
        with job.autocast(precision):
            logits = model(packed.input_ids, position_ids=packed.position_ids, use_cache=False, logits_to_keep=at - 1)
        total[0] += token_losses(logits.logits[0], labels[at]).double().sum()
        total[1] += len(at)
    job.all_reduce(total)
    return float(total[0] / total[1])


def _arguments(cfg: Sft, job: Job, length: int, has_held_out: bool) -> SFTConfig:
    if cfg.batch_size % job.world_size:
        raise ConfigError(f"batch_size: expected a multiple of {job.world_size} processes, got {cfg.batch_size}")
    rows = cfg.batch_size // job.world_size
    most = max(1, job.hardware.micro_batch_tokens // length)
    micro = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= most)
    return SFTConfig(
        output_dir=str(job.work / "trainer"),
        num_train_epochs=cfg.num_epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": cfg.final_learning_rate_fraction},
        warmup_steps=cfg.warmup_steps,
        weight_decay=cfg.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=cfg.max_grad_norm,
        max_length=length,
        packing=True,
        eval_packing=True,
        bf16=cfg.precision == "bf16",
        activation_checkpointing=False,
        use_cpu=job.device.type == "cpu",
        eval_strategy="epoch" if has_held_out else "no",
        save_strategy="epoch",
        save_total_limit=2,  # the one before goes only when the newest is there and sealed
        load_best_model_at_end=has_held_out,
        metric_for_best_model="eval_loss" if has_held_out else None,
        logging_steps=1,  # a mean over several would begin anew on a resume
        logging_nan_inf_filter=False,
        report_to=[],
        log_level="error",
        log_level_replica="error",
        disable_tqdm=True,
        seed=derive_seed(cfg.seed or 0, "sft") % 2**32,
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
    )


def _restore(config: PreTrainedConfig, before: dict[str, Any]) -> None:
    """Undo what the trainer set in a config: a mixture of experts would go on returning its router's logits."""
    now = vars(config)
    for name in now.keys() - before.keys():
        del now[name]
    now.update(before)
    now.pop(DRAWN, None)  # the rows of new tokens are trained now


def _lora(cfg: Sft, model: PreTrainedModel) -> LoraConfig | None:
    """Adapters on every linear layer; the rows of tokens that import added are trained whole, or they stay noise."""
    if cfg.lora.rank is None:
        return None
    drawn = getattr(model.config, DRAWN, None)
    return LoraConfig(
        r=cfg.lora.rank,
        lora_alpha=cfg.lora.alpha,
        lora_dropout=cfg.lora.dropout,
        target_modules=sorted(linear_names(model)),
        trainable_token_indices={layer: list(drawn) for layer in token_layers(model)} if drawn else None,
        task_type="CAUSAL_LM",
    )


class _Reporter(TrainerCallback):
    """Carries the trainer's numbers, saves and stops over to the job."""

    def __init__(self, job: Job):
        self._job = job
        self._steps: Iterator[int] = iter(())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._steps = self._job.steps(state.max_steps, state.global_step)
        next(self._steps, None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        next(self._steps, None)
        if self._job.wants_checkpoint():
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        names = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate", "eval_loss": "eval/loss"}
        metrics = {ours: float((logs or {})[theirs]) for theirs, ours in names.items() if theirs in (logs or {})}
        if not all(map(math.isfinite, metrics.values())):
            raise HealthStop(f"step {state.global_step}: {metrics}: not finite; lower learning_rate")
        if metrics:
            self._job.log(metrics, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint, so that one torn by a crash is never resumed from; then stop, if that was asked."""
        self._job.barrier()  # every process keeps its random state in the folder
        if self._job.is_main:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            files = {p.name: sha256_file(p) for p in folder.iterdir() if p.name != _SEAL}
            write_json(
                folder / _SEAL, {"files": files, "logged": self._job.logged_bytes(), "world_size": self._job.world_size}
            )
        self._job.saved()


def _newest_sealed(folder: Path, job: Job) -> str | None:
    """The newest checkpoint of the trainer that is whole, with the log cut back to it."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            seal = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
            if all(sha256_file(checkpoint / name) == digest for name, digest in seal["files"].items()):
                job.require_world_size(seal["world_size"])
                job.cut_log(seal["logged"])
                job.info(f"going on from {checkpoint.name.rpartition('-')[2]}")
                return str(checkpoint)
        except (OSError, ValueError, KeyError):
            continue
    return None
