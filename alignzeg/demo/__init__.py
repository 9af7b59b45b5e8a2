"""The demo: the baseline and AlignZeg trained alike on zeroshapes, compared in a report.

Everything it makes lies in one folder. What is there and still valid is used again, so a demo that
was cut off goes on where it stopped.
"""

from alignzeg.demo.plan import Plan
from alignzeg.demo.run import run_demo
from alignzeg.demo.training import DemoError

__all__ = ["DemoError", "Plan", "run_demo"]
