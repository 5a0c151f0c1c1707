"""Plan: what the solver decided, as versioned JSON. All that codegen needs, and all that people read.

A plan speaks of nodes by name and of placements in the notation of `Placement`. It is bound to one program (by
fingerprint) and one mesh; on load its form is validated, and `Plan.require` names what differs if it is not the program,
or the mesh, at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from autopar.bytes import human
from autopar.errors import PlanError
from autopar.ir.consistent import contradictions
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints
from autopar.ir.document import Document
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ir.precision import Precision, said
from autopar.ir.program import Program
from autopar.ir.shown import Shown

if TYPE_CHECKING:
    import networkx

VERSION = 1


def placement_of(value: object) -> Placement:
    """From text, or itself; raises ValueError."""
    if isinstance(value, Placement):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no placement, such as 'S(0), R'")
    return Placement.parse(value)


PlacementText = Annotated[
    Placement,
    BeforeValidator(placement_of),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "description": "One state per mesh axis, as in 'S(0), R'."}),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class PlannedTensor(_Part):
    """Global shape and dtype of an input, parameter or buffer, and where it rests."""

    shape: tuple[int, ...]
    dtype: str
    placement: PlacementText


class PlannedUnit(_Part):
    """`factors`: per mesh axis the factor that is cut, null for none, "~" where partial sums pass through.

    For people: `op` that it is called after, `path` of the module of that, `reads`: the tensors that it reads.
    """

    kind: str
    nodes: tuple[str, ...]
    factors: tuple[str | None, ...]
    roles: tuple[str | None, ...]
    path: str = ""
    op: str = ""
    reads: tuple[str, ...] = ()


class PlannedConversion(_Part):
    tensor: str
    before: PlacementText
    after: PlacementText


class KeptTensor(_Part):
    tensor: str
    placement: PlacementText


class PlannedClass(_Part):
    """What `calls` calls in a row keep for backward and make again."""

    calls: int
    kept: tuple[KeptTensor, ...]
    kept_internals: tuple[str, ...]
    redone: tuple[str, ...]
    reconverted: tuple[PlannedConversion, ...]


class DiscoveredRule(_Part):
    """The row that was found for a node whose op has none; `reason` why nothing was found, and the op is kept whole."""

    op: str
    row: str
    reason: str = ""


class PlannedRegion(_Part):
    """`discovered`: by node, the rows that nobody wrote."""

    units: dict[str, PlannedUnit]
    discovered: dict[str, DiscoveredRule] = Field(default_factory=dict)
    converted: tuple[PlannedConversion, ...]
    classes: tuple[PlannedClass, ...]


class PlannedCollective(_Part):
    """How often a collective runs on an axis in one forward and backward, which is one micro-batch, and the bytes of it (as
    `autopar.ops.flops.Collective` counts)."""

    kind: str
    axis: str
    phase: Literal["forward", "backward"]
    count: int
    bytes: int


class Figures(_Part):
    """Predicted per device: FLOPs and collectives of one forward and backward; `time_s` splits the step time ("overlapped",
    below zero, is what runs beside the rest). `estimated_peak_bytes` is what the solver counted at its worst point
    `estimated_peak_where`, from above, and `memory_bytes` splits that."""

    forward_flops: int
    backward_flops: int
    redone_flops: int
    collectives: tuple[PlannedCollective, ...]
    memory_bytes: dict[str, float]
    time_s: dict[str, float]
    estimated_peak_bytes: float
    estimated_peak_where: str


class TriedSetting(_Part):
    """A mesh and a number of micro-batches that a search looked at, and what came of it.

    `lower_bound_s`: no plan there takes less. `outcome`: "slower" has a plan that is not the best; "cannot be faster" is known
    from the bound; "not tried" if time was over, or nothing was found in time. `reason` says more, for people.
    """

    mesh: MeshSpec
    micro_batches: int = 1
    lower_bound_s: float | None = None
    step_time_s: float | None = None
    peak_bytes: float | None = None
    outcome: Literal["chosen", "slower", "cannot be faster", "does not fit", "impossible", "not tried"]
    reason: str = ""


class OtherSize(_Part):
    """What was predicted for example inputs of other `sizes` ("batch", "seq") with parameters resting as they do here.

    No times and bytes where there is no such plan; `reason` says why.
    """

    sizes: dict[str, int]
    step_time_s: float | None = None
    peak_bytes: float | None = None
    reason: str = ""


class Origin(_Part):
    """What the command line was told, so that other commands can build the model and its example inputs again.

    `model` and `hardware` as they were named: paths are relative to the folder that `autopar plan` ran in. `versions`: of
    autopar and of the packages that decide what the model's graph is.
    """

    model: str
    hardware: str
    batch: int | None = None
    seq: int | None = None
    dtype: str | None = None
    global_batch: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Plan(Document, Shown):
    """A complete plan. Times in seconds, bytes per device. The program is one of `micro_batches` of a training step.
    `bucket_bytes`, by mesh axis: gradients that are smaller are reduced together, up to about so many bytes. `origin` is there
    if the plan was made from the command line."""

    WHAT: ClassVar[str] = "plan"
    FORMAT: ClassVar[str] = "autopar-plan"
    VERSION: ClassVar[int] = VERSION
    AGAIN: ClassVar[str] = "make it again with `autopar plan`"

    format: Literal["autopar-plan"] = "autopar-plan"
    version: int = VERSION
    model: str
    origin: Origin | None = None
    fingerprint: str
    mesh: MeshSpec
    hardware: str
    cost_model: int
    optimizer: str
    micro_batches: int = 1
    budget_bytes: int | None
    status: str
    step_time_s: float
    lower_bound_s: float
    gap: float
    peak_bytes: float
    peak_where: str
    notes: tuple[str, ...] = ()
    tried: tuple[TriedSetting, ...] = ()
    other_sizes: tuple[OtherSize, ...] = ()
    bucket_bytes: dict[str, int] = Field(default_factory=dict)
    constraints: Constraints = NO_CONSTRAINTS
    precision: Precision | None = None
    figures: Figures
    inputs: dict[str, PlannedTensor]
    state: dict[str, PlannedTensor]
    boundaries: dict[str, PlacementText]
    regions: dict[str, PlannedRegion]

    @property
    def overlap(self) -> bool:
        """Whether its times count on communication beside the computation."""
        return "overlapped" in self.figures.time_s

    def table(self, module: str | None = None) -> list[dict[str, Any]]:
        """A row for each unit, as `pandas.DataFrame(plan.table())` takes them; of modules that match a glob, if one is given.

        Columns: layer_type, calls, module, unit, op, kind, one for each mesh axis (what is cut there), converted, and how many
        calls keep its results, keep what it saves inside, and run it again. Raises InputError if nothing matches.
        """
        from autopar.ir.plan_table import table

        return table(self, module)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Units and what they read (see `autopar.ir.plan_table.graph`)."""
        from autopar.ir.plan_table import graph

        return graph(self)

    def __repr__(self) -> str:
        """In short; `rich.print(plan)` shows its tables."""
        return f"<Plan of {self.model} on {self.mesh}: {self.step_time_s:.3g} s per step, peak {human(self.peak_bytes)}>"

    __str__ = __repr__

    def require_consistent(self, where: str = "the plan") -> None:
        """Raise PlanError, naming the first field that contradicts others, or that no plan can say."""
        for field, reason in contradictions(self):
            raise PlanError(f"{where}: field {field}: {reason}: {self.AGAIN}")

    def require(self, program: Program, mesh: MeshSpec, *, dtypes: bool = True) -> None:
        """Raise PlanError, naming the difference, unless the plan is for this program on this mesh and agrees with itself.

        Without `dtypes` a program in another precision will do. What it decides is judged by `codegen.accept`.
        """
        if self.mesh != mesh:
            raise PlanError(
                f"the plan is for mesh {self.mesh} ({', '.join(self.mesh.names)}), "
                f"this one is {mesh} ({', '.join(mesh.names)}): plan again for it, "
                "or build the DeviceMesh with those sizes and mesh_dim_names"
            )
        if self.precision != program.precision:
            raise PlanError(
                f"the plan was made for {said(self.precision)}, the model is captured in {said(program.precision)}: give the "
                "same precision= (and the same torch.autocast around it) as for the plan, or plan again"
            )
        if self.fingerprint != program.fingerprint:
            raise PlanError(
                f"the plan was made for another program: {self.difference(program)}. Plan again for this model and batch"
            )
        if (differs := self.other_tensors(program, dtypes=dtypes)) is not None:
            raise PlanError(f"the plan was edited: {differs}. {self.AGAIN.capitalize()}")
        self.require_consistent()

    def difference(self, program: Program) -> str:
        """The first difference from a program, in words."""
        if self.precision != program.precision:
            return f"the plan is for {said(self.precision)}, the program is in {said(program.precision)}"
        found = self.other_tensors(program)
        return found or "the operations of its graph differ (another version of the model's code or of its library?)"

    def other_tensors(self, program: Program, *, dtypes: bool = True) -> str | None:
        """The first input, parameter, buffer, boundary or region of which plan and program do not say the same."""
        inputs = {name: program.values[name] for name in program.inputs if name}
        state = {name: s.spec for name, s in program.state.items()}
        for what, planned, actual in (("input", self.inputs, inputs), ("state", self.state, state)):
            if missing := [n for n in planned if n not in actual]:
                return f"{what} {missing[0]} of the plan is not in the model {program.name}"
            if added := [n for n in actual if n not in planned]:
                return f"{what} {added[0]} of the model {program.name} is not in the plan"
            for name, tensor in planned.items():
                there = (tuple(actual[name].shape), str(actual[name].dtype).removeprefix("torch."))
                if tensor.shape != there[0] or (dtypes and tensor.dtype != there[1]):
                    here = f"{tensor.dtype}{list(tensor.shape)}"
                    part = f" (the plan is for one of {self.micro_batches} micro-batches)" if self.micro_batches > 1 else ""
                    return f"{what} {name} is {here} in the plan{part} and {there[1]}{list(there[0])} in the model"
        for what, named, known in (("region", self.regions, program.regions), ("boundary", self.boundaries, program.values)):
            if missing := [n for n in known if n not in named]:
                return f"the model has a {what} {missing[0]} that the plan does not know"
            if added := [n for n in named if n not in known]:
                return f"the plan has a {what} {added[0]} that the model does not know"
        return None
