"""The names of knobs in other libraries, and suggestions for a knob that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from align.configs import STAGES
from align.configs.knobs import StageConfig
from align.configs.run import RunConfig
from align.errors import did_you_mean, suggestion

# A name in transformers, TRL, peft, nanoGPT and similar -> our names for it. The first one that a
# stage has is suggested. A stage may count the same thing in another unit: see `IN_ANOTHER_UNIT`.
_STEPS = ("num_steps",)
_EPOCHS = ("num_epochs",)
_WHOLE_EPOCHS = ("num_train_epochs", "epochs", "n_epochs")
_LENGTH = ("sequence_length", "input_length")
_BATCH = ("batch_size", "rollout_batch_size", "hardware.generation_batch_size")
_MODEL = ("inputs.model", "inputs.policy", "source")
_DATA = ("source", "inputs.data", "inputs.prompts")
_LENGTHS = ("max_length", "max_seq_length", "max_seq_len", "seq_length", "cutoff_len")
_MICRO_BATCHES = ("per_device_eval_batch_size", "gradient_accumulation_steps", "micro_batch_size")
OURS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("max_steps", "max_iters", "train_steps"), _STEPS),
    **dict.fromkeys(_WHOLE_EPOCHS, _EPOCHS),
    **dict.fromkeys(("total_episodes", "total_steps"), _STEPS),
    **dict.fromkeys(("num_ppo_epochs", "ppo_epochs"), ("num_epochs",)),
    **dict.fromkeys(_LENGTHS, _LENGTH),
    **dict.fromkeys(
        ("response_length", "max_completion_length", "max_tokens"), ("max_new_tokens",)
    ),
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size"), _BATCH),
    **dict.fromkeys(_MICRO_BATCHES, ()),
    **dict.fromkeys(("mini_batch_size", "ppo_mini_batch_size"), ("minibatch_size",)),
    **dict.fromkeys(("beta", "kl_penalty", "init_kl_coef", "kl_ctl"), ("kl_coef",)),
    **dict.fromkeys(("cliprange", "clip_eps", "clip_epsilon", "epsilon"), ("clip_range",)),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), ("clip_range_high",)),
    **dict.fromkeys(("rloo_k", "n_samples_per_prompt"), ("group_size",)),
    **dict.fromkeys(("scale_rewards", "norm_adv_by_std_in_grpo"), ("divide_by_group_std",)),
    **dict.fromkeys(("loss_type", "loss_agg_mode"), ("loss_mean", "loss")),
    **dict.fromkeys(("adv_estimator", "advantage_estimator"), ("advantage",)),
    **dict.fromkeys(("cliprange_value", "vf_clip_range"), ("value_clip_range",)),
    **dict.fromkeys(("lam", "gae_lam"), ("gae_lambda",)),
    **dict.fromkeys(("lr", "max_lr", "peak_lr"), ("learning_rate",)),
    **dict.fromkeys(("critic_lr", "value_lr"), ("value_learning_rate",)),
    **dict.fromkeys(("min_lr", "min_lr_rate"), ("final_learning_rate_fraction",)),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), ("schedule",)),
    # Below 1 it is a fraction.
    **dict.fromkeys(("warmup_ratio", "num_warmup_steps"), ("warmup_steps",)),
    **dict.fromkeys(("warmup",), ("warmup_steps", "warmup_iterations")),
    **dict.fromkeys(("optim",), ("optimizer",)),
    **dict.fromkeys(("adam_beta1",), ("beta1",)),
    **dict.fromkeys(("adam_beta2",), ("beta2",)),
    **dict.fromkeys(("adam_eps",), ("adam_epsilon",)),
    **dict.fromkeys(("grad_clip", "clip_grad_norm", "gradient_clip_val"), ("max_grad_norm",)),
    **dict.fromkeys(("bf16", "fp16", "dtype", "torch_dtype", "mixed_precision"), ("precision",)),
    **dict.fromkeys(("gradient_checkpointing",), ("hardware.activation_checkpointing",)),
    **dict.fromkeys(("torch_compile",), ("hardware.compile",)),
    **dict.fromkeys(("num_gpus", "nproc_per_node"), ("hardware.num_processes",)),
    **dict.fromkeys(("use_cpu", "no_cuda"), ("hardware.device",)),
    **dict.fromkeys(("save_steps",), ()),
    **dict.fromkeys(("eval_steps",), ("eval_every",)),
    **dict.fromkeys(("output_dir", "save_dir"), ("store",)),
    **dict.fromkeys(("run_name",), ("name",)),
    **dict.fromkeys(("report_to",), ("tracker.backend",)),
    **dict.fromkeys(("wandb_project",), ("tracker.project",)),
    **dict.fromkeys(("lora_r", "r", "lora_rank", "use_lora", "use_peft"), ("lora.rank",)),
    **dict.fromkeys(("lora_alpha",), ("lora.alpha",)),
    **dict.fromkeys(("lora_dropout",), ("lora.dropout",)),
    **dict.fromkeys(
        ("model_name_or_path", "model_name", "model_path", "base_model", "model"), _MODEL
    ),
    **dict.fromkeys(("sft_model_path", "actor_model"), ("inputs.policy",)),
    **dict.fromkeys(("policy", "ref_policy", "ref_model"), ("inputs.policy", "inputs.model")),
    **dict.fromkeys(("reward_model_path", "reward_model_name"), ("inputs.reward_model",)),
    **dict.fromkeys(("tokenizer_name", "tokenizer_name_or_path"), ("inputs.tokenizer",)),
    **dict.fromkeys(("dataset_name", "dataset", "dataset_path", "data_path", "train_file"), _DATA),
    **dict.fromkeys(("data",), ("inputs.data", "source")),
    **dict.fromkeys(
        ("test_size", "val_size", "validation_split", "val_ratio"), ("validation_share",)
    ),
    **dict.fromkeys(
        ("max_train_samples", "max_samples"), ("num_train_rows", "train_rows", "num_prompts")
    ),
    **dict.fromkeys(("num_generations", "num_return_sequences"), ("group_size", "num_responses")),
    **dict.fromkeys(("target_modules", "lora_target_modules"), ()),
    **dict.fromkeys(("n_layer", "n_layers", "num_hidden_layers"), ("model.num_layers",)),
    **dict.fromkeys(("n_embd", "d_model", "dim"), ("model.hidden_size",)),
    **dict.fromkeys(("n_head", "n_heads", "num_attention_heads"), ("model.num_heads",)),
    **dict.fromkeys(
        ("n_positions", "n_ctx", "block_size"), ("sequence_length", "model.context_length")
    ),
}


# A name elsewhere -> knobs that set the same thing in another unit, each with that unit.
_ITERATIONS = "iterations (a rollout and the steps on it)"
IN_ANOTHER_UNIT: dict[str, dict[str, str]] = {
    name: units
    for names, units in (
        (
            ("max_steps", "max_iters", "train_steps", "total_episodes", "total_steps"),
            {"num_iterations": _ITERATIONS, "num_epochs": "epochs"},
        ),
        (_WHOLE_EPOCHS, {"num_iterations": _ITERATIONS, "num_steps": "optimizer steps"}),
        (_LENGTHS, {"max_new_tokens": "tokens of the response alone", "max_chars": "characters"}),
        (_MICRO_BATCHES, {"hardware.micro_batch_tokens": "tokens that are computed at once"}),
        (("save_steps",), {"hardware.checkpoint_seconds": "seconds between checkpoints"}),
        (
            ("warmup_ratio", "num_warmup_steps"),
            {"warmup_iterations": "warm-up in iterations"},
        ),
    )
    for name in names
}
# Least similarity (difflib) of a suggestion: a typing mistake is above, another word below [ours].
CUTOFF = 0.75


def knobs_of(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of a config class's knobs, and nested ones as `lora.rank`."""
    for knob in fields(config):
        if knob.name == "inputs":
            yield from (f"{prefix}inputs.{slot}" for slot in (*config.INPUTS, *config.OPTIONAL))
        elif is_dataclass(knob.default_factory):
            yield from knobs_of(knob.default_factory, f"{prefix}{knob.name}.")
        elif callable(knob.default_factory) and is_dataclass(made := knob.default_factory()):
            yield from knobs_of(type(made), f"{prefix}{knob.name}.")
        else:
            yield prefix + knob.name


