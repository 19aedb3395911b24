"""A platform: what its users do from day to day, how engaged they are, their projects, and what its clusters use.

Every table is a function of the platform and a day alone: no night needs the nights before it.
"""

from collections.abc import Callable, Mapping

import pyarrow as pa

from features.sources.simulation.platform import cluster, engagement, projects, work
from features.sources.simulation.platform.accounts import Platform

__all__ = ["TABLES", "Platform"]

TABLES: Mapping[str, Callable[[Platform, int], pa.Table]] = {
    "user_days": engagement.user_days,
    "engagement_levels": engagement.engagement_levels,
    "next_activities": work.next_activities,
    "cluster_usage": cluster.cluster_usage,
    "projects": projects.projects,
    "project_outcomes": projects.project_outcomes,
}
