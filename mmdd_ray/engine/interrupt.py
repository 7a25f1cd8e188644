"""Ctrl-C leaves within seconds, whatever the process is doing.

Python raises ``KeyboardInterrupt`` in the main thread, and unwinding from it ends Ray. A long call into native code
would delay the exception, and a cluster that does not answer the unwinding. So a thread of its own hears of the signal
at once and ends the process when the time is up, or at the second Ctrl-C.
"""

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_S = 2.5
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
HOW_TO_GO_ON = "interrupted; run the same command again to resume"

_heard, _said = threading.Event(), threading.Event()
_kept: list[socket.socket] = []  # sockets of a process that leaves, so that the clock goes on after the block


def say_interrupted() -> None:
    """Prints once how to go on."""
    if not _said.is_set():
        _said.set()
        print(HOW_TO_GO_ON, file=sys.stderr, flush=True)


@contextmanager
def leaving_within(grace_s: float = GRACE_S) -> Iterator[None]:
    """Ends the process so long after a Ctrl-C in the block, if it is still there, with the status 130.

    For a process that ends with the block: the clock does not stop when the block does. In another thread than the
    main one, which hears of no signal, it does nothing.
    """
    _said.clear()
    _heard.clear()
    # `command &` in a script ignores Ctrl-C, which is then meant for others
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):
        yield
        return
    ours, of_signals = socket.socketpair()
    of_signals.setblocking(False)
    handler = signal.signal(signal.SIGINT, _interrupt)
    before = signal.set_wakeup_fd(of_signals.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, grace_s), daemon=True, name="ctrl-c").start()
    leaves = False
    try:
        yield
    except KeyboardInterrupt:
        leaves = _heard.is_set()  # somebody may have raised it without a signal
        raise
    finally:
        if leaves:
            _kept.append(of_signals)
            signal.signal(
                signal.SIGINT, lambda *_: None
            )  # the thread hears another; here it would be a traceback
            # before all hooks: those of Ray take seconds on a busy machine, and the thread cannot run beside them
            atexit.register(_leave)
        else:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGINT, handler)
            of_signals.close()  # which ends the thread


def _interrupt(*_: object) -> None:
    _heard.set()
    raise KeyboardInterrupt


def _watch(signals: socket.socket, grace_s: float) -> None:
    """Waits for a first Ctrl-C, then for a second one or the end of the time."""
    if not _hears_ctrl_c(signals):
        return
    signals.settimeout(grace_s)
    try:
        if not _hears_ctrl_c(signals):
            return
    except TimeoutError:
        pass
    _leave()


def _leave() -> None:
    say_interrupted()
    sys.stdout.flush()
    os._exit(EXIT_INTERRUPTED)


def _hears_ctrl_c(signals: socket.socket) -> bool:
    """Waits for Ctrl-C; False where the block ends without one."""
    while heard := signals.recv(64):
        if signal.SIGINT in heard:
            return True
    return False
