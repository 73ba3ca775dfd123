"""Profilers for the Trainer."""

import contextlib
import logging
import math
import time
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

log = logging.getLogger(__name__)


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at no cost. Lightning's own way of measuring nothing makes twenty generators in every step."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


class TopProfiler(SimpleProfiler):
    """Says at the end of the training where its time went, the longest first.

    Args:
        most: rows of the table.
    """

    def __init__(self, most: int = 15) -> None:
        super().__init__()
        self.most = most

    def describe(self) -> None:
        if self._stage != "fit":
            return
        total = time.perf_counter() - self.start_time
        rows = [(math.fsum(durations), len(durations), name) for name, durations in self.recorded_durations.items()]
        lines = [f"{'share':>7} {'seconds':>9} {'calls':>8}  where (one thing may be part of another)"]
        for seconds, calls, name in sorted(rows, reverse=True)[: self.most]:
            lines.append(f"{100 * seconds / total:5.1f} % {seconds:9.3f} {calls:8d}  {name}")
        log.info("\n%s\n", "\n".join(lines))
