"""docs/settings.md says of every setting what the code says."""

from __future__ import annotations

from tests.docs.settings_page import PAGE, page


def test_the_page_of_the_settings_is_as_the_code_is() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "docs/settings.md differs from config/settings.py. Run python -m tests.docs.settings_page"
    )
