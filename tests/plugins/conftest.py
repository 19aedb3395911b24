"""Plugins import Airflow: the set-up of tests/dags serves here too."""

from tests.dags import conftest as _airflow_home  # noqa: F401 (importing it sets Airflow's environment)
from tests.dags.conftest import dag_bag as dag_bag
