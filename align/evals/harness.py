"""Run lm-eval's tasks on align's models: its prompts and metrics, our scorer and sampler.

Only this module imports lm-eval, the extra `eval`. Import it only when it is needed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from align.evals.items import encode_pair, fitting, score_pairs
from align.models.load import context_length
from align.sampling.engine import Sampling
from align.sampling.sampler import sampler_of
from align.text.chat import without_end
from align.text.encoding import encode_context, encode_texts, start_token

_MOST_NEW_TOKENS = 256  # if a task does not say; the same as in lm-eval's own HFLM


class TaskScores(NamedTuple):
    """The scores of a task.

    Attributes:
        by_item: measures with a number per item, [N] each.
        whole: measures of all items together (perplexities, F1 over a set).
    """

    by_item: dict[str, list[float]]
    whole: dict[str, float]


class Scorer(LM):
    """An align model with the interface that lm-eval calls."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        seed: int,
        progress: Callable[[int], AbstractContextManager[Callable[[int], None]]],
    ):
        super().__init__()
        self._model, self._own_tokenizer, self._max_tokens = model, tokenizer, max_tokens
        self._seed, self._progress = seed, progress

    def loglikelihood(self, requests: list[Instance], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return the log-prob of each continuation after its context, and whether it is greedy.

        A context that is too long loses its beginning.
        """
        limit, pairs = context_length(self._model), []
        for context, continuation in (request.args for request in requests):
            before, after = encode_pair(self._own_tokenizer, context, continuation)
            pairs.append(fitting(before, after[-limit:], limit))
        with self._progress(len(pairs)) as advance:
            return score_pairs(self._model, pairs, self._max_tokens, advance)

    def loglikelihood_rolling(self, requests: list[Instance], **kwargs: Any) -> list[float]:
        """Return the log-prob of each text.

        A text that is longer than the context is read in windows, which lm-eval cuts.
        """
        limit, first = min(context_length(self._model), 2**16), start_token(self._own_tokenizer)
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            (ids,) = encode_texts(self._own_tokenizer, [text])  # the first window begins with BOS
            rolled = get_rolling_token_windows(ids, first, limit, 1)
            own = [make_disjoint_window(window) for window in rolled]
            windows += [(list(before), list(after)) for before, after in own]
            counts.append(len(own))
        with self._progress(len(windows)) as advance:
            scores = iter(score_pairs(self._model, windows, self._max_tokens, advance))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], **kwargs: Any) -> list[str]:
        """Return text up to the first of a task's stop strings.

        It is greedy, or sampled if the task asks for this.
        """
        found = [""] * len(requests)
        groups: dict[tuple[int, float, float], list[int]] = {}
        for i, (_, options) in enumerate(request.args for request in requests):
            most = int(options.get("max_gen_toks", options.get("max_new_tokens", _MOST_NEW_TOKENS)))
            sampled = options.get("do_sample", False)
            heat = (
                (float(options.get("temperature", 1.0)), float(options.get("top_p", 1.0)))
                if sampled
                else (0.0, 1.0)
            )
            groups.setdefault((most, *heat), []).append(i)
        with self._progress(len(requests)) as advance:
            for (most, temperature, top_p), chosen in groups.items():
                for place, text in self._written(
                    [requests[i] for i in chosen], most, temperature, top_p
                ):
                    found[chosen[place]] = text
                    advance(1)
        return found

    def _written(
        self, requests: Sequence[Instance], most: int, temperature: float, top_p: float
    ) -> Iterator[tuple[int, str]]:
        tokenizer, room = self._own_tokenizer, context_length(self._model) - most
        if room < 1:
            raise ValueError(
                f"a task asks for {most} new tokens, and the model reads"
                f" {context_length(self._model)}"
            )
        prompts = [encode_context(tokenizer, request.args[0])[-room:] for request in requests]
        batch = max(1, self._max_tokens // (max(map(len, prompts)) + most))
        sampling = Sampling(
            max_new_tokens=most, temperature=temperature, top_p=top_p, batch_size=batch
        )
        seeds = [self._seed + i for i in range(len(prompts))]
        for place, response in sampler_of(self._model, tokenizer, sampling).draw(prompts, seeds):
            text = tokenizer.decode(without_end(tokenizer, response.ids), skip_special_tokens=True)
            until = requests[place].args[1].get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.partition(stop)[0] if stop else text
            yield place, text


def run_tasks(
    scorer: Scorer, names: Sequence[str], num_shots: int | None, limit: int | None, seed: int
) -> dict[str, TaskScores]:
    """Run tasks of lm-eval, by name or by the path of a YAML file.

    Args:
        num_shots: solved examples; None: as many as each task asks for.
        limit: items of each task; None: all.

    Raises:
        ValueError: there is no such task, or its data cannot be read.
    """
    with _quiet():
        # The default tasks take seconds to load.
        manager = TaskManager(include_defaults=not all(name.endswith(".yaml") for name in names))
        for name in names:
            if not name.endswith(".yaml") and name not in manager.all_tasks:
                raise ValueError(
                    f"lm-eval {lm_eval.__version__} has no task {name!r}; lm-eval ls tasks lists"
                    " them"
                )
        try:
            tasks = _prepared(manager, names, num_shots, seed % 2**32)
            found = lm_eval.evaluate(
                lm=scorer, task_dict=tasks, limit=limit, bootstrap_iters=0, log_samples=True
            )
        except (OSError, ConnectionError, KeyError, ImportError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{', '.join(names)}: {type(error).__name__}: {said}") from error
    return {name: _scores(name, found) for name in found["results"]}


def _prepared(manager: TaskManager, names: Sequence[str], num_shots: int | None, seed: int) -> Any:
    """Return the tasks as `lm_eval.simple_evaluate` prepares them.

    That function also queries the machine's hardware and packages, which takes more than a second.
    """
    set_seed(seed)
    loaded = manager.load(list(names))
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (num_shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_shots or 0)
        task.set_fewshot_seed(seed=seed)
    return loaded


def _scores(name: str, found: Any) -> TaskScores:
    """Return a task's measures; for a group of tasks, only those of the whole group."""
    whole = {
        measure.removesuffix(",none").replace(",", "."): float(value)
        for measure, value in found["results"][name].items()
        if isinstance(value, int | float)
        and "stderr" not in measure
        and measure not in ("alias", "sample_len")
    }
    by_item: dict[str, list[float]] = {}
    samples = found["samples"].get(name, [])
    for measure, mean in whole.items():
        plain, _, sieve = measure.partition(".")
        rows = [s for s in samples if s.get("filter", "none") == (sieve or "none")]
        values = [sample.get(plain) for sample in rows]
        if values and all(isinstance(value, int | float) for value in values):
            numbers = [float(value) for value in values]
            # Other aggregates, such as a perplexity from log-probs, are not the mean of the items'
            # numbers.
            if math.isclose(sum(numbers) / len(numbers), mean, rel_tol=1e-9, abs_tol=1e-12):
                by_item[measure] = numbers
    return TaskScores(
        by_item, {measure: value for measure, value in whole.items() if measure not in by_item}
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's notes on what it is about to do."""
    logger = logging.getLogger("lm_eval")
    before, logger.level = logger.level, logging.ERROR
    try:
        yield
    finally:
        logger.setLevel(before)
