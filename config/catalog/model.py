"""Models: what is scored, what comes true, how it is trained and judged."""

from __future__ import annotations

from datetime import time, timedelta
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from config.calendar import ONE_DAY
from config.catalog.base import Model, Name
from config.catalog.data import AirflowKnobs
from config.catalog.output import Output
from config.catalog.policy import AccuracyDrop, AlertRule, ConsecutiveFailures, LateNight, Retrain
from config.catalog.rollout import AnyRollout, Immediate, Stepwise
from config.catalog.spine import AnySpine
from config.catalog.trainer import Trainer
from config.durations import Duration, format_duration

_WEEK = timedelta(weeks=1)


class Label(Model):
    """What comes true: `column` of `table`, joined on the spine's entity."""

    table: str
    column: str
    matures_after: Duration
    values: dict[str, float] = Field(
        default_factory=dict,
        exclude_if=lambda values: not values,  # the catalog's digest of before it could be declared
        description="for a text column, the number that each text stands for; every text it may hold",
    )
    absent: float | None = Field(
        None,
        exclude_if=lambda absent: absent is None,
        description="the label of a row that has none when it is mature, for example 0 where only events are recorded",
    )


class Split(Model):
    """Windows of mature data dates, backwards from the newest: test, embargo, validation, embargo, train."""

    train: Duration
    validation: Duration = timedelta(days=14)
    test: Duration = timedelta(days=14)
    embargo: Duration = timedelta(days=1)
    groups: str | None = Field(
        None,
        description=(
            "entity column held out whole, for example a machine: its rows stay in the first split it occurs in"
        ),
    )

    @property
    def nights(self) -> int:
        """Data dates from the first of train to the last of test."""
        return (self.train + self.validation + self.test + 2 * self.embargo).days


class SegmentGate(Model):
    """A segment fails the gate when its error exceeds `worst` times the incumbent's."""

    columns: tuple[str, ...] = Field(min_length=1)
    min_rows: int = Field(200, ge=1)
    worst: float = Field(1.05, gt=0)


class Gate(Model):
    """When a challenger is promoted. `better_by`: what the one-sided bound of its relative improvement must reach."""

    better_by: float = Field(0.0, gt=-1, lt=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    min_days: int = Field(7, ge=2)
    segments: SegmentGate | None = None
    baseline: Literal["median", "mean", "same_hour_last_week", "seasonal_naive"] = "median"
    season: Duration | None = Field(
        None,
        exclude_if=lambda season: season is None,  # the catalog's digest of before it could be declared
        description="of seasonal_naive, whole days: the label at the same local time so long before, or as many times "
        "so long as the night knew it",
    )
    max_milliseconds_per_row: float = Field(5.0, gt=0, description="latency bound of batch prediction")

    @model_validator(mode="after")
    def _season(self) -> Self:
        if (self.season is not None) != (self.baseline == "seasonal_naive"):
            raise ValueError(
                "season: belongs to the baseline seasonal_naive, which needs it, for example `season: 7 days`"
            )
        if self.season is not None and (self.season % ONE_DAY or not self.season):
            raise ValueError(f"season: {format_duration(self.season)} is not a whole number of days, at least one")
        return self

    @property
    def naive_season(self) -> timedelta | None:
        """The season of a baseline that differs by row, None where the baseline is one number for all."""
        return _WEEK if self.baseline == "same_hour_last_week" else self.season

    @property
    def baseline_words(self) -> str:
        """The baseline in words: `median of the training window`, `seasonal naive (7 days)`."""
        if self.naive_season is None:
            return f"{self.baseline} of the training window"
        season = f" ({format_duration(self.season)})" if self.season else ""
        return self.baseline.replace("_", " ") + season


class Training(Model):
    """Resources of the training job."""

    runner: Literal["auto", "docker", "process"] | None = Field(None, description="None: the profile's")
    gpus: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: all of the machine's, none where there is none; a number is demanded"
    )
    memory_gb: float = Field(8.0, gt=0, description="cap of the container, and what the job takes of the training pool")
    cpus: float = Field(2.0, gt=0, description="cap of the container")
    shm_gb: float = Field(0.5, gt=0, description="size of /dev/shm in the container")
    timeout_minutes: float = Field(60.0, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0, description="a killed training loses at most this much")
    workers: int = Field(1, ge=1, description="data-parallel workers, each a container of its own with these resources")


