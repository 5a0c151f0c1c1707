"""A process ends with the exit code that its script earned: gloo's threads have let go of tensors before the interpreter goes.

A thread of gloo drops a collective's tensors a moment after those who wait for it go on, and needs the interpreter's lock for
those that Python knows. If the script ends in that moment, the interpreter is gone, the thread is unwound inside a destructor,
and the process is aborted ("terminate called without an active exception") after all its work was done, also if it called
`destroy_process_group`; a launcher then takes the job for failed. (torch 2.11 to 2.13; pytorch/pytorch #179291 and #190489.)
"""

from __future__ import annotations

import atexit
import functools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

THREADS = "pt_gloo_runloop"
"""What torch calls the threads that run gloo's collectives."""
TASKS = Path("/proc/self/task")
PAUSE_S, QUIET, PATIENCE_S = 0.005, 3, 5.0
"""How often the threads are looked at, how often in a row they must be found asleep, and when they are left alone."""

logger = logging.getLogger("autopar")


@functools.cache
def settle_at_exit() -> None:
    """Once per process."""
    atexit.register(settle)


def settle(states: Callable[[], Iterator[str]] | None = None) -> bool:
    """Wait until gloo's threads sleep, however often that lets them have the interpreter's lock; False if they do not.

    `states` gives those threads' states as Linux writes them, "R" for one that runs. Elsewhere nothing can be known of threads,
    so that the pauses alone must do.
    """
    states, quiet, until = states or gloo_states, 0, time.monotonic() + PATIENCE_S
    while quiet < QUIET:
        if time.monotonic() > until:
            logger.warning("a collective is still under way while the process ends; was each one waited for?")
            return False
        time.sleep(PAUSE_S)
        quiet = 0 if any(state not in "SI" for state in states()) else quiet + 1
    return True


def gloo_states() -> Iterator[str]:
    """Of each thread that runs gloo's collectives, one letter."""
    for stat in TASKS.glob("*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        if name == THREADS:
            yield rest.split()[0]
