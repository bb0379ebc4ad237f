"""How many tokens SentencePiece makes of lines, after learning a unigram model from others.

    .venv-words/bin/python benchmarks/peers/sentencepiece_tokens.py SETTINGS.json

The settings: `size` (entries of the vocabulary), `train` and `test` (lines). It prints the number of tokens of `test`.
Text is not normalised, and characters that were not learned fall back to bytes, so that nothing is lost.
"""

import io
import json
import os
import sys
from pathlib import Path

import sentencepiece

if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(settings["train"]),
        model_writer=model,
        vocab_size=settings["size"],
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="identity",
        max_sentence_length=10**6,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    with os.fdopen(int(os.environ.get("ANSWERS_FD", "1")), "w") as answers:
        print(sum(map(len, processor.encode(settings["test"]))), file=answers)
