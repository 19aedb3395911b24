"""How the suite is divided: what each test needs, what `--fast` leaves out, which tests two workers may run at once.

A test's needs follow from its fixtures and its file, so nobody has to remember a mark; each need is a mark, too:
`python -m pytest -m "not airflow and not docker"`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

NEEDS = {
    "airflow": "imports or starts Airflow",
    "docker": "needs a Docker engine and the training image",
    "service": "starts a server: Postgres, MLflow, Prometheus",
    "browser": "opens pages in Chromium",
    "slow": "trains models, or goes through a whole data set",
}
_FIXTURES = {
    "docker_engine": "docker",
    "postgres_url": "service",
    "empty_postgres": "service",
    "mlflow_server": "service",
    "browser": "browser",
}
_FOLDERS = {"tests/e2e": "airflow", "tests/dags": "airflow", "tests/plugins": "airflow"}
# Those that train in containers or build images.
CONTAINERS = {
    "tests/docker/test_images.py",
    "tests/plugins/test_training_operator.py",
    "tests/training/registry/test_docker_runner.py",
}
# Those that start what they need inside the test.
_FILES = {
    "tests/monitoring/alerting/test_prometheus.py": "service",
    "tests/training/registry/test_register.py": "service",
    "tests/monitoring/pages/test_model_card.py": "service",
    "tests/e2e/test_pages_year.py": "browser",
}
# Seconds of the groups that take long, alone on a machine of two cores: the longest begin first, so that none is left
# over when all others are through. A new file needs no entry before it takes as long as these.
SECONDS: dict[str, float] = {
    "tests/e2e/test_real_nights.py": 300,
    "tests/e2e/test_trainings.py": 200,
    "tests/e2e/three_nights": 180,
    "tests/e2e/toy_nights": 160,
    "tests/e2e/test_pages_year.py": 120,
    "tests/plugins/test_ui_access.py": 100,
    "containers": 90,
    "tests/training/test_trainers.py": 80,
    "tests/training/test_distributed.py": 70,
    "tests/training/search/test_study.py": 60,
    "tests/training/test_lstm.py": 50,
    "tests/training/registry/test_register.py": 50,
    "tests/monitoring/alerting/test_nightly_summary.py": 50,
    "tests/features/test_validate.py": 46,
    "tests/training/test_keras_resume.py": 40,
    "tests/features/test_ingest.py": 36,
    "tests/features/test_backfill_equals_nightly.py": 33,
    "tests/training/registry/test_leakage.py": 28,
    "tests/features/test_cmapss.py": 22,
    "tests/features/test_feature_repo.py": 20,
    "tests/features/test_expectations.py": 18,
    "tests/lake/test_publish.py": 18,
    "tests/training/registry/test_gate_whole.py": 16,
    "tests/serving/predictors/test_lstm.py": 16,
}
# What `--fast` can do without: files, and single tests of files that it cannot.
_SLOW = {
    "tests/cli/test_commands.py",
    "tests/cli/test_new.py::test_a_start_is_accepted_and_its_tests_run",
    "tests/faults/test_lost_mlflow.py",
    "tests/faults/test_retention.py::test_nothing_that_a_kept_prediction_or_model_cites_goes",
    "tests/features/test_backfill_equals_nightly.py",
    "tests/features/test_batteries.py",
    "tests/features/test_cmapss.py",
    "tests/features/test_column_names.py",
    "tests/features/test_expectations.py",
    "tests/features/test_feature_repo.py::test_the_plain_feast_command_works",
    "tests/features/test_ingest.py::test_a_whole_source_gives_the_same_nights_in_bulk_and_by_the_short_cut",
    "tests/features/test_ingest.py::test_bulk_equals_nightly_with_late_corrected_and_future_rows",
    "tests/features/test_offline_store.py::test_equals_the_reference",
    "tests/features/test_training_set.py::test_no_group_is_in_two_splits_and_every_row_is_accounted_for",
    "tests/features/test_validate.py::test_bulk_equals_nightly_and_again_is_free",
    "tests/features/test_validate.py::test_in_bulk_the_nights_before_the_first_that_stops_are_published",
    "tests/features/test_validate.py::test_interrupted_between_two_tables_and_run_again_it_ends_the_same",
    "tests/lake/test_former_lake.py",
    "tests/monitoring/alerting/test_nightly_summary.py",
    "tests/monitoring/audit/test_reproduction.py",
    "tests/monitoring/pages/test_drift_report.py::test_reports_are_embedded_without_an_origin_where_they_are_there",
    "tests/monitoring/pages/test_reports.py",
    "tests/monitoring/test_assignments.py",
    "tests/monitoring/test_performance.py::test_bulk_equals_nightly_and_a_rerun_commits_nothing",
    "tests/serving/predictors/test_lstm.py",
    "tests/serving/test_real_models.py",
    "tests/serving/test_score.py::test_killed_and_retried_equals_undisturbed",
    "tests/serving/test_score.py::test_two_runs_at_once_end_in_equal_digests",
    "tests/test_generated_year.py",
    "tests/test_two_datasets.py",
    "tests/training/registry/test_explanation.py",
    "tests/training/registry/test_gate_whole.py",
    "tests/training/registry/test_job.py",
    "tests/training/registry/test_leakage.py",
    "tests/training/registry/test_plots.py",
    "tests/training/registry/test_runner.py",
    "tests/training/search/test_study.py",
    "tests/training/test_cross_validation.py",
    "tests/training/test_distributed.py",
    "tests/training/test_external_memory.py",
    "tests/training/test_keras_resume.py",
    "tests/training/test_lstm.py",
    "tests/training/test_own_family.py",
    "tests/training/test_sklearn_trainers.py",
    "tests/training/test_trainers.py",
    "tests/training/test_xgboost_resume.py",
}


def needs_of(item: pytest.Item) -> set[str]:
    """The marks that a test gets: keys of `NEEDS`."""
    file = _file(item)
    needs = {_FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in _FIXTURES}
    needs |= {need for folder, need in _FOLDERS.items() if file.startswith(f"{folder}/")}
    if file in _FILES:
        needs.add(_FILES[file])
    params = getattr(getattr(item, "callspec", None), "params", {}).values()
    if any(isinstance(value, str) and value == "postgres" for value in params):
        needs.add("service")
    if {file, f"{file}::{getattr(item, 'originalname', item.name)}"} & _SLOW:
        needs.add("slow")
    return needs


def group_of(file: str) -> str:
    """Tests of one group run one after another in one worker: those of a file, as they share its fixtures; those of a
    folder below tests/e2e, as they share an Airflow; those of the containers, as they share the engine.
    """
    if file in CONTAINERS:
        return "containers"
    folder = str(Path(file).parent)
    return folder if folder.startswith("tests/e2e/") else file


def _file(item: pytest.Item) -> str:
    return Path(item.path).relative_to(item.config.rootpath).as_posix()


_LEFT_OUT: pytest.StashKey[Counter[str]] = pytest.StashKey()

# ---- hooks of pytest -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out tests with a need: " + ", ".join(NEEDS))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        config.option.dist, config.option.loadscopereorder = "loadscope", False
    for need, means in NEEDS.items():
        config.addinivalue_line("markers", f"{need}: {means}")
    config.stash[_LEFT_OUT] = Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark, leave out, and put the longest groups first."""
    kept, left_out = [], []
    for item in items:
        needs = needs_of(item)
        for need in sorted(needs):
            item.add_marker(need)
        if "docker" in needs and group_of(_file(item)) != "containers" and "airflow" not in needs:
            raise pytest.UsageError(
                f"{item.nodeid} uses the Docker engine: list its file in CONTAINERS, tests/groups.py."
            )
        if config.getoption("--fast") and needs:
            left_out.append(item)
            config.stash[_LEFT_OUT].update([min(needs, key=list(NEEDS).index)])
        else:
            kept.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    items[:] = sorted(kept, key=lambda item: -SECONDS.get(group_of(_file(item)), 0.0)) if _workers(config) else kept


