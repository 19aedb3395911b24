"""What a runner is: the contract between whoever wants a job trained and the place where it is trained.

`process_runner` and `docker_runner` fill it. Another place (a pod of a cluster) is one more file that does, and one
more line in `runner.choose_runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from config.catalog.model import ModelEntry

LOG_FILE = "training.log"
HOST_SUFFIX = ".gate"


def host_folder(job_dir: Path) -> Path:
    """What lies beside a job, `<job>.gate`: the trainer never gets it, so the host may write there and trust it."""
    return job_dir.with_name(f"{job_dir.name}{HOST_SUFFIX}")


# How many of a trainer's last lines a failure quotes.
LAST_LINES = 15


@dataclass(frozen=True)
class Attempt:
    """One try at a prepared job.

    Attributes:
        entry: the model's catalog entry, whose `training` says what the try may take.
        job_dir: JOB_DIR, on a disk that the runner's place can read and write.
        timeout_seconds: when to kill it.
        say: takes each line that the trainer writes, without its end of line, as it comes.
    """

    entry: ModelEntry
    job_dir: Path
    timeout_seconds: float
    say: Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a try ended, as seen and not guessed.

    Attributes:
        code: exit code, as a process (a signal is negative) or a container (128 + signal) reports it.
        last_lines: the last lines that the trainer wrote, oldest first.
        overdue: the runner killed it because its time was up.
        out_of_memory: the kernel killed it for memory.
    """

    code: int
    last_lines: Sequence[str]
    overdue: bool = False
    out_of_memory: bool = False


class Runner(Protocol):
    """A place where `python -m training JOB_DIR` runs. One object serves one try of one task."""

    @property
    def name(self) -> str:
        """As the setting `runner` calls it."""

    @property
    def image(self) -> str | None:
        """The image whose code trains; None: this checkout itself."""

    def prepare(self, say: Callable[[str], None]) -> None:
        """Remove what an earlier try of the same task left running: two trainers must not write one job."""

    def run(self, attempt: Attempt) -> Ended:
        """Train and wait. Every line is said as it comes and is kept in the host folder's `training.log`; whatever
        happens, nothing that was started is left behind.
        """

    def cancel(self) -> None:
        """End a `run` in progress, from another thread or a signal handler; nothing where there is none."""
