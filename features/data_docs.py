"""GX's own data docs of the validated nights, as pages that open without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.calendar import Interval
from config.settings import Settings


def write_data_docs(settings: Settings, dataset: str, interval: Interval, results: Mapping[str, Any]) -> Path:
    """Write one page per suite; returns the folder's index."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    folder = settings.reports / "data_docs" / dataset
    pages = folder / str(interval)
    pages.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
        (pages / f"{name.replace(' ', '_')}.html").write_text(page, encoding="utf-8")
    return pages
