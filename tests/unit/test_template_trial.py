"""A chat template that would take this process down is tried in another one, which ends at its limits."""

from __future__ import annotations

import signal
import threading
import time

import psutil
import pytest

from align.errors import StoreError
from align.text import template_trial

ORDINARY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_raises_for_some_dialogues_passes() -> None:
    """It may know no system message."""
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + ORDINARY
    template_trial.try_template(template, {"eos_token": "</s>", "additional_special_tokens": ["<a>", "<b>"]})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, r"does not end within \d seconds"),
        (ORDINARY + "{{ 'a' * 9000000 }}", "writes more than 500,000 characters"),
    ],
)
def test_a_template_that_passes_a_limit_is_refused(monkeypatch, template: str, said: str) -> None:
    monkeypatch.setattr(template_trial, "MAX_SECONDS", 1)
    with pytest.raises(ValueError, match=f"its chat template {said} for a short dialogue; give another"):
        template_trial.try_template(template, {})


def test_a_trial_that_the_system_kills_is_not_the_template_s_fault() -> None:
    before = set(psutil.Process().children())

    def kill() -> None:
        while not (mine := set(psutil.Process().children()) - before):
            time.sleep(0.01)
        mine.pop().send_signal(signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(StoreError, match=r"was killed \(out of memory\?\); give the same command again"):
        template_trial.try_template(ENDLESS + "{{ 'killed' }}", {})
