"""Plans for many settings at once, in several processes; what is finished is in a file, and is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autopar.errors import InputError
from autopar.ir.document import write_atomically
from autopar.planning.crew import Lost, hand_out
from autopar.planning.ledger import Ledger
from autopar.planning.runs import Run, Setting

if TYPE_CHECKING:
    from autopar.planning.bench import Finished

KILLED = "allow it more memory, or fewer --jobs"
ENDED = "what it printed may say why; the same command plans it again"
"""What to do about a process that is lost."""


@dataclass(kw_only=True)
class Sweep:
    """`make` makes what plans a setting, in each process; `plans` is a folder for the plans, `tell` is told how far it is, and
    `note` what the user should know.

    Lines are written by this process only: what a process found is in the file before the next is asked for.
    """

    settings: Sequence[Setting]
    ledger: Ledger
    make: Callable[[], Callable[[Setting], Finished]]
    jobs: int
    plans: Path | None = None
    tell: Callable[[str], None] = lambda stage: None
    note: Callable[[str], None] = lambda text: None
    unanswered: dict[str, Run] = field(default_factory=dict)
    """By key: settings whose process ended, or whose model cannot be built. They have no line in the file."""

    _busy: list[Setting] = field(default_factory=list)
    _noticed: set[str] = field(default_factory=set)

    @property
    def missing(self) -> list[Setting]:
        return [setting for setting in self.settings if setting.key not in self.ledger.runs]

    @property
    def runs(self) -> list[Run]:
        """Of all settings that something is known of, in their order."""
        known = self.unanswered | self.ledger.runs
        return [known[setting.key] for setting in self.settings if setting.key in known]

    def run(self) -> None:
        """Plan what is missing. Raises InputError if the file cannot be written, or nothing can be planned at all."""
        if self.plans is not None:
            self.check_plans(self.plans)
        for setting, found in hand_out(
            self.missing, self.make, jobs=self.jobs, group=lambda setting: setting.traced, began=self.began
        ):
            self._busy.remove(setting)
            if isinstance(found, Lost):
                message = f"{found.reason}: {KILLED if found.killed else ENDED}"
                self.unanswered[setting.key] = Run(setting=setting, outcome="error", message=message)
            else:
                self.take(found)
            self.say()
        wrong = list(self.unanswered.values())
        if wrong and len(wrong) == len(self.settings):
            raise InputError(wrong[0].message)

    def take(self, found: Finished) -> None:
        for notice in found.notices:
            if notice not in self._noticed:
                self._noticed.add(notice)
                self.note(notice)
        run = found.run
        if not found.counts:
            self.unanswered[run.setting.key] = run
            return
        if self.plans is not None and found.plan is not None:
            run = run.model_copy(update={"plan": str(self.plans / run.setting.plan_file())})
            save(found.plan, Path(run.plan or ""))
        self.ledger.add(run)

    def check_plans(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}: give another folder with --plans") from error
        without = [run for run in self.runs if run.outcome == "fits" and (run.plan is None or not Path(run.plan).is_file())]
        if without:
            self.note(
                f"{len(without)} settings were finished before, and their plans are not there: take their lines out of "
                f"{self.ledger.path} to have them planned again"
            )

    def began(self, setting: Setting) -> None:
        self._busy.append(setting)
        self.say()

    def say(self) -> None:
        more = f" and {len(self._busy) - 1} more" if len(self._busy) > 1 else ""
        now = f", planning {self._busy[0]}{more}" if self._busy else ""
        self.tell(f"{len(self.runs)} of {len(self.settings)} settings{now}")


def save(text: str, path: Path) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: give another folder with --plans") from error
