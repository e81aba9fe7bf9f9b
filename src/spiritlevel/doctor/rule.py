"""A rule: one function from what is known of a model to findings, with its id and its reasons.

The function's docstring is what `spiritlevel rule ID` and docs/rules/ say of it: the first line
tells what is wrong, the rest why it matters and when the rule keeps silent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from spiritlevel.doctor.finding import Finding, Severity

if TYPE_CHECKING:
    from spiritlevel.doctor.case import Case

__all__ = ["RULES", "Need", "Rule", "rule"]

Need = Literal["data", "targets", "probe", "reference", "example"]
Judge = Callable[[Any, "Case"], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    id: str
    name: str
    """In words-with-hyphens."""
    severity: Severity
    """The gravest that it gives."""
    needs: tuple[Need, ...]
    """What must be known beside the model; without it the rule is not asked."""
    threads: tuple[str, ...]
    """Where people met it: repository#number, or an address."""
    judge: Judge

    @property
    def summary(self) -> str:
        return inspect.cleandoc(self.judge.__doc__ or "").partition("\n")[0]

    @property
    def why(self) -> str:
        return inspect.cleandoc(self.judge.__doc__ or "").partition("\n")[2].strip()

    def found(
        self,
        module: str,
        message: str,
        *,
        fix: str,
        severity: Severity | None = None,
        **evidence: Any,
    ) -> Finding:
        return Finding(self.id, severity or self.severity, module, message, evidence, fix)

    def __call__(self, case: Case) -> Iterator[Finding]:
        return self.judge(self, case)


RULES: dict[str, Rule] = {}
"""By id, in the order of the ids."""


def rule(
    id: str,
    name: str,
    severity: Severity,
    *,
    needs: tuple[Need, ...] = (),
    threads: tuple[str, ...] = (),
) -> Callable[[Judge], Rule]:
    """Enter `judge(rule, case)` under `id`."""

    def enter(judge: Judge) -> Rule:
        RULES[id] = entered = Rule(id, name, severity, needs, threads, judge)
        return entered

    return enter