class ModelEntry(Model):
    """One model."""

    name: Name = Field(alias="model")
    title: str
    intended_use: str | None = Field(
        None,
        exclude=True,  # it changes no prediction: the catalog's digest does not know it
        description="where the predictions may be used and where not, for the model's page and card",
    )
    owner: str
    owner_url: str
    deadline: time
    dataset: str
    spine: AnySpine
    label: Label
    features: tuple[str, ...] = Field(min_length=1)
    outputs: dict[Name, Output] = Field(min_length=1)
    trainer: Trainer
    candidates: tuple[Trainer, ...] = Field(
        (),
        # The key was `rivals` once: catalogs that say so go on, and the digests of entries stay as they were stored.
        validation_alias=AliasChoices("candidates", "rivals"),
        serialization_alias="rivals",
        description="further trainers of the same training; the best on validation goes to the gate",
    )
    split: Split
    gate: Gate = Gate()
    approval: Literal["none", "required"] = Field(
        "none", description="required: a person decides on each promotion that passed the gate"
    )
    approval_timeout: Duration = Field(timedelta(days=7), description="without an answer by then, the promotion lapses")
    rollout: AnyRollout = Field(
        Immediate(),
        exclude=True,  # it changes no prediction: the catalog's digest does not know it
        description="how a version that passed the gate takes over",
    )
    retrain: Retrain = Retrain()
    training: Training = Training()
    airflow: AirflowKnobs = AirflowKnobs()
    alerts: tuple[AlertRule, ...] = Field(
        (AccuracyDrop(rule="accuracy_drop"), ConsecutiveFailures(rule="consecutive_failures"), LateNight(rule="late")),
        description="the whole list; left out, each rule at its defaults",
    )

    @model_validator(mode="after")
    def _alerts(self) -> Self:
        names = [alert.name for alert in self.alerts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"alerts: the name {name!r} appears twice; give one of them another `name`")
        for alert in self.alerts:
            for output in (alert.outputs or ()) if isinstance(alert, AccuracyDrop) else ():
                if output not in self.outputs:
                    raise ValueError(
                        f"alerts: {alert.name} names {output!r}, which is not an output ({', '.join(self.outputs)})"
                    )
        return self

    @property
    def stepwise(self) -> Stepwise | None:
        """How a version takes over step by step, None where it does at once."""
        return None if isinstance(self.rollout, Immediate) else self.rollout

    @property
    def trainers(self) -> tuple[Trainer, ...]:
        """All candidates of a training, the model's own trainer first."""
        return (self.trainer, *self.candidates)

    @property
    def entity(self) -> tuple[str, ...]:
        """Columns that name what is predicted."""
        return self.spine.entity

    @model_validator(mode="after")
    def _outputs(self) -> Self:
        columns = [column for name, output in self.outputs.items() for column in output.columns(name)]
        for column in columns:
            if columns.count(column) > 1:
                raise ValueError(f"outputs: two of them would publish the column {column!r}; rename one")
        values = {output.label_values for output in self.outputs.values() if output.label_values}
        if len(values) > 1:
            raise ValueError("outputs: they take different values of the label; give all of them the same classes")
        return self

    @property
    def output_types(self) -> dict[str, str]:
        """Columns of a prediction, in order, with their types."""
        return {column: kind for name, output in self.outputs.items() for column, kind in output.columns(name).items()}

    @property
    def output_columns(self) -> tuple[str, ...]:
        """Columns of a prediction, in order."""
        return tuple(self.output_types)

    @property
    def drift_types(self) -> dict[str, str]:
        """As `output_types`, the types by which the drift of each column is measured."""
        kinds: dict[str, str] = {}
        for name, output in self.outputs.items():
            kinds |= output.drift_types(name)
        return kinds

    @property
    def scaled(self) -> bool:
        """Whether a gate's metric divides errors by the scale of each row's series."""
        return any(output.scaled for output in self.outputs.values())

    @property
    def judged_columns(self) -> tuple[str, ...]:
        """Those of them that outputs are judged by, all numbers."""
        return tuple(column for name, output in self.outputs.items() for column in output.judged_columns(name))

    @property
    def label_values(self) -> tuple[str | int, ...]:
        """All values that the label may take; none for a label that may be any number."""
        return next((output.label_values for output in self.outputs.values() if output.label_values), ())
