"""Sample from a causal language model, in batches and with a cache.

Each response has its own seed, and its token t is drawn with the t-th number of that seed's stream.
So a sample depends only on its seed: not on the batch size, the number of processes, or where a
killed run was resumed.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.models.load import context_of
from align.sampling.engine import Response, Sampling
from align.sampling.kv_slots import Slots, can_sample_in_bf16

_SPARE = 0.15  # fraction of the slots that must be free before they are filled again
_ROUND = 8  # slots dropped at a time: few different shapes, as in align/text/packing.py

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the constants of splitmix64 as signed 64-bit integers
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


class Ends(NamedTuple):
    """The tokens that end and pad responses.

    Attributes:
        eos_token_id: one or several tokens that end a response.
        pad_token_id: fills the rows of shorter prompts.
        tokenizer: decodes responses; only `stop_strings` need it.
    """

    eos_token_id: int | Sequence[int]
    pad_token_id: int
    tokenizer: PreTrainedTokenizerBase | None = None

    def token_ids(self) -> list[int]:
        """Return the tokens that end a response as a list."""
        one_or_many = self.eos_token_id
        return [one_or_many] if isinstance(one_or_many, int) else list(one_or_many)


class LocalEngine:
    """An engine that samples in this process.

    It uses the model itself or, in bf16, a copy of it that is half as large.
    """

    def __init__(self, precision: str, ends: Ends):
        self._precision, self._ends = precision, ends
        self._model: PreTrainedModel | None = None

    def load(self, model: PreTrainedModel) -> None:
        if self._precision == "fp32" or not can_sample_in_bf16(model):
            self._model = model
        elif self._model is None:
            self._model = copy.deepcopy(model).requires_grad_(False)
            # Not buffers: rounding rotary frequencies to bf16 would change them.
            for parameter in self._model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        else:
            self._model.load_state_dict(model.state_dict())

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Response]]:
        return generate(self._loaded(), prompts, seeds, sampling, self._ends)

    def stream(self, prompt: list[int], seed: int, sampling: Sampling) -> Iterator[int]:
        return stream(self._loaded(), prompt, seed, sampling, self._ends)

    def _loaded(self) -> PreTrainedModel:
        assert self._model is not None, "load a model first"
        return self._model


def uniforms(seeds: torch.Tensor, length: int) -> torch.Tensor:
    """Return the first `length` numbers of each seed's stream, float64 [B, length] in [0, 1).

    The generator is counter-based (splitmix64): number t of seed s is a hash of (s, t), so streams
    need no state.
    """
    counter = torch.arange(1, length + 1, device=seeds.device, dtype=torch.int64)
    x = _mix(seeds[:, None]) + counter[None, :] * _GOLDEN
    return _shift(_mix(x), 11).double() * 2.0**-53


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    ends: Ends,
) -> Iterator[tuple[int, Response]]:
    """Sample one response to each prompt, and yield (index into `prompts`, response) as each ends.

    A slot whose response has ended takes the next prompt from the queue.

    Args:
        model: any `transformers` causal language model; it is used unchanged (call `eval()` first).
        prompts: token ids, without padding.
        seeds: one integer below 2**63 per prompt.

    Raises:
        ValueError: a prompt leaves no room for `max_new_tokens` in the model's context, or there
            are stop strings and no tokenizer.
    """
    if not prompts:
        return
    flight = _take_off(model, prompts, seeds, sampling, ends)
    while flight.under_way:
        # An eighth faster than no_grad. It ends before `yield`, so that it does not affect the
        # caller.
        with torch.inference_mode():
            done = flight.advance()
        yield from done


def stream(
    model: PreTrainedModel,
    prompt: list[int],
    seed: int,
    sampling: Sampling,
    ends: Ends,
) -> Iterator[int]:
    """Sample one response, and yield each token as it is drawn.

    `generate` returns the same tokens. For arguments and errors, see `generate`.
    """
    flight = _take_off(model, [prompt], [seed], sampling, ends)
    while flight.under_way:
        with torch.inference_mode():
            flight.advance()
            token = flight.newest()
        yield token


def _take_off(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    ends: Ends,
) -> _Flight:
    if sampling.stop_strings and ends.tokenizer is None:
        raise ValueError(
            "stop strings need the tokenizer, because they are searched for in the text"
        )
    context = context_of(model.config)
    longest = max(map(len, prompts))
    if longest + sampling.max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new tokens do not fit in"
            f" the model's context of {context}; shorten the prompts or max_new_tokens"
        )
    with torch.inference_mode():
        return _Flight(model, prompts, seeds, sampling, ends)


class _Flight:
    """The responses in progress, one per slot, and the queue of prompts that wait."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        ends: Ends,
    ):
        device, length = model.device, sampling.max_new_tokens
        self._prompts, self._sampling = prompts, sampling
        self._ends = torch.tensor(ends.token_ids(), device=device)
        self._numbers = uniforms(torch.tensor(seeds, device=device), length)
        self._ids = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(len(prompts), length, device=device)
        self._queue = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
        count = min(sampling.batch_size, len(prompts))
        # Slots that are filled again need room to continue before old columns are cleared.
        room = length if count == len(prompts) else 2 * length
        self._slots = Slots(model, count, max(map(len, prompts)), room, ends.pad_token_id)
        # the response that each slot writes
        self._request = torch.zeros(count, dtype=torch.long, device=device)
        # tokens of that response so far
        self._written = torch.zeros(count, dtype=torch.long, device=device)
        # the newest token of that response
        self._token = torch.zeros(count, dtype=torch.long, device=device)
        self._alive = torch.zeros(count, dtype=torch.bool, device=device)
        self._num_alive = 0
        self._stops: _StopStrings | None = None
        if sampling.stop_strings and ends.tokenizer is not None:
            self._stops = _StopStrings(ends.tokenizer, sampling.stop_strings)

    @property
    def under_way(self) -> bool:
        return bool(self._queue) or self._num_alive > 0

    def advance(self) -> list[tuple[int, Response]]:
        """Draw the next token of every response, or the first tokens of new responses.

        Returns:
            The responses that ended, with their index.
        """
        free = len(self._alive) - self._num_alive
        if self._queue and (self._num_alive == 0 or free >= _SPARE * len(self._alive)):
            rows = (~self._alive).nonzero().squeeze(1)[: len(self._queue)]
            taken = [self._queue.popleft() for _ in range(len(rows))]
            self._request[rows], self._written[rows] = torch.tensor(taken, device=rows.device), 0
            self._alive[rows] = True
            return self._draw(
                rows, self._slots.admit(rows, [self._prompts[i] for i in taken]), starting=True
            )
        if not self._queue and free >= _ROUND:
            self._give_up()
        rows = self._alive.nonzero().squeeze(1)
        return self._draw(rows, self._slots.step(self._token)[rows])

    def newest(self) -> int:
        """Return the newest token in the first slot."""
        return int(self._token[0])

    def _draw(
        self, rows: torch.Tensor, logits: torch.Tensor, starting: bool = False
    ) -> list[tuple[int, Response]]:
        request, place = self._request[rows], self._written[rows]
        sampling = self._sampling
        token, logprob = choose_tokens(
            logits.float(), self._numbers[request, place], sampling.temperature, sampling.top_p
        )
        self._ids[request, place], self._logprobs[request, place] = token, logprob
        self._token[rows], self._written[rows] = token, place + 1
        ended = (token[:, None] == self._ends).any(1) | (place + 1 == sampling.max_new_tokens)
        if self._stops is not None:
            completed = self._stops.completed(request.tolist(), token.tolist())
            ended |= torch.tensor(completed, device=ended.device)
        self._alive[rows] = ~ended
        done, lengths = request[ended].tolist(), (place + 1)[ended].tolist()
        if done:
            self._slots.release(rows[ended])
        self._num_alive += (len(rows) if starting else 0) - len(done)
        return [
            (i, Response(self._ids[i, :n].tolist(), self._logprobs[i, :n].tolist()))
            for i, n in zip(done, lengths, strict=True)
        ]

    def _give_up(self) -> None:
        """Drop free slots, and continue with the slots in use.

        Some free slots are kept, so that the number of rows is a multiple of `_ROUND`.
        """
        count = self._num_alive + -self._num_alive % _ROUND
        if count >= len(self._alive):
            return
        rows = count + self._alive[count:].nonzero().squeeze(1)
        places = (~self._alive[:count]).nonzero().squeeze(1)[: len(rows)]
        self._slots.give_up(count, rows, places)
        for state in (self._request, self._written, self._token, self._alive):
            state[places] = state[rows]
        self._request, self._written = self._request[:count], self._written[:count]
        self._token, self._alive = self._token[:count], self._alive[:count]


