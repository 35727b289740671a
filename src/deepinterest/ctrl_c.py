"""Ctrl-C ends a program with a sentence and exit code 130, whatever it is doing.

Libraries that are interrupted while they are imported show their own traceback, or none and go on. So the process ends
at once until a run begins; from then on what it holds is cleaned up first. Imported before anything slow.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

CODE = 128 + signal.SIGINT


def quit_at_once() -> None:
    """End the process at Ctrl-C, with nothing to clean up. What was started to ignore Ctrl-C goes on ignoring it."""
    _replace(signal.default_int_handler, _quit)


def clean_up_first() -> None:
    """Raise `errors.Interrupted` at Ctrl-C, from where the main thread is: once there are files and processes."""
    _replace(_quit, _raise)


def _replace(before: Any, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is before:
        signal.signal(signal.SIGINT, handler)


def _quit(number: int, frame: Any) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one speaks
        os.write(2, b"\nCtrl-C stopped the program before it began.\n")
    os._exit(CODE)


def _raise(number: int, frame: Any) -> None:
    from deepinterest.errors import Interrupted

    raise Interrupted("Ctrl-C stopped the run.", number)
