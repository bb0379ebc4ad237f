"""Render an untrusted chat template in a child process, under limits of time, memory and size.

A chat template is a program. One that never ends, or that makes gigabytes of text, would break
every process that renders it, and Python cannot stop it from within. Therefore a child process
renders a template once before any stage uses it. The child runs the code of `transformers` that
every later rendering runs.

The trial does not show what a template does with other dialogues.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import StoreError

MAX_TEMPLATE = 1_000_000  # characters; the longest published ones have about 30,000
MAX_RENDERED = 500_000  # characters per dialogue; the longest one has about 40,000 in its messages
# CPU time for all dialogues; published templates need a few hundredths of a second.
MAX_SECONDS = 5
MAX_MEMORY = 2**29  # bytes beyond what the child uses before it renders
_MAX_WAIT = 600  # seconds by the wall clock: on a busy machine a process gets little CPU time

# Exit codes of the child.
_TOO_LONG, _TOO_MUCH_MEMORY, _TOO_MUCH_TEXT = 10, 11, 12
_SAID = {
    _TOO_LONG: f"does not end within {MAX_SECONDS} seconds",
    _TOO_MUCH_MEMORY: f"needs more than {MAX_MEMORY // 2**20:,} MiB of memory",
    _TOO_MUCH_TEXT: f"writes more than {MAX_RENDERED:,} characters",
}


def try_template(template: str, special_tokens: Mapping[str, Any]) -> None:
    """Render test dialogues with a template in a child process, and check the limits.

    A template that raises is not rejected here, because it may support no system message.
    `chat_format` reports such errors.

    Args:
        template: the Jinja text.
        special_tokens: name -> text, as a tokenizer gives them to its template.

    Raises:
        ValueError: the template exceeds a limit; the message is one line.
        StoreError: the machine cannot start a process, or the system kills it.
    """
    if len(template) > MAX_TEMPLATE:
        raise ValueError(
            f"its chat template has {len(template):,} characters; expected at most"
            f" {MAX_TEMPLATE:,}; give another by chat_template=path:FILE"
        )
    if said := _tried(template, json.dumps(dict(special_tokens), default=str, sort_keys=True)):
        raise ValueError(
            f"its chat template {said} for a short dialogue; give another by"
            " chat_template=path:FILE, or chat_template=align"
        )


@functools.lru_cache(maxsize=256)
def _tried(template: str, special_tokens: str) -> str:
    """Return the limit that a template exceeds, for an error message; "" for none."""
    asked = json.dumps({"template": template, "special_tokens": json.loads(special_tokens)})
    child = [sys.executable, "-P", str(Path(__file__).with_name("template_child.py"))]
    limits = [MAX_SECONDS, MAX_MEMORY, MAX_RENDERED]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    try:
        done = subprocess.run(
            [*child, *map(str, limits)],
            input=asked.encode(),
            capture_output=True,
            timeout=_MAX_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _SAID[_TOO_LONG]
    except OSError as error:
        raise StoreError(
            f"{sys.executable}: cannot start a process to try a chat template ({error})"
        ) from None
    if done.returncode == -signal.SIGKILL:
        if resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before >= MAX_SECONDS:
            # the hard limit of CPU time: the code ran no signal handlers
            return _SAID[_TOO_LONG]
        raise StoreError(
            "the process that tries a chat template was killed (out of memory?); give the same"
            " command again"
        )
    if done.returncode < 0:
        return f"ends the process that renders it (signal {-done.returncode})"
    if done.returncode in _SAID:
        return _SAID[done.returncode]
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise RuntimeError(f"the trial of a chat template failed: {last}")
    return ""
