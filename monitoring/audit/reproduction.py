"""A reproduction in a process of its own: it loads models and their libraries, which a server that answers pages must
not hold.

`python -m monitoring.audit.reproduction RESULT` reads `{"settings": …, "prediction_id": …}` from its standard input and
writes the outcome to RESULT.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from config.catalog.load import load_catalog
from config.errors import NightfleetError
from config.settings import ROOT, Settings
from lake.lake import Lake

LONGEST_SECONDS = 300.0
_one_at_a_time = threading.Lock()


class StillReproducing(NightfleetError):
    """This server is computing another prediction again."""


class NotReproduced(NightfleetError):
    """The prediction could not be computed again; the text is what the reproduction said."""


def reproduce_apart(lake: Lake, prediction_id: str, *, seconds: float = LONGEST_SECONDS) -> dict[str, Any]:
    """`monitoring.audit.trace.reproduce` in another process, one at a time; returns `Reproduction.to_json()`.

    Args:
        seconds: after so long the process is ended.
    Raises:
        StillReproducing: one is going on; nothing was started.
        NotReproduced: it was refused, for example because inputs expired, took too long, or its process ended.
    """
    if not _one_at_a_time.acquire(blocking=False):
        raise StillReproducing(
            "another prediction is being computed again at this moment, and this server does one at a time. Try again "
            "in a minute."
        )
    try:
        with lake.scratch("reproduction") as folder:
            return _outcome(lake.settings, prediction_id, folder / "outcome.json", seconds)
    finally:
        _one_at_a_time.release()


def _outcome(settings: Settings, prediction_id: str, result: Path, seconds: float) -> dict[str, Any]:
    order = json.dumps({"settings": settings.model_dump(mode="json"), "prediction_id": prediction_id})
    command = [sys.executable, "-m", "monitoring.audit.reproduction", str(result)]
    # A session of its own, so that whatever it started ends with it.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(order, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise NotReproduced(
            f"it took longer than {seconds:g} s and was ended. On the server, `python -m cli trace {prediction_id} "
            "--reproduce` may take longer."
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        outcome: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise NotReproduced(f"its process ended with code {process.returncode}: {last[0][:300]}") from error
    if "refused" in outcome:
        raise NotReproduced(outcome["refused"])
    return outcome


def main(result: str) -> None:
    """Do what standard input asks; an expected failure is an outcome, too."""
    from monitoring.audit.trace import reproduce

    order = json.load(sys.stdin)
    settings = Settings(**order["settings"])
    try:
        outcome = reproduce(Lake(settings, load_catalog(settings)), order["prediction_id"]).to_json()
    except NightfleetError as error:
        outcome = {"refused": str(error)}
    partial = Path(f"{result}.part")
    partial.write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(partial, result)


if __name__ == "__main__":
    main(sys.argv[1])
