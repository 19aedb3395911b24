"""The one typed configuration. Only this module reads the environment."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from config.errors import NightfleetError
from config.limits import SourceLimits

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "NIGHTFLEET_"
MLFLOW_LOGIN = "mlflow_password"  # name of a secret
CODE_FOLDERS = ("config", "lake", "features", "serving", "training", "monitoring", "plugins", "dags", "cli")


class BadSettings(NightfleetError):
    """A setting is unknown, missing or of the wrong type."""


Level = Literal["critical", "warning", "request"]


class Channel(BaseModel):
    """Where notifications go: a chat, a mailbox, another system."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$", max_length=60, description="a word of a-z, 0-9 and _, by which logs call it"
    )
    kind: Literal["slack", "email", "webhook"] = Field(description="slack, email or webhook: how messages are worded")
    url_secret: str = Field(
        description="name of the secret that holds the Apprise URL, for example slack://..., mailtos://..., jsons://..."
    )
    at_once: tuple[Level, ...] = Field(
        ("critical", "request"),
        description=(
            "what is sent when it happens: critical alarms, warnings (a failed run, a late night, any other alarm),"
            " requests that wait for an approval"
        ),
    )
    nightly_summary: bool = Field(
        True,
        validation_alias=AliasChoices("nightly_summary", "digest"),  # `digest`: its name in older profiles
        description="whether it takes the nightly summary",
    )


