"""What a finding is, and a diagnosis: the findings, and the checks that were not made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .._base.notebook import note, table


@dataclass(frozen=True)
class Finding:
    """One thing that will go wrong: ``check`` its name, ``message`` what and how much, ``fix`` what to do.

    severity: ``"error"`` (samples are wrong) or ``"warning"`` (they are worse than they could be).
    evidence: the number that was measured on the model, in the unit that the message gives.
    """

    check: str
    severity: str
    evidence: float
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.message}\n    fix: {self.fix}"


class Diagnosis(list[Finding]):
    """The findings. not_checked: {check: why it could not be made}; what does not concern a model is not
    among them."""

    def __init__(self, findings: Iterable[Finding], not_checked: Mapping[str, str]) -> None:
        super().__init__(findings)
        self.not_checked = dict(not_checked)

    def __str__(self) -> str:
        lines = [str(finding) for finding in self] or ["nothing found"]
        return "\n".join([*lines, *(f"not checked: {k}: {v}" for k, v in self.not_checked.items())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(f.severity, f.check, f.message, f.fix) for f in self] or [
            ("", "nothing found", "", "")
        ]
        left = range(4)
        missing = "".join(note(f"not checked: {k}: {v}") for k, v in self.not_checked.items())
        return table(("severity", "check", "what", "fix"), rows, left) + missing