class _StopStrings:
    """A search for stop strings at the end of each response's text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]):
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        self._without_text = {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        # A token holds at least one byte of text, so this many tokens hold any stop string that the
        # newest one completes. The first of them may have lost its space, or be a part of a
        # character.
        self._width = max(len(string.encode()) for string in stop_strings) + 4
        self._newest: dict[int, deque[int]] = {}  # response -> its newest tokens that have text

    def completed(self, responses: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Return whether each response's newest token completes a stop string."""
        found = []
        for response, token in zip(responses, tokens, strict=True):
            newest = self._newest.setdefault(response, deque(maxlen=self._width))
            if token in self._without_text:
                found.append(False)
                continue
            newest.append(token)
            text = self._tokenizer.decode(
                list(newest), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            found.append(any(string in text for string in self._stop_strings))
        return found


def choose_tokens(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row: logits [B, V], uniform [B] -> tokens [B] and their log-probs [B].

    This inverts the distribution function: the token is the first whose cumulative probability is
    above the number.
    """
    if temperature == 0:
        logprobs = logits.log_softmax(1)
        token = logits.argmax(1, keepdim=True)
    else:
        logprobs = _nucleus((logits / temperature).log_softmax(1), top_p)
        cdf = logprobs.exp().double().cumsum(1)
        token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp(
            max=logits.shape[1] - 1
        )
    return token[:, 0], logprobs.gather(1, token)[:, 0]


def _nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the likeliest tokens that together have `top_p` of the probability.

    The token that reaches `top_p` is included. The log-probs are normalised again.
    """
    if top_p == 1:
        return logprobs
    ordered, places = logprobs.sort(1, descending=True)
    before = ordered.exp().double().cumsum(1) - ordered.exp()
    out = torch.zeros_like(logprobs, dtype=torch.bool).scatter_(1, places, before >= top_p)
    return logprobs.masked_fill(out, float("-inf")).log_softmax(1)