class Settings(BaseModel):
    """What differs between a laptop and a cluster; a stage never asks which one it is on.

    Each field is set, in falling priority, by an environment variable `NIGHTFLEET_<FIELD>`, by the profile
    `config/profiles/<profile>.yaml`, by its default here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = Field("laptop", description="name of a file in config/profiles")
    home: Path = Field(ROOT / "var", description="folder of all state")
    catalogs: tuple[Path, ...] = Field(
        (ROOT / "config",),
        min_length=1,
        description=(
            "catalog folders, each with datasets/ or models/ and what they need; relative ones start at the"
            " repository's root, separated by commas or colons in the environment"
        ),
    )
    catalog_dir: Path | None = Field(
        None, description="former name of a single catalog folder, whose sources start at the folder above it"
    )
    sql_dir: Path | None = Field(None, description="former name of the folder with the SQL of `catalog_dir`")
    sql_url: str = Field(
        "", description="SQLAlchemy URL of predictions, metrics, publications; SQLite below home by default"
    )
    mlflow_tracking_uri: str = Field(
        "", description="MLflow tracking server; written below home by `run` and `up` by default"
    )
    mlflow_public_url: str = Field(
        "", description="MLflow's address for a person's browser, where it differs from the tracking URI"
    )
    mlflow_user: str = Field(
        "admin", description="user that logs in to MLflow with the secret `mlflow_password`; without one nobody logs in"
    )
    feast_registry_url: str = Field("", description="SQLAlchemy URL of Feast's registry; SQLite below home by default")
    runner: Literal["auto", "docker", "process"] = Field(
        "auto",
        description=(
            "how training jobs are run: in containers, as processes, or in containers where a Docker engine and the"
            " image are there"
        ),
    )
    training_image: str = Field(
        "nightfleet-training", description="repository of the training image; its tag is the code's digest"
    )
    training_memory_gb: float | None = Field(
        None, gt=0, description="memory that trainings may take together; None: three quarters of the machine's"
    )
    training_gpus: int | None = Field(
        None, ge=0, description="GPUs that trainings may take together; None: as many as the NVIDIA driver shows"
    )
    duckdb_memory_gb: float = Field(4.0, gt=0, description="DuckDB's memory limit of one task; more spills to disk")
    duckdb_threads: int = Field(2, ge=1, description="DuckDB's threads of one task")
    source_limits: SourceLimits = Field(
        SourceLimits(),
        description="what one delivery of a source may hold at most; in the environment as YAML, see below",
    )
    preload: Literal["all", "none"] = Field(
        "all", description="whether the embedded executor imports the stages' libraries before it forks its workers"
    )
    notifications: tuple[Channel, ...] = Field(
        (), description="channels that are told of failures, late nights, alarms and requests; none: nobody is told"
    )
    public_url: str = Field(
        "",
        description=(
            "address of Airflow's UI as people reach it, for links in notifications; empty: Airflow's own"
            " `api.base_url`"
        ),
    )
    keep_superseded_days: int = Field(
        90,
        ge=1,
        description=(
            "how long rows and data files that a later publication replaced are kept; those that a kept prediction or a"
            " stored model was computed from stay"
        ),
    )
    keep_jobs_days: int = Field(60, ge=1, description="how long the folder of a training job is kept")
    keep_reports_days: int = Field(
        400, ge=1, description="how long drift and performance reports and data docs of a night are kept"
    )
    keep_logs_days: int = Field(60, ge=1, description="how long logs of tasks and components, and events, are kept")
    log_file_mb: int = Field(
        64,
        ge=1,
        description=(
            "how large `events.jsonl` grows before a new file is begun; a larger log of a component is renamed at the"
            " next start"
        ),
    )
    approvers: tuple[str, ...] = Field(
        (),
        description=(
            "who may approve promotions, move rollouts and roll back in Airflow's own forms: Airflow's user ids, comma"
            " separated in the environment, as `id:name` where the name that Airflow records differs from the id (FAB's"
            " ids are numbers); empty: Airflow's admins, who must be named here where its auth manager is not the"
            " simple one"
        ),
    )

    @field_validator("catalogs", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        if isinstance(value, str):
            listed = (
                _yaml(value, f"{PREFIX}CATALOGS")
                if value.lstrip().startswith("[")
                else re.split(f"[,{os.pathsep}]", value)
            )
            return tuple(str(part).strip() for part in listed if str(part).strip())
        return value

    @field_validator("catalogs")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        folders = tuple((ROOT / path.expanduser()).resolve() for path in value)
        if len(set(folders)) < len(folders):
            raise ValueError("names one folder twice; name each folder once")
        return folders

    @field_validator("source_limits", mode="before")
    @classmethod
    def _limits(cls, value: Any) -> Any:
        """The environment holds them as YAML, of which JSON is a part."""
        return _yaml(value, f"{PREFIX}SOURCE_LIMITS") or {} if isinstance(value, str) else value

    @field_validator("notifications", mode="before")
    @classmethod
    def _channels(cls, value: Any) -> Any:
        """The environment holds them as YAML, of which JSON is a part."""
        return _yaml(value, f"{PREFIX}NOTIFICATIONS") or () if isinstance(value, str) else value

    @field_validator("notifications")
    @classmethod
    def _one_name_each(cls, value: tuple[Channel, ...]) -> tuple[Channel, ...]:
        names = [channel.name for channel in value]
        if len(set(names)) < len(names):
            raise ValueError(f"two channels share a name: {', '.join(names)}")
        return value

    @field_validator("public_url")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("needs an address that begins with http:// or https://")
        return value.rstrip("/")

    @field_validator("approvers", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def approver_names(self) -> dict[str, str]:
        """By Airflow's user id: the name that Airflow records for that person."""
        parts = (entry.partition(":") for entry in self.approvers)
        return {identity: name or identity for identity, _, name in parts}

    @property
    def training_pool_gb(self) -> int:
        """Slots of the Airflow pool `training`: whole GB that trainings may take together."""
        physical_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return max(1, int(self.training_memory_gb or 0.75 * physical_gb))

    @property
    def training_pool_gpus(self) -> int:
        """GPUs that trainings may take together; what the pool `training_gpu` has slots for."""
        return (
            len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if self.training_gpus is None else self.training_gpus
        )

    @property
    def lake(self) -> Path:
        """Where the Delta tables lie."""
        return self.home / "lake"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the SQL projections and the publications index."""
        return self.sql_url or f"sqlite:///{self.home / 'nightfleet.db'}"

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of Feast's registry."""
        return self.feast_registry_url or f"sqlite:///{self.home / 'feast' / 'registry.db'}"

    @property
    def online_store(self) -> Path:
        """Feast's SQLite online store."""
        return self.home / "feast" / "online.db"

    @property
    def reports(self) -> Path:
        """Where HTML reports and GX data docs lie."""
        return self.home / "reports"

    @property
    def jobs(self) -> Path:
        """Where training jobs (JOB_DIR) lie."""
        return self.home / "jobs"

    @property
    def artifacts(self) -> Path:
        """Content-addressed model files: `<artifacts>/<model>/<digest>/`."""
        return self.home / "artifacts"

    @property
    def scratch(self) -> Path:
        """Per-try temporary places; on the same file system as the lake."""
        return self.home / "scratch"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: as set, else what the supervisor wrote, else an address that refuses at once."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri
        written = self.home / "mlflow.uri"
        return written.read_text().strip() if written.exists() else "http://127.0.0.1:9"

    @property
    def mlflow_browser_url(self) -> str:
        """MLflow's address for links, without a slash at the end."""
        return (self.mlflow_public_url or self.tracking_uri).rstrip("/")


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadSettings(f"{where} is not readable as YAML: {error}") from error


# What is written otherwise in a URL: Delta's libraries find such a folder by one of its names, and lose it by another.
_HOME = re.compile(r"[A-Za-z0-9/._~!$&'()*+,;=:@\[\]-]+", re.ASCII)


def _checked_home(home: Path) -> Path:
    odd = sorted({character for character in str(home) if not _HOME.fullmatch(character)})
    if odd:
        raise BadSettings(
            f"setting 'home' is {str(home)!r}, which holds {', '.join(map(repr, odd))}: Delta tables cannot be kept "
            f"below such a folder. Set {PREFIX}HOME to one of Latin letters, digits, and . _ - alone."
        )
    return home


