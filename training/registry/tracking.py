"""The way to MLflow: a client that gives up soon, and one error that says what to do."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from config.errors import NightfleetError
from config.settings import Settings, mlflow_login

HEALTH_TIMEOUT_SECONDS = 3.0
REQUEST_TIMEOUT_SECONDS = 10
REQUEST_RETRIES = 1


class MlflowUnavailable(NightfleetError):
    """MLflow does not answer, or refuses."""


def tracking_client(settings: Settings) -> Any:
    """An `MlflowClient` of the settings' server, which was just seen alive, logged in where there is a password.

    From here on this process' requests to MLflow give up after some twenty seconds instead of minutes.

    Raises:
        MlflowUnavailable: it does not answer.
    """
    uri = settings.tracking_uri
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_SECONDS):  # noqa: S310 (the scheme was checked)
                pass
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise _unavailable(uri, error) from error
    import mlflow
    from mlflow import environment_variables as variables

    variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(REQUEST_RETRIES)
    variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(REQUEST_TIMEOUT_SECONDS)
    login = mlflow_login(settings)
    if login is not None:  # MLflow's client, and what it calls, know a login by these alone
        variables.MLFLOW_TRACKING_USERNAME.set(login[0])
        variables.MLFLOW_TRACKING_PASSWORD.set(login[1])
    # A task's log is plain lines: no progress bars, no addresses of runs.
    variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def answered(settings: Settings) -> Iterator[None]:
    """Whatever MLflow's client raises inside becomes `MlflowUnavailable`."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        raise _unavailable(settings.tracking_uri, error) from error


def _unavailable(uri: str, error: Exception) -> MlflowUnavailable:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return MlflowUnavailable(
        f"MLflow at {uri} did not do what was asked: {reason}.\n"
        "  What was asked was not done. Start it (`make up`), or set NIGHTFLEET_MLFLOW_TRACKING_URI; where it refuses "
        "the login, NIGHTFLEET_MLFLOW_USER and the secret mlflow_password. Then clear this task."
    )


def experiment_id(client: Any, name: str) -> str:
    """The experiment of that name, created where there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another run created it in between
            if experiment is None:
                raise
    return str(experiment.experiment_id)
