"""Runs a script under torchrun, and kills its own process as told: `mortal.py DEATHS SCRIPT ARGUMENTS`.

DEATHS is a JSON list, one entry per start of the job: null, or {"rank": 1, "step": 3, "later_s": 0.01} (a while after the
optimizer's third step, wherever the process is then), or {"rank": 0, "save": 2} (in the second save, before its metadata).
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from torch.optim.optimizer import register_optimizer_step_post_hook


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(death: dict[str, Any] | None) -> None:
    if death is None or death["rank"] != int(os.environ["RANK"]):
        return
    count = 0

    def after_step(*_: object) -> None:
        nonlocal count
        count += 1
        if count == death["step"]:
            threading.Timer(death["later_s"], die).start()

    def finish(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == death["save"]:
            die()
        original(*args, **kwargs)

    if "step" in death:
        register_optimizer_step_post_hook(after_step)
    else:
        original = FileSystemWriter.finish
        FileSystemWriter.finish = finish  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    deaths = json.loads(sys.argv[1])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    arm(deaths[attempt] if attempt < len(deaths) else None)
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
