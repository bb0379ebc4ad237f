"""The child process of `template_trial`: render dialogues under limits, and exit with the result.

It runs as a file and is not imported, because an import of `align` would take seconds. `-P` keeps
this folder, with its `tokenizers.py`, out of the places where Python searches for packages.

    python -P template_child.py SECONDS MEMORY CHARACTERS < FILE

FILE is JSON: {"template": ..., "special_tokens": {...}}. The exit code is the limit that the
template exceeds, or 0.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
from typing import Any

_TOO_LONG, _TOO_MUCH_MEMORY, _TOO_MUCH_TEXT = 10, 11, 12


def _dialogues() -> list[list[dict[str, Any]]]:
    """Return test dialogues in the form in which stages render them.

    These are two rounds, a prompt, one with a system message, a long one, and one with tools.
    """
    rounds: list[dict[str, Any]] = [
        {"role": "user", "content": "Who sat on the mat?"},
        {"role": "assistant", "content": "The cat."},
        {"role": "user", "content": "And who ran home?"},
        {"role": "assistant", "content": "The dog ran home."},
    ]
    long = [
        {"role": role, "content": f"{i} " + "the cat sat on the mat. " * 40}
        for i in range(20)
        for role in ("user", "assistant")
    ]
    call = {"type": "function", "function": {"name": "look", "arguments": {"place": "mat"}}}
    tools = [
        rounds[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a cat"},
        rounds[1],
    ]
    return [rounds, rounds[:1], [{"role": "system", "content": "Be brief."}, *rounds], long, tools]


def main() -> int:
    seconds, memory, characters = map(int, sys.argv[1:])
    asked = json.load(sys.stdin)
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit(seconds, memory)
    for messages in _dialogues():
        in_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        for conversation in (messages, in_parts):
            for prompt in (False, True):
                try:
                    (text,), _ = render_jinja_template(
                        conversations=[conversation],
                        chat_template=asked["template"],
                        add_generation_prompt=prompt,
                        **asked["special_tokens"],
                    )
                except MemoryError:
                    return _TOO_MUCH_MEMORY
                except Exception:  # a template is a program, and may raise anything
                    continue
                if len(text) > characters:
                    return _TOO_MUCH_TEXT
    return 0


def _limit(seconds: int, memory: int) -> None:
    """Limit CPU time, and memory beyond what the process uses now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + seconds  # the limit is in whole seconds
    signal.signal(signal.SIGXCPU, lambda *_: os._exit(_TOO_LONG))
    # The hard limit ends code that never returns to Python.
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 2))
    with contextlib.suppress(OSError, ValueError):  # macOS has no memory limit; only time counts
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


if __name__ == "__main__":
    # Exit at once: Python shuts down without signal handlers, while the limit still applies.
    os._exit(main())
