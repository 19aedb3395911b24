"""MLflow asks for a login, and the product's clients have it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from cli.installation import Installation, StartFailed, _check_login, mlflow_environment, prepare
from config.settings import MissingSecret, Settings, mlflow_login
from training.progress import POINTS_FILE
from training.registry.curves import CurveStream
from training.registry.tracking import MlflowUnavailable, answered, experiment_id, tracking_client


@pytest.fixture
def settings(tmp_path: Path, mlflow_server: str) -> Settings:
    return Settings(home=tmp_path, mlflow_tracking_uri=mlflow_server)


def test_nobody_reads_or_writes_without_a_login(mlflow_server: str) -> None:
    for method, path in (
        ("GET", "/api/2.0/mlflow/registered-models/search"),
        ("POST", "/api/2.0/mlflow/registered-models/create"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/pyfunc_model.py"),
        ("POST", "/api/2.0/mlflow/model-versions/set-tag"),
        ("GET", "/"),
    ):
        for auth in (None, ("admin", "guessed")):
            answer = httpx.request(method, mlflow_server + path, auth=auth, content=b"{}")
            assert answer.status_code == 401, (method, path, answer.text)


def test_the_product_logs_in_its_curves_too(settings: Settings, tmp_path: Path) -> None:
    client = tracking_client(settings)
    with answered(settings):
        run_id = client.create_run(experiment_id(client, "login"), run_name="login").info.run_id
    (tmp_path / POINTS_FILE).write_text(json.dumps({"metric": "loss", "step": 1, "value": 0.5}) + "\n")
    said: list[str] = []
    with CurveStream(tmp_path, settings.tracking_uri, run_id, said.append, login=mlflow_login(settings)):
        pass
    assert said == []
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [0.5]


def test_a_refused_login_names_what_to_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PASSWORD", "of-another-server")
    client = tracking_client(settings)
    with (
        pytest.raises(
            MlflowUnavailable, match=r"refuses the login, NIGHTFLEET_MLFLOW_USER and the secret mlflow_passw"
        ),
        answered(settings),
    ):
        client.search_registered_models()
    monkeypatch.undo()
    tracking_client(settings)  # what this process logs in with from here on


def test_a_start_with_another_password_than_the_accounts_have_says_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = Installation(settings, 0, int(settings.mlflow_tracking_uri.rpartition(":")[2]), "")
    _check_login(installation)
    monkeypatch.setenv("MLFLOW_PASSWORD", "made-anew")
    with pytest.raises(
        StartFailed, match=r"MLflow refuses the login of admin (?s:.*)accounts.db: accounts are made anew"
    ):
        _check_login(installation)


def test_the_password_is_a_secret_of_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_PASSWORD")
    settings = Settings(home=tmp_path / "50% of it")
    assert mlflow_login(settings) is None, "another server may ask for none, or be known by MLflow's own variables"
    prepare(settings)
    environment = mlflow_environment(settings)
    user, password = mlflow_login(settings) or ("", "")
    assert (environment["MLFLOW_AUTH_ADMIN_USERNAME"], environment["MLFLOW_AUTH_ADMIN_PASSWORD"]) == (user, password)
    assert user == "admin"
    assert len(password) >= 24
    written = Path(environment["MLFLOW_AUTH_CONFIG_PATH"])
    assert password not in written.read_text()
    assert written.stat().st_mode & 0o077 == written.parent.stat().st_mode & 0o077 == 0
    (settings.home / "secrets" / "mlflow_password").chmod(0o644)
    with pytest.raises(MissingSecret, match="others could read it"):
        mlflow_login(settings)