def _workers(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput") or bool(config.getoption("numprocesses", None))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the main process what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[_LEFT_OUT].items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects, and leaves out, the same tests."""
    left_out: dict[str, int] = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[_LEFT_OUT] = Counter(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        parts = ", ".join(f"{left_out[need]} {means}" for need, means in NEEDS.items() if left_out[need])
        terminalreporter.write_line(f"--fast left out {left_out.total()} tests ({parts}): `make test` runs them all.")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    return OneAirflowAtATime(config, log) if config.getoption("dist") == "loadscope" else None


class OneAirflowAtATime(LoadScopeScheduling):  # type: ignore[misc]
    """While one worker has an Airflow or containers, the others get groups without: two would starve each other.

    A test's group follows from its file. (The marks of `--dist loadgroup` do nothing under pytest 9.2, which no longer
    reads the id that xdist writes them to.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0])

    def _assign_work_unit(self, node: Any) -> None:
        elsewhere = any(
            _is_heavy(group) and not all(done.values())
            for other, groups in self.assigned_work.items()
            if other is not node
            for group, done in groups.items()
        )
        if elsewhere:
            light = next((group for group in self.workqueue if not _is_heavy(group)), None)
            if light is not None:
                self.workqueue.move_to_end(light, last=False)
        super()._assign_work_unit(node)


def _is_heavy(group: str) -> bool:
    return group == "containers" or (group.startswith("tests/e2e/") and group != "tests/e2e/test_pages_year.py")