def _said_by_passes(stage: type[StageConfig], name: str) -> bool:
    """Return whether a name counts training in epochs, but the stage's `num_epochs` does not.

    PPO's `num_epochs` counts the passes over one rollout.
    """
    return name in _WHOLE_EPOCHS and "num_iterations" in knobs_of(stage)


def meant_knob(stage: type[StageConfig], name: str) -> str | None:
    """Return the knob, input or run setting that `name` most likely means; None if unclear.

    A name from another library leads only to the knob of the same meaning and unit.
    """
    known = [*knobs_of(stage), *knobs_of(RunConfig)]
    group, _, last = name.rpartition(".")
    if last in OURS:
        if _said_by_passes(stage, last):
            return None
        return next((knob for knob in OURS[last] if knob in known), None)
    # A nested knob or an input without its prefix: `rank` means lora.rank.
    nested = [knob for knob in known if knob.rpartition(".")[2] == last and knob != name]
    if nested:
        return nested[0]
    beside = [knob for knob in known if knob.rpartition(".")[0] == group]
    near = difflib.get_close_matches(name, beside, n=1, cutoff=CUTOFF)
    near = near or difflib.get_close_matches(last, known, n=1, cutoff=CUTOFF)
    return near[0] if near else None


def other_unit(stage: type[StageConfig], name: str) -> tuple[str, str] | None:
    """Return the knob of `stage` for `name` that has another unit, and that unit; None if none.

    None, too, if a knob of the same unit exists (see `meant_knob`).
    """
    if meant_knob(stage, name) is not None:
        return None
    known = {*knobs_of(stage), *knobs_of(RunConfig)}
    units = IN_ANOTHER_UNIT.get(name.rpartition(".")[2], {})
    return next(((knob, unit) for knob, unit in units.items() if knob in known), None)


