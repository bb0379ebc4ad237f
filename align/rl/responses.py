"""Choose the prompts that a policy trains on, and sample its responses to them."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from align.configs import filled
from align.configs.rollouts import RolloutConfig
from align.data.records import Row, read_rows
from align.errors import ConfigError
from align.models.load import context_length
from align.rl.judging import Judges
from align.rl.models import Actors
from align.rl.rollouts import Samples, choose_prompts, make_samples
from align.runtime.job import Inputs, Job
from align.runtime.seeds import derive_seed
from align.sampling.engine import Sampling
from align.sampling.sampler import Sampler, engine_for
from align.text.chat import encode_prompts, is_ended, stop_strings


@dataclass(frozen=True)
class Prompts:
    """The prompts to train on, as rows and as tokens of the policy's tokenizer."""

    rows: list[Row]
    encoded: list[list[int]]
    tokenizer: PreTrainedTokenizerBase


def shared_context(actors: Actors, judges: Judges) -> int:
    """Return how many tokens the policy can read.

    Reward models that read the policy's tokens count, too.
    """
    with actors.policy_model() as policy:
        return min(
            [
                context_length(policy),
                *(model.context for model in judges.readers if model.tokenizer is None),
            ]
        )


def load_prompts(
    cfg: RolloutConfig,
    inputs: Inputs,
    actors: Actors,
    judges: Judges,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
) -> Prompts:
    """Return training prompts that leave room for a response in the contexts of all models.

    These are the policy and every reward model.

    Raises:
        ConfigError: the prompts do not fill a rollout.
    """
    rows = list(read_rows(inputs.folders("prompts"), "train"))
    asked = [row["prompt"] for row in rows]
    encoded = encode_prompts(tokenizer, asked, "inputs.prompts: train row")
    context = shared_context(actors, judges)
    max_new_tokens = filled(cfg.max_new_tokens)
    room = context - max_new_tokens
    fitting = [i for i, ids in enumerate(encoded) if len(ids) <= room]
    if len(fitting) < len(rows):
        job.log.info(
            f"{len(rows) - len(fitting):,} of {len(rows):,} prompts left out: longer than {room:,}"
            " tokens"
        )
    for model in judges.readers:
        # This also reports a prompt that the model's template refuses now, not in some rollout.
        if model.tokenizer is not None:
            theirs = encode_prompts(
                model.tokenizer, asked, f"inputs.prompts: for {model.name}, train row"
            )
            left = [i for i in fitting if len(theirs[i]) + max_new_tokens <= model.context]
            if len(left) < len(fitting):
                which = f"{len(fitting) - len(left):,} of {len(fitting):,} prompts"
                job.log.info(f"{which} left out: too long for {model.name}")
            fitting = left
    needed = cfg.rollout_batch_size // cfg.group_size
    if len(fitting) < needed:
        raise ConfigError(
            f"inputs.prompts: {len(fitting)} prompts do not fill a rollout of {needed}; give more"
            " prompts, or a smaller rollout_batch_size"
        )
    return Prompts([rows[i] for i in fitting], [encoded[i] for i in fitting], tokenizer)


def policy_sampler(cfg: RolloutConfig, tokenizer: PreTrainedTokenizerBase, job: Job) -> Sampler:
    """Return a sampler of rollouts. It gets the policy's weights at each rollout."""
    sampling = Sampling(
        max_new_tokens=filled(cfg.max_new_tokens),
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        batch_size=job.hardware.generation_batch_size,
        stop_strings=stop_strings(tokenizer),
    )
    return Sampler(engine_for(tokenizer, cfg.sampling_precision), sampling)


def sample_rollout(
    cfg: RolloutConfig,
    actors: Actors,
    sampler: Sampler,
    job: Job,
    prompts: Prompts,
    iteration: int,
) -> Samples:
    """Sample `group_size` responses to each prompt of an iteration.

    A seed depends only on the run's seed, the iteration, the prompt and the response's number, so
    checkpoints need not store it.
    """
    size = cfg.group_size
    asked = choose_prompts(
        iteration, cfg.rollout_batch_size // size, len(prompts.rows), cfg.random_seed
    )
    chosen = [i for i in asked for _ in range(size)]
    places = job.group.share(range(len(chosen)))
    mine = [chosen[place] for place in places]
    seeds = [
        derive_seed(cfg.random_seed, "ppo", iteration, i, *([place % size] if size > 1 else []))
        for place, i in zip(places, mine, strict=True)
    ]
    drawn: list[tuple[list[int], list[float]]] = [([], [])] * len(mine)
    with actors.policy_model() as policy:
        sampler.engine.load(policy)
        for place, response in sampler.draw([prompts.encoded[i] for i in mine], seeds):
            drawn[place] = (response.ids, response.logprobs)
            if job.group.world_size == 1:  # with several, the others would wait for this one
                job.resume.stop_if_asked()
    drawn = job.group.gather(drawn)
    responses, logprobs = [ids for ids, _ in drawn], [row for _, row in drawn]
    encoded = [prompts.encoded[i] for i in chosen]
    ended = [is_ended(prompts.tokenizer, ids) for ids in responses]
    return make_samples(chosen, encoded, responses, logprobs, ended, job.device)
