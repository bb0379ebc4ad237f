"""TRL's PPO trainer, one update at a time, so that a benchmark can alternate with it.

    make peers
    .venv-peers/bin/python benchmarks/peers/trl_ppo.py SETTINGS.json

It writes JSON lines to the descriptor in ANSWERS_FD, or to standard output (where libraries may print too), and is
moved on by lines on standard input. First comes {"ready": true, "versions": {...}, "mixed_precision": ...}. Then before
every update, the first one too, it waits for a line, whatever its content, does the update (rollout and optimization),
and writes

    {"iteration": 1, "seconds": ..., "generate_seconds": ..., "score": ..., "kl": ..., "response_tokens": ...,
     "peak_rss_bytes": ..., "import_rss_bytes": ...}

`seconds` leaves the waiting out. `score` is the mean reward of the responses, `kl` the mean over responses of the KL
estimate summed over their tokens, `response_tokens` their mean length up to and including the end token. After
`iterations` updates, or when standard input closes, it ends.

The settings: `model`, `reward_model`, `value_model` (folders: a causal language model with its tokenizer, and two
sequence classifiers with one label), `prompts` (token ids, all of one length), `episodes` (responses per update),
`response_tokens`, `epochs`, `minibatches`, `temperature`, `kl_coef`, `learning_rate`, `iterations`, `eos_token_id`
(null: every response has full length), `device` ("cpu" or "cuda"), `rule_reward` (null, or a token id: the reward is
then the share of response tokens equal to it, and `reward_model` is not read), and optionally `config`: further
fields of TRL's PPOConfig. What is not named keeps TRL's default, so the learning rate falls linearly to 0.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.experimental.utils import first_true_indices

VERSIONS = {name: version(name) for name in ("trl", "transformers", "torch", "accelerate", "datasets", "peft")}
trl_generate = ppo_trainer.batch_generation


def rss(field: str) -> int:
    """Resident memory in bytes: VmRSS is what it is now, VmHWM its peak.

    Linux starts a process's ru_maxrss at its parent's, which here may hold a model of its own; VmHWM starts afresh.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # macOS, where ru_maxrss counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


IMPORT_RSS = rss("VmRSS")


class RuleReward(nn.Module):
    """The share of response tokens equal to one token, in the form in which TRL reads a reward model.

    TRL calls the backbone, an attribute that the model names, gives its last hidden states to `score`, and takes the
    value at the last token of the response.
    """

    base_model_prefix = "forward"

    def __init__(self, token_id: int, prompt_tokens: int) -> None:
        super().__init__()
        self.token_id, self.prompt_tokens = token_id, prompt_tokens

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SimpleNamespace:
        tokens, mask = input_ids[:, self.prompt_tokens :], attention_mask[:, self.prompt_tokens :]
        share = ((tokens == self.token_id) & mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
        return SimpleNamespace(hidden_states=[nn.functional.pad(share, (self.prompt_tokens, 0)).unsqueeze(-1)])

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class Turns:
    """Stands in for the trainer's batches and hands each out only at the parent's word: one batch is one update."""

    def __init__(self, trainer: PPOTrainer, channel: TextIO) -> None:
        self.trainer, self.channel, self.batches = trainer, channel, trainer.dataloader
        self.iteration = 0
        self.metrics: dict[str, float] = {}
        trainer.dataloader = self
        trainer.log = self.metrics.update  # in place of printing them
        ppo_trainer.batch_generation = self.generate

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if not sys.stdin.readline():
                raise SystemExit
            self.started = self.clock()
            yield batch
            self.report()

    def generate(self, model: nn.Module, queries: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate as TRL does, on the clock."""
        started = self.clock()
        query_responses, logits = trl_generate(model, queries, *args)
        self.generate_seconds = self.clock() - started
        self.responses = query_responses[:, queries.shape[1] :]
        return query_responses, logits

    def report(self) -> None:
        """Print what the update that has just ended took and reached."""
        seconds = self.clock() - self.started
        self.iteration += 1
        stop, pad, responses = self.trainer.stop_token_id, self.trainer.processing_class.pad_token_id, self.responses
        if stop is not None:
            responses = ppo_trainer.truncate_response(stop, pad, responses)
        line = {
            "iteration": self.iteration,
            "seconds": seconds,
            "generate_seconds": self.generate_seconds,
            "score": self.metrics["objective/scores"],
            "kl": self.metrics["objective/kl"],
            "response_tokens": first_true_indices(responses == pad).float().mean().item(),
            "peak_rss_bytes": rss("VmHWM"),
            "import_rss_bytes": IMPORT_RSS,
        }
        print(json.dumps(line), file=self.channel, flush=True)

    def clock(self) -> float:
        if self.trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def classifier(folder: str) -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


def build(settings: dict[str, Any], output_dir: str) -> PPOTrainer:
    """Make TRL's trainer out of the settings."""
    episodes, prompts, rule = settings["episodes"], settings["prompts"], settings["rule_reward"]
    if len(prompts) < episodes:
        raise ValueError(f"{len(prompts)} prompts are too few for one batch of {episodes} episodes")
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    if tokenizer.pad_token_id in {None, settings["eos_token_id"]}:
        raise ValueError("TRL cuts a response at its first pad token: the tokenizer needs one besides the end token")
    config = PPOConfig(
        output_dir=output_dir,
        use_cpu=settings["device"] == "cpu",
        # More than one accumulation step would span minibatches: TRL would then optimize less often than `minibatches`.
        per_device_train_batch_size=episodes,
        gradient_accumulation_steps=1,
        total_episodes=episodes * settings["iterations"],
        num_ppo_epochs=settings["epochs"],
        num_mini_batches=settings["minibatches"],
        response_length=settings["response_tokens"],
        stop_token_id=settings["eos_token_id"],
        temperature=settings["temperature"],
        kl_coef=settings["kl_coef"],
        learning_rate=settings["learning_rate"],
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings.get("config", {}),
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        ref_model=None,  # a copy of the model
        reward_model=classifier(settings["reward_model"]) if rule is None else RuleReward(rule, len(prompts[0])),
        value_model=classifier(settings["value_model"]),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
    )


def main(path: str) -> None:
    """Train by the settings in the file `path`."""
    settings = json.loads(Path(path).read_text())
    channel = os.fdopen(int(os.environ.get("ANSWERS_FD", "1")), "w")
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build(settings, output_dir)
        turns = Turns(trainer, channel)
        # PPOConfig's default of bf16 is lost under transformers 5; ACCELERATE_MIXED_PRECISION=bf16 brings it back.
        ready = {"ready": True, "versions": VERSIONS, "mixed_precision": trainer.accelerator.mixed_precision}
        print(json.dumps(ready), file=channel, flush=True)
        trainer.train()
        turns.report()


if __name__ == "__main__":
    main(sys.argv[1])
