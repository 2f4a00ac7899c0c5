"""The count of all faults that the tests have caused, in all of their processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NOT_REACHED = "no fault: a line or process that was not come to again"


@dataclass
class Tally:
    """What the whole session has survived."""

    survived: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    longest_at: str = ""

    def count(self, what: str, recovery: float = 0.0, at: str = "") -> None:
        self.survived[what] += 1
        self._took(recovery, at)

    def as_json(self) -> dict[str, Any]:
        return {
            "survived": dict(self.survived),
            "longest": self.longest,
            "longest_at": self.longest_at,
        }

    def add(self, other: dict[str, Any]) -> None:
        """Add the tally of another process, as `as_json` has it."""
        self.survived.update(other["survived"])
        self._took(other["longest"], other["longest_at"])

    def _took(self, recovery: float, at: str) -> None:
        if recovery > self.longest:
            self.longest, self.longest_at = recovery, at

    def lines(self) -> list[str]:
        """What is to be said of it in the end."""
        kills = sum(times for what, times in self.survived.items() if "KILL" in what)
        survived = self.survived.total() - self.survived[NOT_REACHED]
        return [
            *(f"{times:5} {what}" for what, times in sorted(self.survived.items())),
            f"{survived} faults survived, {kills} of them SIGKILL",
            f"longest recovery {self.longest:.2f} s ({self.longest_at})",
        ]


TALLY = Tally()
