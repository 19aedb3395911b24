"""The page of the settings, made from the code: `python -m tests.docs.settings_page` writes docs/settings.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.limits import SourceLimits
from config.settings import PREFIX, ROOT, Channel, Settings

PAGE = ROOT / "docs" / "settings.md"
TEXT = """# Settings

Every field of `config/settings.py` is an environment variable, or a key of the profile (`config/profiles/`), in lower
case and without `{prefix}`. The environment wins over the profile. `NIGHTFLEET_PROFILE=postgres` uses Postgres
instead of SQLite, by libpq's own variables.

{settings}

## Channels

`notifications` is a list of channels, in the environment as YAML or JSON. `config/profiles/laptop.yaml` holds examples.

{channels}

## Source limits

`source_limits` holds for every source: `NIGHTFLEET_SOURCE_LIMITS='{{max_rows: 1000000}}'`. The same keys in the
`limits` of one source in the catalog go before. What exceeds one is refused with `SourceTooLarge`, and nothing is
written.

{source_limits}

## Secrets

Secrets come from the environment, or from files of mode 600 in `var/secrets/`: a secret `name` is the variable `NAME`
or the file `var/secrets/name`. They are never written to a profile.

This page is written by `python -m tests.docs.settings_page`, and a test holds it to the code.
"""


def page() -> str:
    """The whole page, as the code says it now."""
    return TEXT.format(
        prefix=PREFIX,
        settings=_table("setting", Settings, lambda name: f"`{PREFIX}{name.upper()}`"),
        channels=_table("key", Channel, lambda name: f"`{name}`"),
        source_limits=_table("key", SourceLimits, lambda name: f"`{name}`"),
    )


def _table(heading: str, model: type[BaseModel], named: Any) -> str:
    lines = [f"| {heading} | default | what it is |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no description. Say in one line what it is."
        lines.append(f"| {named(name)} | {_default(field)} | {field.description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    values = list(value) if isinstance(value, tuple) else [value]
    shown = [v.relative_to(ROOT).as_posix() if isinstance(v, Path) else v for v in values if v not in (None, "")]
    return ", ".join(f"`{str(v).lower() if isinstance(v, bool) else v}`" for v in shown) or "none"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
