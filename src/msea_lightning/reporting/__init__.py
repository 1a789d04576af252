"""Tables, statistics and charts from run folders; :func:`write_report` is the one entrance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.reporting.folders import ReportError as ReportError
    from msea_lightning.reporting.report import Report as Report
    from msea_lightning.reporting.report import write_report as write_report

__all__ = [
    "Report",
    "ReportError",
    "write_report",
]

__getattr__ = lazy(
    __name__,
    {
        "Report": "report",
        "ReportError": "folders",
        "write_report": "report",
    },
)
