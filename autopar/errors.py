"""What can go wrong for a user, as one small tree of exceptions.

Every message says what happened, where, and what to do next; the CLI prints it without a traceback and exits with 2.
Broken invariants of our own are assertions, never these.
"""

__all__ = [
    "AutoparError",
    "BackendError",
    "BudgetError",
    "CheckpointError",
    "ConstraintError",
    "HardwareError",
    "InputError",
    "MeshError",
    "PeerError",
    "PlanError",
    "RankError",
    "RuleError",
    "SolverError",
    "TraceError",
    "UnshardableError",
]


class AutoparError(Exception):
    """Base of all errors that a user of autopar can cause and mend."""


class InputError(AutoparError):
    """An argument, option or file is not of the form that is asked for."""


class ConstraintError(AutoparError):
    """A pin, a ban or another wish of the user is malformed, selects nothing, or leaves no plan."""


class TraceError(AutoparError):
    """The model could not be captured as one graph."""


class MeshError(AutoparError):
    """The mesh is malformed, or does not fit the processes or the plan."""


class HardwareError(AutoparError):
    """No such hardware description, or one that is malformed."""


class BackendError(AutoparError):
    """The backend that was asked for cannot compile here: a tool is missing, or it failed on a graph."""


class CheckpointError(AutoparError):
    """A checkpoint, or a folder of weights, is missing, damaged, or of another model."""


class UnshardableError(AutoparError):
    """No dim of any tensor can be cut over a mesh axis."""


class BudgetError(AutoparError):
    """No plan fits the byte budget.

    `smallest_bytes` is the smallest budget per device for which a plan exists, `binding` the tensors that need most of it
    as `(name, bytes)`, largest first; `remedies` what would help, as `(what, bytes that would then be enough)`, best first.
    """

    def __init__(
        self,
        message: str,
        *,
        smallest_bytes: int,
        binding: tuple[tuple[str, int], ...] = (),
        remedies: tuple[tuple[str, int], ...] = (),
    ) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes
        self.binding = binding
        self.remedies = remedies

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel between processes: rank 0 plans, and all ranks raise."""
        return _budget_error, (str(self), self.smallest_bytes, self.binding, self.remedies)


def _budget_error(
    message: str, smallest_bytes: int, binding: tuple[tuple[str, int], ...], remedies: tuple[tuple[str, int], ...]
) -> BudgetError:
    return BudgetError(message, smallest_bytes=smallest_bytes, binding=binding, remedies=remedies)


class RuleError(AutoparError, ValueError):
    """A row of the rule table is malformed, does not fit the shapes of a call, or is wrong.

    Of a wrong row the counterexample: `op`, the `shapes` of its operands, the sizes of the `mesh`, the `factors` that its
    axes cut, and the placements of `operands` and `results` as text.
    """

    def __init__(
        self,
        message: str,
        *,
        op: str = "",
        shapes: tuple[tuple[int, ...], ...] = (),
        mesh: tuple[int, ...] = (),
        factors: tuple[str | None, ...] = (),
        operands: tuple[str, ...] = (),
        results: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.op, self.shapes, self.mesh, self.factors = op, shapes, mesh, factors
        self.operands, self.results = operands, results


class RankError(AutoparError):
    """The processes of a job run different code, models, options or shapes, or one did not come in time."""


class PeerError(RankError):
    """Another process of the job has ended while it was needed. `ranks`: those that are gone."""

    def __init__(self, message: str, *, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class SolverError(AutoparError):
    """The ILP solver is missing, crashed, or found nothing within its time limit."""


class PlanError(AutoparError):
    """A plan file is damaged, of another version, or made for another program or mesh."""
