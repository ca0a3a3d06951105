"""What `rayline bench gpu` finds out, as records that go through a pipe and into JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What the device was measured to do at most: a copy, its bytes read and written; a large product of the dtype."""

    copy_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and how far it was off or why it does not."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value. fraction: of what the device's limits allow, or of what `of` names; None where neither is."""

    name: str
    value: float
    unit: str
    fraction: float | None = None
    of: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A part that ended early, or one thing in it that could not be had; the rest of it counts."""

    part: str
    error: str


Row = DeviceLimits | Check | Figure | Failure


@dataclass(slots=True)
class GpuReport:
    """All rows, in the order they came."""

    device: str = ""
    versions: str = ""
    limits: DeviceLimits | None = None
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    took_s: float = 0.0

    def take(self, row: Row) -> None:
        match row:
            case DeviceLimits():
                self.limits = row
            case Check():
                self.checks.append(row)
            case Figure():
                self.figures.append(row)
            case Failure():
                self.failures.append(row)

    @property
    def ok(self) -> bool:
        """Whether every part ran to its end and everything that must hold holds."""
        return not self.failures and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok} | asdict(self)


def line(row: Row) -> str:
    """A row for people."""
    match row:
        case DeviceLimits():
            copy, rate = row.copy_bytes_per_s / 1e12, row.flops_per_s / 1e12
            return f"limits      copy {copy:.3f} TB/s, products {rate:.3f} TFLOP/s"
        case Check():
            return f"{'holds' if row.ok else 'BROKEN'}       {row.name}" + (f": {row.detail}" if row.detail else "")
        case Figure():
            share = "" if row.fraction is None else f"  {row.fraction:.1%} of {row.of}"
            return f"measured    {row.name}: {row.value:,.4g} {row.unit}{share}"
        case Failure():
            return f"FAILED      {row.part}: {row.error}"
