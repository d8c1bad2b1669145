"""Ctrl-C, after which a run can go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .world import Group


@contextmanager
def interruptible(group: Group, whole: Callable[[], bool], save: Callable[[], None]) -> Iterator[None]:
    """On KeyboardInterrupt inside, `save`, if the last round is `whole`.

    SIGINT interrupts at once where it is, and elsewhere sets `group.interrupted`, so that the round on its
    way is completed first; a second one interrupts in any case. Where SIGINT is ignored, outside the main
    thread, and on ranks that torchrun started (see `joined`) nobody's handling of it is changed.
    """
    usual = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if callable(usual) and (whole() or group.interrupted):
            usual(number, frame)
        group.interrupted = True

    handles = callable(usual) and group.size == 1 and threading.current_thread() is threading.main_thread()
    if handles:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if whole():
            save()
        raise
    finally:
        if handles:
            signal.signal(signal.SIGINT, usual)
