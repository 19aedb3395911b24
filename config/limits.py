"""What a source may send at most: one set for the installation, and what a single source says otherwise."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SourceLimits(BaseModel):
    """Caps on one read of a source; beyond one nothing is written.

    As a setting it holds for all sources. In a source's `limits` only the keys that stand there differ from the
    setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(16 * 2**30, ge=1, description="bytes of one delivery, unpacked; a page of HTTP counts as is")
    max_ratio: int = Field(
        200, ge=1, description="unpacked to packed bytes of what is compressed, judged beyond 16 MiB unpacked"
    )
    max_rows: int = Field(500_000_000, ge=1, description="rows of one delivery")
    max_pages: int = Field(10_000, ge=1, description="pages of one HTTP delivery")
    max_seconds: float = Field(3600.0, gt=0, description="seconds that reading one delivery may take in all")
    max_header_bytes: int = Field(2**20, ge=1, description="bytes of a CSV's header line")
    max_zip_members: int = Field(10_000, ge=1, description="members of a zip")
