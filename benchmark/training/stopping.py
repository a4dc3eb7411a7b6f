"""Requests to stop: SIGTERM, and the SIGUSR1 that a cluster sends some time before a job's time is up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process has been asked to stop; by: the signal's name, or None."""

    def __init__(self) -> None:
        self.by: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.by = signal.Signals(number).name


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn the signals into a request that the work looks at between two steps, instead of an end in the middle of one.

    Outside the main thread, where Python takes no signals, nobody can ask.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # one that came earlier comes now (benchmark/launch.py)
    try:
        yield request
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
