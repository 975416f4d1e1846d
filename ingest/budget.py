"""When a run is going wrong: too many broken series, or none to take."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.errors import BROKEN, FailureBudgetError, IngestError
from ingest.scan import ScanResult
from ingest.series import Series

PROBATION_SERIES = 20
"""With fewer series than this the share of broken ones says little: no budget is applied."""


class Budget:
    """Counts broken series and stops the run when they are too large a share of all."""

    def __init__(self, series: Sequence[Series], max_failures: float) -> None:
        self.total = len(series)
        self.max_failures = max_failures
        self.broken = 0
        for one in series:
            self.count(one.reason)

    def count(self, reason: str) -> None:
        """Add one series; only a ``BROKEN`` reason counts.

        Raises:
            FailureBudgetError: the budget is spent.
        """
        self.broken += reason in BROKEN
        if self.total >= PROBATION_SERIES and self.broken > self.max_failures * self.total:
            raise FailureBudgetError(
                f"{self.broken} of {self.total} series are broken, more than --max-failures "
                f"{self.max_failures:g} allows; see the refused files above, repair the archive or "
                "raise --max-failures"
            )


def nothing_accepted(found: ScanResult) -> IngestError:
    """The error for an archive that holds no usable CT volume."""
    return IngestError(
        f"no CT volume to build: {found.n_files} files found, none accepted; "
        "`ingest scan` lists each with its reason"
    )
