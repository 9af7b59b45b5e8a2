"""The comparison of runs as one self-contained HTML file."""

from alignzeg.report.page import About, write_report
from alignzeg.report.runs import RunResult, Sample, read_run
from alignzeg.report.samples import choose_samples, choose_worst

__all__ = [
    "About",
    "RunResult",
    "Sample",
    "choose_samples",
    "choose_worst",
    "read_run",
    "write_report",
]
