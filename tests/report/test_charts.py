"""Charts: ticks, points and thinned curves."""

from __future__ import annotations

import numpy as np
import pytest

from alignzeg.report.charts import Series, line_chart
from alignzeg.report.sections import thinned


def test_chart_places_points_on_the_axes() -> None:
    svg = line_chart([Series("a", "run0", [(0, 0), (10, 100)])], "t", y_range=(0, 100))
    assert 'points="40.0,214.0 448.0,12.0"' in svg
    assert line_chart([Series("a", "run0", [])], "t") == ""


def test_thinning_keeps_the_mean() -> None:
    points = [(i, float(i)) for i in range(1000)]
    thin = thinned(points)
    assert len(thin) <= 120
    assert np.mean([y for _, y in thin[:-1]]) == pytest.approx(np.mean([x for x, _ in thin[:-1]]))
    assert thinned(points[:3]) == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]
