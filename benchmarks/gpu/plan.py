"""How the steps of the check are run, and how they end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Say = Callable[[str], None]

NO_TIME = "no time was left"


class StepError(Exception):
    """A step found something wrong, and these facts on the way."""

    def __init__(self, reason: str, facts: Facts | None = None) -> None:
        super().__init__(reason)
        self.facts = facts or {}


class SkipStepError(Exception):
    """A step lacks something; the message says what, and the cure."""


@dataclass(frozen=True)
class Plan:
    """How a step is run."""

    dry_run: bool = False
    full: bool = False
    #: What the step may take from now on: it ends by itself before it is stopped.
    seconds: float = 1e9
    #: Where facts go that are worth having if the step does not live to return them.
    kept: Path | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    def left(self) -> float:
        """How many of the seconds are left."""
        return self.start + self.seconds - time.monotonic()

    def keep(self, facts: Facts) -> None:
        """Save what was found so far."""
        if self.kept is not None:
            self.kept.write_text(json.dumps(facts))
