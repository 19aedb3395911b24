"""Settings: environment over profile over default, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import PREFIX, BadSettings, MissingSecret, Settings, code_version, load_settings, secret


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_the_environment_wins_over_the_default_and_an_argument_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load_settings().duckdb_threads == 2
    monkeypatch.setenv("NIGHTFLEET_DUCKDB_THREADS", "3")
    assert load_settings().duckdb_threads == 3
    assert load_settings(duckdb_threads=5).duckdb_threads == 5
    monkeypatch.setenv("NIGHTFLEET_HOME", str(tmp_path))
    assert load_settings().lake == tmp_path / "lake"


def test_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTFLEET_HOME", "state")
    assert load_settings().home == tmp_path / "state"
    assert load_settings().database_url == f"sqlite:///{tmp_path}/state/nightfleet.db"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NIGHTFLEET_HOEM", "/x", ["NIGHTFLEET_HOEM, which is not a setting", "NIGHTFLEET_HOME"]),
        (
            "NIGHTFLEET_DUCKDB_THREADS",
            "many",
            ["setting 'duckdb_threads' is 'many'", "Fix NIGHTFLEET_DUCKDB_THREADS or config/profiles/laptop.yaml"],
        ),
        ("NIGHTFLEET_DUCKDB_THREADS", "0", ["setting 'duckdb_threads' is '0'", "greater than or equal to 1"]),
        ("NIGHTFLEET_RUNNER", "cloud", ["setting 'runner' is 'cloud'", "'auto', 'docker' or 'process'"]),
        (
            "NIGHTFLEET_PROFILE",
            "mainframe",
            ["there is no profile 'mainframe' (config/profiles/mainframe.yaml)", "laptop"],
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().home = Path("/")  # type: ignore[misc]


def test_the_tracking_uri_is_set_or_written_or_refuses_at_once(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.tracking_uri == "http://127.0.0.1:9"
    (tmp_path / "mlflow.uri").write_text("http://127.0.0.1:5000\n")
    assert settings.tracking_uri == "http://127.0.0.1:5000"
    assert settings.model_copy(update={"mlflow_tracking_uri": "http://mlflow"}).tracking_uri == "http://mlflow"


def test_a_secret_comes_from_the_environment_or_a_file_of_mode_600(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    monkeypatch.delenv("SHOP_TOKEN", raising=False)
    path = tmp_path / "secrets" / "shop_token"
    with pytest.raises(MissingSecret) as caught:
        secret(settings, "shop_token")
    assert (
        str(caught.value)
        == f"MissingSecret: shop_token is not set. Export SHOP_TOKEN, or write it to {path} (mode 600)."
    )
    path.parent.mkdir()
    path.write_text("abc\n")
    path.chmod(0o644)
    with pytest.raises(MissingSecret, match=r"has mode 644, needs 600: others could read it. Run `chmod 600"):
        secret(settings, "shop_token")
    path.chmod(0o600)
    assert secret(settings, "shop_token") == "abc"
    monkeypatch.setenv("SHOP_TOKEN", "from outside")
    assert secret(settings, "shop_token") == "from outside"


def test_code_version_names_commit_and_code() -> None:
    commit, digest = code_version().split("+")
    assert len(digest) == 12
    assert commit == "nogit" or len(commit) == 8


def test_approvers_and_channels_stand_in_the_environment_or_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().approvers == ()
    assert load_settings().notifications == ()
    monkeypatch.setenv("NIGHTFLEET_APPROVERS", " admin, 7:ada ,")
    monkeypatch.setenv(
        "NIGHTFLEET_NOTIFICATIONS",
        "[{name: chat, kind: slack, url_secret: chat_url, at_once: [critical, warning]}, {name: log, kind: webhook, "
        "url_secret: l}]",
    )
    monkeypatch.setenv("NIGHTFLEET_PUBLIC_URL", "https://airflow.example.com/x/")
    settings = load_settings()
    assert settings.approver_names == {"admin": "admin", "7": "ada"}
    assert [(channel.name, channel.at_once, channel.nightly_summary) for channel in settings.notifications] == [
        ("chat", ("critical", "warning"), True),
        ("log", ("critical", "request"), True),
    ]
    assert settings.public_url == "https://airflow.example.com/x"


@pytest.mark.parametrize("key", ["nightly_summary", "digest"])
def test_a_channel_may_leave_out_the_nightly_summary_by_either_name(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = f"{{name: chat, kind: slack, url_secret: chat_url, {key}: false}}"
    monkeypatch.setenv("NIGHTFLEET_NOTIFICATIONS", f"[{channel}]")
    assert not load_settings().notifications[0].nightly_summary


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "NIGHTFLEET_NOTIFICATIONS",
            "[{name: chat, kind: pigeon, url_secret: x}]",
            "setting 'notifications.0.kind' is 'pigeon'",
        ),
        (
            "NIGHTFLEET_NOTIFICATIONS",
            "[{name: c, kind: slack, url: slack://token}]",
            "setting 'notifications.0.url_secret'",
        ),
        (
            "NIGHTFLEET_NOTIFICATIONS",
            "[{name: c, kind: slack, url_secret: x}, {name: c, kind: email, url_secret: y}]",
            "two channels share a name: c, c",
        ),
        ("NIGHTFLEET_PUBLIC_URL", "javascript:alert(1)", "needs an address that begins with http"),
    ],
)
def test_a_channel_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert words in str(caught.value)


def test_the_sql_of_a_folder_elsewhere_is_part_of_the_code_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = code_version.__wrapped__()
    (tmp_path / "sql" / "tours").mkdir(parents=True)
    (tmp_path / "sql" / "tours" / "daily.sql").write_text("SELECT 1")
    monkeypatch.setenv("NIGHTFLEET_CATALOGS", f"config,{tmp_path}")
    first = code_version.__wrapped__()
    (tmp_path / "sql" / "tours" / "daily.sql").write_text("SELECT 2")
    assert len({shipped, first, code_version.__wrapped__()}) == 3
