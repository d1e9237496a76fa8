"""Ctrl-C in a program of ours: it ends at once and says so, but where something has to be put in order first.

Python's own answer, an exception from wherever the program is, is a traceback while it imports; some libraries print it and
go on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

STATUS = 130  # as shells say of a program that Ctrl-C ended


def end_at_once(signum: int, frame: object) -> None:
    os.write(2, b"\npliant: stopped\n")
    os._exit(STATUS)


def ends_at_once() -> None:
    """From here on Ctrl-C ends the program, unless it was started so that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, as Python has it."""
    if signal.getsignal(signal.SIGINT) is not end_at_once:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, end_at_once)
