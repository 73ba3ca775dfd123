"""Profilers for the Trainer."""

import contextlib
import logging
import math
import time
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

log = logging.getLogger(__name__)


class NoProfiler(PassThroughProfiler):
    """Measures nothing and costs nothing. Lightning's PassThroughProfiler makes twenty generators in every step."""

    _no_op = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._no_op


class TopProfiler(SimpleProfiler):
    """Logs at the end of the training which actions took the most time.

    Args:
        max_rows: number of actions in the table.
    """

    def __init__(self, max_rows: int = 15) -> None:
        super().__init__()
        self.max_rows = max_rows

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        self.stage = stage

    def describe(self) -> None:
        if self.stage != "fit":
            return
        total = time.perf_counter() - self.start_time
        rows = [(math.fsum(durations), len(durations), name) for name, durations in self.recorded_durations.items()]
        lines = [f"{'share':>7} {'seconds':>9} {'calls':>8}  action (an action may contain others)"]
        for seconds, calls, name in sorted(rows, reverse=True)[: self.max_rows]:
            lines.append(f"{100 * seconds / total:5.1f} % {seconds:9.3f} {calls:8d}  {name}")
        log.info("\n%s\n", "\n".join(lines))
