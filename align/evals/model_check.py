"""Check by numbers that align can run a model, before anything is made from it.

The model is compared with itself: every code path must give the numbers that its own eager
attention gives for a single sequence. The check takes a few short forward passes. A large model on
a CPU takes minutes, not hours.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from align.errors import ConfigError
from align.models.attention import ATTENTION
from align.models.heads import ScalarModel, classifier_class
from align.models.load import PADDED, WAY, context_length, rope_limit
from align.models.packed import response_likelihoods, response_scores
from align.models.padded import read_padded
from align.sampling.kv_slots import Slots, kinds_with_state
from align.text.packing import pack

_LENGTHS = (13, 1, 6, 2, 12)  # tokens; more than three windows of `_WINDOW`, and short sequences
_WINDOWS = ("sliding_window", "attention_chunk_size")
_WINDOW = 4  # tokens in a narrowed window; a wider one has no effect on short sequences
_STEPS = 3  # tokens to sample
_NOISE = 30.0  # the tolerance, in units of the rounding error that a longer sequence shows
# The least tolerance, as a fraction of the largest number, for models that show no rounding error.
_FLOOR = 2e-5
# The largest tolerance, as a fraction of the largest number: larger gaps are not rounding.
_CEILING = 2e-3
_GRADIENT = 1e-2  # the tolerance for a gradient, as a fraction of its norm
_CHOOSE = "choose a model whose layers are all attention (gpt2, llama, mistral, qwen3, ...)"


def fit_model(model: PreTrainedModel) -> list[str]:
    """Choose how a language model reads packed rows, record it in its config, and check the model.

    The check covers everything that the stages do with the model.

    Args:
        model: in float32.

    Returns:
        Lines for the user: packed rows are padded, or the context is shorter than the config says.

    Raises:
        ConfigError: the model does not run here; the message is one line with the reason.
    """
    with _in_a_line(
        model.config.model_type, "it does not run in transformers as a causal language model does"
    ):
        _refuse_states(model)
        _find_trunk(model)
        with _evaluating(model), _narrow_windows(model):
            _choose_way(model, _logits, (_compare_packed, _compare_sampled))
        _check_head(model)
    return _said(model)


def fit_reward_model(classifier: PreTrainedModel) -> list[str]:
    """Check a published reward model in the same way as `fit_model`.

    Its scores must be those of plain `transformers`.

    Args:
        classifier: from `align.models.heads.open_classifier`, in float32.
    """
    with _in_a_line(
        classifier.config.model_type,
        "it does not run in transformers as a causal language model does",
    ):
        _find_trunk(classifier)
        with _evaluating(classifier), _narrow_windows(classifier):
            _choose_way(classifier, _scores, (_compare_scores,))
    return _said(classifier)


def _said(model: PreTrainedModel) -> list[str]:
    said = [rope_limit(model.config)]
    if getattr(model.config, WAY, None) == PADDED:
        said.append(
            "our packed attention gives other numbers, so its own reads padded batches, which is"
            " slower"
        )
    return [line for line in said if line is not None]


def _refuse_states(model: PreTrainedModel) -> None:
    if kinds := kinds_with_state(model):
        what = f"layers of kind {', '.join(kinds)} keep a state"
        raise ConfigError(
            f"{model.config.model_type}: {what}, and align samples from attention caches only;"
            f" {_CHOOSE}"
        )


def _find_trunk(model: PreTrainedModel) -> None:
    if model.base_model is model:
        raise ConfigError(
            f"{model.config.model_type}: transformers gives no trunk of it apart from its head,"
            f" which reward and value models need; {_CHOOSE}"
        )


# Reads a model's output at each token of one row: [L, V] log-probs, or [L, 1] scores. Without
# position ids, the row is one sequence.
Reading = Callable[[PreTrainedModel, torch.Tensor, torch.Tensor | None], torch.Tensor]
Comparison = Callable[[PreTrainedModel, "list[list[int]]", "list[torch.Tensor]", float], None]


def _logits(
    model: PreTrainedModel, input_ids: torch.Tensor, position_ids: torch.Tensor | None
) -> torch.Tensor:
    places = {} if position_ids is None else {"position_ids": position_ids}
    return model(input_ids=input_ids, use_cache=False, **places).logits[0].float().log_softmax(-1)


def _scores(
    model: PreTrainedModel, input_ids: torch.Tensor, position_ids: torch.Tensor | None
) -> torch.Tensor:
    places = {} if position_ids is None else {"position_ids": position_ids}
    return model.score(
        model.base_model(input_ids=input_ids, use_cache=False, **places)
        .last_hidden_state[0]
        .float()
    )


@torch.no_grad()
def _choose_way(model: PreTrainedModel, read: Reading, comparisons: Sequence[Comparison]) -> None:
    """Try align's attention, then the model's own attention on padded batches.

    Raises:
        ConfigError: the model is not causal, or both ways fail; then it is the error of the second.
    """
    name = model.config.model_type
    sequences = _sequences(model)
    with _in_a_line(name, "it fails in transformers, with its own attention"):
        model.set_attn_implementation("eager")
        expected = [read(model, _row(model, ids), None) for ids in sequences]
        longer = read(model, _row(model, sequences[0] + sequences[1]), None)
    largest = max(float(each.abs().max()) for each in expected)
    noise = float((longer[: len(sequences[0])] - expected[0]).abs().max())
    if not noise <= _CEILING * largest or _sees_future(model, sequences[0], read):
        raise ConfigError(
            f"{name}: not causal: later tokens change earlier predictions; "
            "choose one that reads from left to right (gpt2, llama, mistral, qwen3, ...)"
        )
    tolerance = min(max(_NOISE * noise, _FLOOR * largest), _CEILING * largest)
    refused: ConfigError | None = None
    for way in (None, PADDED):
        try:
            _read_by(model, way)
            packed = pack(sequences, model.device)
            with _in_a_line(name, "packed rows fail in transformers"):
                got = read(model, packed.input_ids, packed.position_ids)[: int(packed.ends[-1]) + 1]
                _within(
                    model, tolerance, got, torch.cat(expected), "what it says of packed sequences"
                )
                _compare_gradients(model, sequences, read)
            for compare in comparisons:
                compare(model, sequences, expected, tolerance)
        except ConfigError as error:
            refused = error
            continue
        return
    assert refused is not None
    raise refused


def _sees_future(model: PreTrainedModel, ids: list[int], read: Reading) -> bool:
    """Return whether the outputs before the last token depend on the last token.

    If they do not, the gradient of these outputs at the last token's embedding is exactly 0.
    """
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output if output.requires_grad else output.requires_grad_())
        return output

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with (
            torch.enable_grad(),
            _in_a_line(model.config.model_type, "it fails in transformers, with its own attention"),
        ):
            before = read(model, _row(model, ids), None)[:-1, 0].sum()
            (gradient,) = torch.autograd.grad(before, embedded[:1])
    finally:
        hook.remove()
    return bool(gradient.reshape(len(ids), -1)[-1].any())


def _read_by(model: PreTrainedModel, way: str | None) -> None:
    if way == PADDED:
        model.set_attn_implementation("eager")
        read_padded(model)
        setattr(model.config, WAY, PADDED)
        return
    with _in_a_line(model.config.model_type, "align's attention does not fit"):
        model.set_attn_implementation(ATTENTION)
    if hasattr(model.config, WAY):
        delattr(model.config, WAY)
    if model.config.get_text_config(decoder=True)._attn_implementation != ATTENTION:
        raise ConfigError(f"{model.config.model_type}: it takes no attention but its own")


def _compare_gradients(model: PreTrainedModel, sequences: list[list[int]], read: Reading) -> None:
    """Compare the gradients of packed sequences with those of each sequence alone.

    Only small parameters are compared: gradients of all would be as large as the model.
    """
    learned = [value for value in model.parameters() if value.requires_grad]
    fewest = min(value.numel() for value in learned)
    small = [value for value in learned if value.dim() == 1 or value.numel() == fewest]
    model.requires_grad_(False)
    found = []
    try:
        for value in small:
            value.requires_grad_(True)
        for group in ([sequences], [[ids] for ids in sequences]):
            total = torch.zeros((), device=model.device)
            for chosen in group:
                packed = pack(chosen, model.device)
                with torch.enable_grad():
                    said = read(model, packed.input_ids, packed.position_ids)[
                        : int(packed.ends[-1]) + 1
                    ]
                    total = total + said[:, 0].sum()
            found.append(torch.autograd.grad(total, small, allow_unused=True))
    finally:
        for value in learned:
            value.requires_grad_(True)
    for packed_one, alone in zip(*found, strict=True):
        if (
            alone is not None
            and not float((packed_one - alone).norm()) <= _GRADIENT * float(alone.norm()) + 1e-6
        ):
            raise ConfigError(
                f"{model.config.model_type}: gradients of packed sequences are not those of each"
                " alone"
            )


def _compare_packed(
    model: PreTrainedModel,
    sequences: list[list[int]],
    expected: list[torch.Tensor],
    tolerance: float,
) -> None:
    """Compare log-probs of packed sequences, on the path that tuning takes through the head.

    All tokens of a sequence but the first are its response.
    """
    rests = [ids[1:] for ids in sequences]
    likely = response_likelihoods(model, pack(sequences, model.device), rests).logprobs
    targets = torch.tensor([token for rest in rests for token in rest], device=model.device)
    before = torch.cat([each[:-1] for each in expected])
    _within(
        model,
        tolerance,
        likely,
        before.gather(1, targets[:, None])[:, 0],
        "log-probs of packed responses",
    )


def _compare_scores(
    model: PreTrainedModel,
    sequences: list[list[int]],
    expected: list[torch.Tensor],
    tolerance: float,
) -> None:
    """Compare scores at the last token, where plain `transformers` reads them.

    Plain `transformers` has no shift, so the shift is added back.
    """
    scalar = ScalarModel(model)
    scores = response_scores(scalar, pack(sequences, model.device)) + scalar.shift
    plain = torch.cat(
        [model(input_ids=_row(model, ids), use_cache=False).logits[:, 0] for ids in sequences]
    )
    _within(model, tolerance, scores, plain, "scores")


def _compare_sampled(
    model: PreTrainedModel,
    sequences: list[list[int]],
    expected: list[torch.Tensor],
    tolerance: float,
) -> None:
    """Compare steps of sampling from two prompts of different lengths.

    Then the slot of the second is filled again.
    """
    long, short, again = sequences[0], sequences[2], sequences[4]
    prompts = [ids[: len(ids) - _STEPS] for ids in (long, short, again)]
    slots = Slots(
        model,
        2,
        max(map(len, prompts)),
        2 * _STEPS,
        getattr(model.config, "pad_token_id", None) or 0,
    )
    rows = torch.arange(2, device=model.device)

    def compare(logits: torch.Tensor, places: Sequence[tuple[int, int]]) -> None:
        for row, (which, place) in zip(logits.float(), places, strict=True):
            said = row.log_softmax(-1)
            _within(
                model, tolerance, said, expected[which][place], "log-probs of sampling with a cache"
            )

    with (
        torch.inference_mode(),
        _in_a_line(model.config.model_type, "sampling with a cache fails in transformers"),
    ):
        ends = [len(prompt) for prompt in prompts]
        compare(slots.admit(rows, prompts[:2]), [(0, ends[0] - 1), (2, ends[1] - 1)])
        for step in range(_STEPS - 1):
            tokens = torch.tensor(
                [long[ends[0] + step], short[ends[1] + step]], device=model.device
            )
            compare(slots.step(tokens), [(0, ends[0] + step), (2, ends[1] + step)])
        slots.release(rows[1:])
        compare(slots.admit(rows[1:], prompts[2:]), [(4, ends[2] - 1)])
        tokens = torch.tensor([long[ends[0] + _STEPS - 1], again[ends[2]]], device=model.device)
        compare(slots.step(tokens), [(0, ends[0] + _STEPS - 1), (4, ends[2])])


def _within(
    model: PreTrainedModel, tolerance: float, got: torch.Tensor, expected: torch.Tensor, what: str
) -> None:
    gap = float((got - expected).abs().max())
    if not gap <= tolerance:  # also true for NaN
        raise ConfigError(
            f"{model.config.model_type}: {what} differ by {gap:.2g} nats from those of each"
            f" sequence alone in plain transformers; {_CHOOSE}"
        )


def _check_head(model: PreTrainedModel) -> None:
    """Check that a scalar head fits on the model.

    Reward models and value models are the same trunk with a scalar head.
    """
    with (
        _in_a_line(model.config.model_type, "a scalar head cannot be put on it"),
        torch.device("meta"),
    ):
        classifier = classifier_class(model.config)(copy.deepcopy(model.config))
    ours, theirs = (set(each.base_model.state_dict()) for each in (model, classifier))
    if ours != theirs or not isinstance(classifier.score, torch.nn.Linear):
        raise ConfigError(
            f"{model.config.model_type}: the trunk of its sequence classifier is not that of the"
            " language model"
        )


def _sequences(model: PreTrainedModel) -> list[list[int]]:
    """Return sequences of random tokens that are not special."""
    config = model.config.get_text_config(decoder=True)
    special: set[int | None] = set()
    for name in ("pad", "eos", "bos"):
        token = getattr(config, f"{name}_token_id", None)
        special.update(token if isinstance(token, list) else [token])
    size = min(config.vocab_size, 10_000)
    usual = torch.tensor([i for i in range(size) if i not in special] or [*range(size)])
    generator = torch.Generator().manual_seed(0)
    return [
        usual[
            torch.randint(len(usual), (min(length, context_length(model)),), generator=generator)
        ].tolist()
        for length in _LENGTHS
    ]


def _row(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _narrow_windows(model: PreTrainedModel) -> Iterator[None]:
    """Make the attention windows in the config so narrow that short sequences exceed them."""
    config = model.config.get_text_config(decoder=True)
    before = {name: getattr(config, name) for name in _WINDOWS if getattr(config, name, None)}
    try:
        for name, window in before.items():
            setattr(config, name, min(window, _WINDOW))
        yield
    finally:
        for name, window in before.items():
            setattr(config, name, window)


@contextlib.contextmanager
def _in_a_line(name: str, what: str) -> Iterator[None]:
    """Turn an error inside a model of the library into a `ConfigError` of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name}: {what}: {type(error).__name__}: {said}") from error
