"""What the figures rest on: the hardware's data with their sources, versions, what the user wanted, and what the plan notes."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.bytes import human
from autopar.hardware import Hardware
from autopar.ir.plan import Plan
from autopar.render import human_flops
from autopar.report.evidence import Evidence
from autopar.report.html import Content, Markup, absent, panel, table, tag
from autopar.seconds import human_s

STANDING = (
    ("FLOPs, collectives and their bytes", "exact for the plan's graphs, counted on them"),
    ("peak memory", "exact for the plan's graphs; allocator fragmentation, buffers of nccl and the CUDA context come on top"),
    ("seconds", "estimates from the figures below: a roofline for ops, latency and bandwidth for links"),
    ("bound and gap", "proven by the solver, within its cost model and choice of strategies"),
)


def assumptions_panel(evidence: Evidence) -> Markup:
    plan = evidence.plan
    parts: list[Content] = [tag("h3", "How far each figure can be trusted"), table(["figure", "standing"], STANDING)]
    parts += [tag("h3", "Hardware"), hardware(plan, evidence.hardware), tag("h3", "This plan"), made(evidence)]
    if plan.notes:
        parts += [tag("h3", "Notes of the search"), tag("ul", (tag("li", note) for note in plan.notes))]
    return panel("assumptions", "Assumptions", *parts)


def hardware(plan: Plan, found: Hardware | None) -> Markup:
    if found is None:
        return absent(
            f"The hardware file of {plan.hardware} is not here, so its figures are not shown.",
            "Name it:",
            "autopar report PLAN --hardware FILE.json -o report.html",
        )
    rows = [[figure, value, source] for figure, value, source in figures(plan, found)]
    return table(["figure", "value", "where it is from"], rows)


def figures(plan: Plan, found: Hardware) -> Iterator[tuple[str, str, str]]:
    sources = found.sources
    dtypes = [d for d in dict.fromkeys(t.dtype for t in plan.state.values()) if d in found.peak_flops_per_s]
    peaks = [f"{dtype} {human_flops(found.peak_flops_per_s[dtype])}/s" for dtype in dtypes]
    yield "peak arithmetic", ", ".join(peaks), sources.get("peak_flops_per_s", "")
    yield "memory bandwidth", f"{found.peak_bytes_per_s / 1e9:g} GB/s", sources.get("peak_bytes_per_s", "")
    reached = ", ".join(f"{what} {share:.0%}" for what, share in found.efficiency.items())
    yield "reached of these", reached, sources.get("efficiency", "")
    yield "kernel launch", human_s(found.launch_s), sources.get("launch_s", "")
    yield "memory of a device", human(found.memory_bytes), sources.get("memory_bytes", "")
    yield "overlap of collectives", f"{found.overlap:.0%}", sources.get("overlap", "")
    for name, link in zip(plan.mesh.names, found.axis_links(plan.mesh), strict=True):
        key = next((key for key, known in found.links.items() if known is link), "")
        value = f"{link.name}: {link.bytes_per_s / 1e9:g} GB/s, {human_s(link.latency_s)} per round"
        yield (
            f"link of {name}",
            value,
            "; ".join(filter(None, (sources.get(f"links.{key}.{f}", "") for f in ("bytes_per_s", "latency_s")))),
        )


def made(evidence: Evidence) -> Markup:
    """How it was made, as far as it says so."""
    plan, origin = evidence.plan, evidence.plan.origin
    rows: list[list[Content]] = []
    if origin is not None:
        options = {"batch": origin.batch, "seq": origin.seq, "dtype": origin.dtype, "global batch": origin.global_batch}
        rows.append(["model", [origin.model, *(f", {name} {value}" for name, value in options.items() if value is not None)]])
        rows.append(["versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())])
    if evidence.version:
        rows.append(["this report", f"autopar {evidence.version}"])
    rows.append(["cost model", plan.cost_model])
    rows.append(["program", tag("code", plan.fingerprint[:16])])
    if plan.precision is not None:
        rows.append(["precision", str(plan.precision)])
    rows += [["wanted", line] for line in plan.constraints.lines()]
    rows.append(["overlap", "communication beside the computation is counted on" if plan.overlap else "everything is added up"])
    for name, region in plan.regions.items():
        for node, rule in region.discovered.items():
            found = f"kept whole: {rule.reason}" if rule.reason else rule.row
            rows.append([f"rule of {node}", f"found by trying {rule.op} in {name}: {found}"])
    return table(["", ""], rows)
