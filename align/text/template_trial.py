"""Render a chat template that came from outside in a process of its own, under limits of time, memory and size.

A chat template is a program. One that never ends, or that makes a text of gigabytes, would take every process down
that renders it, and Python cannot stop it from within. So a template is rendered once by a child process before any
stage uses it. The child runs the code of `transformers` that every later rendering runs.

What a template does with other dialogues than those of the trial is not known from it.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import StoreError

MAX_TEMPLATE = 1_000_000  # characters; the longest published ones have some 30,000
MAX_RENDERED = 500_000  # characters for a dialogue of about 40,000
MAX_SECONDS = 5  # of the processor, for all dialogues; published templates need some hundredths of one
MAX_MEMORY = 2**29  # bytes beyond what the child has when it begins
_MAX_WAIT = 600  # seconds by the clock: a machine that does much else gives a process a small share of them

# Exit codes of the child.
_TOO_LONG, _TOO_MUCH_MEMORY, _TOO_MUCH_TEXT = 10, 11, 12
_SAID = {
    _TOO_LONG: f"does not end within {MAX_SECONDS} seconds",
    _TOO_MUCH_MEMORY: f"needs more than {MAX_MEMORY // 2**20:,} MiB of memory",
    _TOO_MUCH_TEXT: f"writes more than {MAX_RENDERED:,} characters",
}


def try_template(template: str, special_tokens: Mapping[str, Any]) -> None:
    """Render some dialogues with a template in a child process, and refuse one that passes the limits.

    A template that raises is not refused here: it may know no system message. `chat_format` says what is wrong then.

    Args:
        template: the Jinja text.
        special_tokens: name -> text, as a tokenizer gives them to its template.

    Raises:
        ValueError: one line on the limit that it passes.
        StoreError: the machine starts no process.
    """
    if len(template) > MAX_TEMPLATE:
        raise ValueError(
            f"its chat template has {len(template):,} characters; expected at most {MAX_TEMPLATE:,}; give another by "
            f"chat_template=path:FILE"
        )
    if said := _tried(template, json.dumps(dict(special_tokens), default=str, sort_keys=True)):
        raise ValueError(
            f"its chat template {said} for a short dialogue; give another by chat_template=path:FILE, or "
            f"chat_template=align"
        )


@functools.lru_cache(maxsize=256)
def _tried(template: str, special_tokens: str) -> str:
    """Which limit a template passes; "" for none."""
    asked = json.dumps({"template": template, "special_tokens": json.loads(special_tokens)})
    child = [sys.executable, "-P", str(Path(__file__).with_name("template_child.py"))]
    limits = [MAX_SECONDS, MAX_MEMORY, MAX_RENDERED]
    try:
        done = subprocess.run(
            [*child, *map(str, limits)], input=asked.encode(), capture_output=True, timeout=_MAX_WAIT, check=False
        )
    except subprocess.TimeoutExpired:
        return _SAID[_TOO_LONG]
    except OSError as error:
        raise StoreError(f"{sys.executable}: cannot start a process to try a chat template ({error})") from None
    if done.returncode == -signal.SIGKILL:  # the hard limit of processor time: it was in code that runs no handlers
        return _SAID[_TOO_LONG]
    if done.returncode < 0:
        return f"ends the process that renders it (signal {-done.returncode})"
    if done.returncode in _SAID:
        return _SAID[done.returncode]
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise RuntimeError(f"the trial of a chat template failed: {last}")
    return ""
