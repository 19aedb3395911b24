"""What all entries of the catalog share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from config.errors import NightfleetError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class BadCatalog(NightfleetError):
    """A catalog file is missing, unreadable, or says something impossible."""


class Model(BaseModel):
    """Base of all catalog types."""

    model_config = ConfigDict(frozen=True, extra="forbid")