def no_such_knob(stage: str, name: str, prefix: str = "") -> str:
    """Return an error line for a knob that a stage does not have, with a suggestion if possible.

    Args:
        stage: the name of the stage.
        name: the knob that was given.
        prefix: text before the names of knobs, as in `steps.sft.`.
    """
    cls = STAGES[stage]
    slots = [*cls.INPUTS, *cls.OPTIONAL]
    if name.startswith("inputs."):
        near = did_you_mean(name.removeprefix("inputs."), slots)
        there_are = ", ".join(slots) or "none"
        return f"{prefix}{name}: {stage} has no such input{near}; inputs: {there_are}"
    owners = [other for other, own in STAGES.items() if name in knobs_of(own)]
    meant, other = meant_knob(cls, name), other_unit(cls, name)
    if (last := name.rpartition(".")[2]) in cls.EXPLAINED:
        hint = f"; {cls.EXPLAINED[last]}"
    elif owners and name not in OURS:
        have = "has" if len(owners) == 1 else "have"
        hint = f"; {', '.join(owners)} {have} it"
    elif meant is not None:
        is_setting = meant in knobs_of(RunConfig)
        hint = suggestion(meant if is_setting else prefix + meant)
    elif other is not None:
        knob = other[0] if other[0] in knobs_of(RunConfig) else prefix + other[0]
        hint = f"; {stage} counts {other[1]}: {knob}"
    else:
        hint = f"; inputs: {', '.join(slots)}" if slots else ""
    return f"{prefix}{name}: no such knob{hint}; align {stage} --help lists the knobs of {stage}"