def load_settings(**overrides: Any) -> Settings:
    """Settings of this process from environment and profile; `overrides` win over both.

    Raises:
        BadSettings: an unknown variable or key, a value of the wrong type, a profile that does not exist, or a home
            below which Delta tables cannot be kept.
    """
    fields = Settings.model_fields
    environment = {key[len(PREFIX) :].lower(): value for key, value in os.environ.items() if key.startswith(PREFIX)}
    unknown = sorted(set(environment) - set(fields))
    if unknown:
        raise BadSettings(
            f"the environment sets {PREFIX}{unknown[0].upper()}, which is not a setting. Known: "
            f"{', '.join(PREFIX + f.upper() for f in fields)}."
        )
    values = environment | overrides
    profile = values.get("profile", "laptop")
    path = ROOT / "config" / "profiles" / f"{profile}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise BadSettings(f"there is no profile {profile!r} ({path.relative_to(ROOT)}). Known: {', '.join(known)}.")
    merged = {**(_yaml(path.read_text(), str(path)) or {}), **values, "profile": profile}
    if "catalogs" in merged and merged.get("catalog_dir") is not None:
        raise BadSettings(
            f"catalogs ({merged['catalogs']}) and its former name catalog_dir ({merged['catalog_dir']}) are both set. "
            f"Name every folder in {PREFIX}CATALOGS or `catalogs` of {path.relative_to(ROOT)}, and drop catalog_dir."
        )
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadSettings(
            f"setting {name!r} is {first.get('input')!r}: {first['msg']}. Fix {PREFIX}{name.upper()} or "
            f"{path.relative_to(ROOT)}."
        ) from error
    return settings.model_copy(update={"home": _checked_home(settings.home.expanduser().resolve())})


@functools.cache
def code_version() -> str:
    """`<git commit, 8 digits or 'nogit'>+<digest of the code's files, 12 digits>`: equal text means equal code."""
    digest = hashlib.sha256()
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".sql", ".jinja"} and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    # The SQL of catalog folders that stand elsewhere decides the features as much.
    for catalog in load_settings().catalogs:
        for path in () if catalog.is_relative_to(ROOT) else sorted((catalog / "sql").rglob("*.sql")):
            digest.update(str(path.relative_to(catalog)).encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=8", "HEAD"]
        answered = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        commit = answered.stdout.strip() if answered.returncode == 0 else "nogit"
    except OSError:
        commit = "nogit"  # a machine without git: the digest alone names the code
    return f"{commit or 'nogit'}+{digest.hexdigest()[:12]}"


# What the training image holds besides its libraries: equal text means an image trains like this checkout.
IMAGE_FILES = (
    "config/__init__.py",
    "config/calendar.py",
    "config/catalog/__init__.py",
    "config/catalog/base.py",
    "config/catalog/output.py",
    "config/catalog/trainer.py",
    "config/durations.py",
    "config/errors.py",
    "lake/__init__.py",
    "lake/artifact.py",
    "serving/__init__.py",
    "serving/kinds/*.py",
    "serving/metrics/*.py",
    "serving/predictors/*.py",
    "training/*.py",
    "training/search/*.py",
    "training/trainers/*.py",
    "docker/training*",
)


@functools.cache
def image_code(root: Path = ROOT) -> str:
    """Digest, 16 digits, of the files below `root` that the training image is built from; a label of the image, and
    part of a training's identity.
    """
    digest = hashlib.sha256()
    for pattern in IMAGE_FILES:
        for path in sorted(root.glob(pattern)):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class MissingSecret(NightfleetError):
    """A secret is neither in the environment nor in a file of mode 600."""


def secret(settings: Settings, name: str) -> str:
    """The secret `name`: environment variable `NAME` in capitals, else the file `<home>/secrets/<name>` of mode 600.

    Raises:
        MissingSecret: neither is there, or others may read the file.
    """
    variable = name.upper()
    if variable in os.environ:
        return os.environ[variable]
    path = settings.home / "secrets" / name
    if not path.is_file():
        raise MissingSecret(f"{name} is not set. Export {variable}, or write it to {path} (mode 600).")
    if path.stat().st_mode & 0o077:
        raise MissingSecret(
            f"{path} has mode {path.stat().st_mode & 0o777:o}, needs 600: others could read it. Run `chmod 600 {path}`."
        )
    return path.read_text(encoding="utf-8").strip()


def mlflow_login(settings: Settings) -> tuple[str, str] | None:
    """User and password for MLflow; None where there is no secret `mlflow_password`: MLflow then takes what its own
    variables say, or asks for no login.

    Raises:
        MissingSecret: others may read the file of the password.
    """
    if MLFLOW_LOGIN.upper() in os.environ or (settings.home / "secrets" / MLFLOW_LOGIN).exists():
        return settings.mlflow_user, secret(settings, MLFLOW_LOGIN)
    return None


def process_environment(names: Iterable[str]) -> dict[str, str]:
    """Those of the named environment variables that are set, for a process that gets nothing else."""
    return {name: os.environ[name] for name in names if name in os.environ}


if __name__ == "__main__":  # what `make images` labels an image with
    print(image_code(), code_version())
