"""Being asked to stop: which signals do, what a second one does, and ending with a process that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.cli.main import main
from align.errors import ConfigError
from align.runtime.signals import Stop, no_interrupt_lost, on_stop, was_interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def doing(number: int, what: object) -> Iterator[None]:
    before = signal.signal(number, what)  # type: ignore[arg-type]
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_same_one_again_does_what_it_did_before(number: int) -> None:
    again: list[int] = []
    stop = Stop()
    with doing(number, lambda n, frame: again.append(n)), stop.listening():
        os.kill(os.getpid(), number)
        assert (stop.signal, again) == (number, [])
        assert stop.error().exit_code == 128 + number
        os.kill(os.getpid(), number)
        assert again == [number]


def test_of_two_signals_the_first_says_how_it_ends_and_speaks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    stop = Stop()
    with doing(signal.SIGHUP, signal.SIG_DFL), stop.listening():  # nohup has it ignored
        os.kill(os.getpid(), signal.SIGHUP)
        until = time.monotonic() + 30
        while stop.signal is None and time.monotonic() < until:  # another thread may have been given it
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.error().exit_code == 129
    assert capsys.readouterr().err.count("stopping at the next step") == 1


def test_a_signal_while_a_line_waits_for_its_reader_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `align run 2>&1 | less` does, where nobody turns the page."""
    reader, writer = os.pipe()
    main_thread, stop = threading.get_ident(), Stop()

    def ask_and_read() -> None:
        time.sleep(0.1)  # the pipe is full by then
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(0.1)
        while os.read(reader, 1 << 16):
            pass

    with open(writer, "w", buffering=1) as stream, stop.listening():
        monkeypatch.setattr(sys, "stderr", stream)
        thread = threading.Thread(target=ask_and_read)
        thread.start()
        for _ in range(3000):
            print("x" * 100, file=sys.stderr)
    thread.join()
    os.close(reader)
    assert stop.signal == signal.SIGTERM


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored_as_nohup_asks(number: int) -> None:
    stop, heard = Stop(), []
    with doing(number, signal.SIG_IGN), on_stop(lambda n, frame: heard.append(n)), stop.listening():
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN
    assert (stop.signal, heard) == (None, [])


def test_afterwards_the_signals_do_what_they_did() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop().listening():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


_CHILD = """
import os, sys, time
from align.runtime.signals import end_with_parent
end_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""
_PARENT = """
import os, subprocess, sys, threading, time
def start():
    subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
if sys.argv[2] == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
time.sleep(60)
"""


def ends(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("started_by", ["main", "thread"])
def test_a_process_ends_with_the_one_that_started_it_and_not_with_a_thread_of_it(started_by: str) -> None:
    command = [sys.executable, "-c", _PARENT, _CHILD, started_by]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not ends(child, 1.0)
    parent.kill()
    parent.wait()
    assert ends(child, 5.0)
    parent.stdout.close()


def test_a_process_whose_parent_is_gone_before_it_looks_ends_at_once() -> None:
    command = [sys.executable, "-c", _CHILD, str(os.getppid())]
    done = subprocess.run(command, check=False, timeout=20, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGTERM


# -- Ctrl-C where Python or a library would lose it --------------------------------------------------------------------

IN_A_DESTRUCTOR = """
import os, signal, sys, time
from align.runtime.signals import no_interrupt_lost

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def main():
    try:
        Slow()
        time.sleep(20)
        print("lost")
    except KeyboardInterrupt:
        print("heard")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
if "guarded" in sys.argv:
    with no_interrupt_lost():
        main()
"""


def test_ctrl_c_in_a_destructor_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR, "guarded"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_other_errors_of_destructors_are_still_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError("in a destructor")

    told = []
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: told.append(unraisable.exc_type)
    try:
        with no_interrupt_lost():
            Broken()
    finally:
        sys.unraisablehook = before
    assert told == [ZeroDivisionError]


def test_an_error_that_hides_ctrl_c_is_known() -> None:
    def hidden() -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                {}["clean-up"]  # what a library does on its way out
        except KeyError as error:
            raise ConfigError("defaults: broken") from error

    with pytest.raises(ConfigError) as caught:
        hidden()
    assert was_interrupted(caught.value)
    assert not was_interrupted(ConfigError("defaults: broken"))


def test_a_command_that_ctrl_c_broke_ends_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OmegaConf's clean-up failed where Ctrl-C left it half done: `align` ended with 2 and a line about `defaults`."""

    def broken(*given: object, **named: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    monkeypatch.setattr("hydra._internal.config_loader_impl.ConfigLoaderImpl.load_configuration", broken)
    assert main(["plan", "pipeline=quickstart"]) == 130
    assert capsys.readouterr().err == ""
