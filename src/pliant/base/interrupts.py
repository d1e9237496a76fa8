"""Ctrl-C, and the SIGTERM of a batch system, in a program of ours: it ends at once and says so, but where something has to be
put in order first.

Python's own answer to Ctrl-C, an exception from wherever the program is, is a traceback while it imports; some libraries print
it and go on. To SIGTERM it has none: files would stay half written, and a terminal without its cursor.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

STATUS = 130  # as shells say of a program that Ctrl-C ended


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end, where something has to be put in order first."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = _status(signum)


def status_of(error: BaseException) -> int:
    """What a program ends with that this KeyboardInterrupt stopped: 130, or 143 by SIGTERM."""
    return error.status if isinstance(error, Stopped) else STATUS


def _status(signum: int) -> int:
    return 128 + signum  # as shells say of it


def end_at_once(signum: int, frame: object) -> None:
    os.write(2, b"\npliant: stopped\n")
    os._exit(_status(signum))


def raise_stopped(signum: int, frame: object) -> None:
    raise Stopped(signum)


_PYTHONS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def ends_at_once() -> None:
    """From here on these signals end the program, but for those that it was started to ignore."""
    for number, answer in _PYTHONS.items():
        if signal.getsignal(number) is answer:
            signal.signal(number, end_at_once)


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, they raise `Stopped`."""
    answered = [number for number in _PYTHONS if signal.getsignal(number) is end_at_once]
    for number in answered:
        signal.signal(number, raise_stopped)
    try:
        yield
    finally:
        for number in answered:
            signal.signal(number, end_at_once)
