"""What the checks found, as text and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pliant.base.tables import Cells, Table

Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Result:
    """Of one check: what was expected and found where it failed, the reason where it does not apply."""

    family: str
    check: str
    specification: str
    outcome: Outcome
    expected: str | None = None
    found: str | None = None
    reason: str | None = None

    @property
    def says(self) -> str:
        """In one line; what is specified, where it holds."""
        if self.outcome == "failed":
            return f"expected {self.expected}; found {self.found}"
        return self.specification if self.reason is None else self.reason


@dataclass(frozen=True)
class Report(Table):
    """The results of all checks of one implementation. Prints as a table."""

    adapter: str
    results: Sequence[Result]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(each.outcome == "failed" for each in self.results)

    def to_dict(self) -> dict[str, Any]:
        return {"adapter": self.adapter, "passed": self.passed, "checks": self.records()}

    def records(self) -> list[dict[str, Any]]:
        """One per check."""
        return [asdict(each) for each in self.results]

    def table(self) -> tuple[Cells, Sequence[str]]:
        rows = [(each.outcome, each.check, each.says) for each in self.results]
        counts = Counter(each.outcome for each in self.results)
        total = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        return [("outcome", "check", ""), *rows], [f"{self.adapter}: {len(self.results)} checks, {total}"]
