"""A conversation with a language model: the turns that fit in its context, and streamed answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.configs import learns_from_rewards
from align.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.sampling.engine import Sampling
    from align.store.artifacts import Artifact, ArtifactStore
    from align.text.chat_format import Message


def learned_dialogues(store: ArtifactStore, artifact: Artifact) -> bool:
    """Return whether a model was trained with its chat template.

    Every model here has a template, but a base model never saw its own. The nearest step in the
    lineage that determines the answer decides. Tuning and a chosen prompt mean yes;
    pretraining from scratch means no. An imported model knows the template that it came with, or
    that was given as a file.
    """
    for made in store.lineage(artifact):
        if made.stage in ("sft", "dpo", "kto", "prompt") or learns_from_rewards(made.stage):
            return True
        if made.stage == "pretrain" and not made.manifest["inputs"].get("model"):
            return False
        if made.stage == "import_model":
            return _came_with_template(made)
    return False


def _came_with_template(imported: Artifact) -> bool:
    """Return whether the import left the chat template alone.

    If it added align's template, the embedding rows of the role tokens are untrained.
    """
    from transformers import AutoConfig

    from align.models.load import load_tokenizer
    from align.models.vocabulary import DRAWN
    from align.text.chat import ROLE_TOKENS

    drawn = getattr(AutoConfig.from_pretrained(imported.path, trust_remote_code=False), DRAWN, [])
    role = load_tokenizer(imported.path).get_vocab().get(ROLE_TOKENS["assistant"])
    return role is None or role not in drawn


class Conversation:
    """The turns of a user and of a model, which answers by its chat template.

    Attributes:
        name: the model's name, as the user wrote it.
        turns: questions with their answers, oldest first.
        cut_off: whether the newest answer reached the token limit and did not end on its own.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        seed: int = 0,
        raw: bool = False,
    ):
        """Open a conversation.

        Args:
            sampling: how to answer; its stop strings are replaced by the tokenizer's.
            seed: answer number n has the n-th seed that is derived from it.
            raw: continue each text unchanged, without template and turns.
        """
        from align.text.chat import stop_strings

        self.name = name
        self.turns: list[tuple[str, str]] = []
        self._model, self._tokenizer, self._seed, self._raw = model, tokenizer, seed, raw
        self._sampling = replace(sampling, stop_strings=() if raw else stop_strings(tokenizer))
        self._asked, self._prompt = "", [0]
        self._kept: list[tuple[str, str]] = []
        self._num_asked = 0
        self.cut_off = False
        self._system = ""

    @property
    def system(self) -> str:
        """The system message; "" for none."""
        return self._system

    def set_system(self, text: str) -> None:
        """Set the system message; "" removes it.

        Raises:
            ConfigError: the chat template accepts none.
        """
        before, self._system = self._system, text
        try:
            self._encoded([], "Who are you?")
        except ConfigError:
            self._system = before
            raise

    def reset(self) -> None:
        """Forget all turns. The system message stays."""
        self.turns.clear()

    def undo(self) -> bool:
        """Forget the newest question and its answer; False if there is none."""
        if not self.turns:
            return False
        self.turns.pop()
        return True

    def ask(self, text: str) -> int:
        """Take the user's next turn.

        Returns:
            The number of oldest turns that `answer` drops to make room for it.

        Raises:
            ConfigError: it does not fit in the model's context, or the chat template rejects it.
        """
        from align.models.load import context_length

        room = context_length(self._model) - self._sampling.max_new_tokens
        kept = self.turns
        prompt = self._encoded(kept, text)
        while len(prompt) > room and kept and not self._raw:
            kept = kept[1:]
            prompt = self._encoded(kept, text)
        if len(prompt) > room:
            raise ConfigError(
                f"the prompt has {len(prompt):,} tokens, and {self.name} reads {room:,} before an"
                f" answer of {self._sampling.max_new_tokens:,}; shorten it, or give fewer --tokens"
            )
        self._kept, self._asked, self._prompt = list(kept), text, prompt
        return len(self.turns) - len(kept)

    def answer(self) -> Generator[str]:
        """Yield the answer to the user's newest turn as it grows, and the whole text at the end.

        The turn is kept when the answer ends. If the generator is closed early, the turn is kept
        with the text so far. Raw conversations keep no turns.
        """
        from align.runtime.seeds import derive_seed
        from align.sampling.sampler import sampler_of
        from align.text.chat import is_ended, stop_ids

        self.turns = self._kept
        ids: list[int] = []
        seed = derive_seed(self._seed, "chat", self._num_asked)
        self._num_asked += 1
        self.cut_off = False
        ends = stop_ids(self._tokenizer)
        drawn = sampler_of(self._model, self._tokenizer, self._sampling).stream(self._prompt, seed)
        try:
            for token in drawn:
                ids.append(token)
                yield self._text(ids, settled=True)
            self.cut_off = ids[-1] not in ends if self._raw else not is_ended(self._tokenizer, ids)
            yield self._text(ids, settled=False)
        finally:
            text = self._text(ids, settled=False)
            if not self._raw:
                self.turns.append((self._asked, text))

    def _encoded(self, turns: list[tuple[str, str]], text: str) -> list[int]:
        from align.text.chat import encode_prompts
        from align.text.encoding import encode_context

        if self._raw:
            return encode_context(self._tokenizer, text)
        messages: list[Message] = (
            [{"role": "system", "content": self._system}] if self._system else []
        )
        for question, answer in turns:
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        (prompt,) = encode_prompts(
            self._tokenizer, [[*messages, {"role": "user", "content": text}]], self.name
        )
        return prompt

    def _text(self, ids: list[int], settled: bool) -> str:
        from align.text.chat import decode_response, settled_text, without_end

        if not self._raw:
            return (
                settled_text(self._tokenizer, ids)
                if settled
                else decode_response(self._tokenizer, ids)
            )
        text = continued(self._tokenizer, self._prompt, list(without_end(self._tokenizer, ids)))
        return text.rstrip("\ufffd") if settled else text


def set_system(conversations: Sequence[Conversation], text: str) -> None:
    """Give each model a system message, or none of them if one rejects it.

    Raises:
        ConfigError: a chat template accepts none.
    """
    before = [conversation.system for conversation in conversations]
    try:
        for conversation in conversations:
            conversation.set_system(text)
    except ConfigError:
        for conversation, system in zip(conversations, before, strict=True):
            conversation.set_system(system)
        raise


def continued(tokenizer: PreTrainedTokenizerBase, prompt: list[int], written: list[int]) -> str:
    """Return the text written after a prompt, with the space before it.

    Some decoders write that space only between words, so the prompt is decoded, too.
    """
    before, whole = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for ids in (prompt, prompt + written)
    )
    return whole[len(before) :]
