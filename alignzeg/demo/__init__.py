"""The demo: the baseline and AlignZeg trained alike on one data set, compared in a report.

The data set is zeroshapes, or photographs. All else lies in one folder. What is there and still
valid is used again, so a comparison that was cut off goes on where it stopped.
"""

from alignzeg.demo.datasets import DataSet, Photographs, Scenes
from alignzeg.demo.plan import Plan
from alignzeg.demo.run import run_plan

__all__ = ["DataSet", "Photographs", "Plan", "Scenes", "run_plan"]
