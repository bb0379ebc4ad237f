"""`align sample`: what a language model writes: answers, or how texts go on that begin so."""

from __future__ import annotations

import argparse
from argparse import Namespace

from align.errors import ConfigError
from align.runtime.console import Parser, harmless, wide_console
from align.sampling.conversation import continued, learned_dialogues
from align.store.artifacts import Artifact, existing_store


def main(arguments: list[str]) -> int:
    parser = Parser(prog="align sample", description=__doc__)
    parser.add_argument("ref", metavar="REF", help="a model: PIPELINE/STEP[:vN] or STAGE@KEY")
    parser.add_argument(
        "prompt",
        nargs="*",
        help=(
            "what a model that was taught to answer is asked, or how a text begins; none: a new"
            " text"
        ),
    )
    parser.add_argument(
        "--temperature",
        type=_numbers,
        default=[0.7, 1.0],
        metavar="T,T",
        help="0: the likeliest; default: 0.7,1",
    )
    parser.add_argument(
        "--tokens", type=int, default=100, metavar="N", help="at most so many; default: 100"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sampled from; default: 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue each prompt as plain text, without chat template",
    )
    parser.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    options = parser.parse_intermixed_args(arguments)
    for name, value, ok, allowed in (
        *(
            ("--temperature", t, 0 <= t < float("inf"), "numbers from 0 up")
            for t in options.temperature
        ),
        ("--tokens", options.tokens, options.tokens > 0, "a number above 0"),
        ("--top-p", options.top_p, 0 < options.top_p <= 1, "a number above 0 and at most 1"),
    ):
        if not ok:
            raise ConfigError(f"{name}: expected {allowed}, got {value:g}")
    store = existing_store(options.store)
    artifact = store.find(options.ref)
    if artifact.kind != "model":
        told = (
            "; its folder has some of its answers, in predictions.jsonl"
            if artifact.kind == "seq2seq_model"
            else ""
        )
        raise ConfigError(f"{options.ref}: expected a model, got a {artifact.kind}{told}")
    store.verify(artifact)
    answers = bool(options.prompt) and not options.raw and learned_dialogues(store, artifact)
    _write(artifact, options.prompt or [""], options, answers)
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, as in 0.7,1, got {text}") from None


def _write(artifact: Artifact, prompts: list[str], options: Namespace, answers: bool) -> None:
    """Print a paragraph for each prompt and temperature, with the prompt in bold.

    Args:
        answers: True: each prompt is a user's turn, written by the model's chat template. False:
            each text begins with its prompt.
    """
    from rich.text import Text

    from align.models.load import context_length, load_model, load_tokenizer
    from align.runtime.seeds import derive_seed
    from align.sampling.engine import Sampling
    from align.sampling.sampler import sampler_of
    from align.text.chat import decode_response, encode_prompts, stop_strings, without_end
    from align.text.encoding import encode_context

    model, tokenizer = load_model(artifact.path), load_tokenizer(artifact.path)
    if answers:
        encoded = encode_prompts(
            tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts]
        )
    else:
        encoded = [encode_context(tokenizer, prompt) for prompt in prompts]
    room = context_length(model) - max(map(len, encoded))
    if room <= 0:
        raise ConfigError(
            f"prompt: expected less than the model's context of {context_length(model)} tokens"
        )
    console = wide_console()
    for temperature in options.temperature:
        console.print(Text(f"temperature {temperature:g}", style="dim"))
        settings = Sampling(
            max_new_tokens=min(options.tokens, room),
            temperature=temperature,
            top_p=options.top_p,
            stop_strings=stop_strings(tokenizer) if answers else (),
        )
        seeds = [derive_seed(options.seed, "sample", i) for i in range(len(prompts))]
        written = dict(sampler_of(model, tokenizer, settings).draw(encoded, seeds))
        for i, prompt in enumerate(prompts):
            ids = written[i].ids
            if answers:
                text = f"\n{decode_response(tokenizer, ids) or '(an empty answer)'}"
            else:
                text = continued(tokenizer, encoded[i], list(without_end(tokenizer, ids)))
            console.print(Text.assemble((prompt, "bold"), harmless(text)), soft_wrap=True)
            console.print()
