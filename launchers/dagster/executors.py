"""Which run launcher the executor of a job asks its instance for.

A job's snapshot does not name its executor; the keys of its `execution: config:` tell which it is. Read from the
executors of dagster-docker, -k8s, -aws and -celery-k8s 0.29 (each file's *_executor): they read networks, images or
namespaces from the launcher of the same package, or refuse to start with another. An executor that a job has
configured for good (`.configured()`) shows no keys, and counts as one that needs no launcher in particular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dagster import DagsterRun

if TYPE_CHECKING:
    from dagster import DagsterInstance

NEEDS: Final = {
    "DockerRunLauncher": frozenset({"container_kwargs", "networks"}),
    "EcsRunLauncher": frozenset({"run_task_kwargs", "task_overrides"}),
    "CeleryK8sRunLauncher": frozenset({"broker", "job_namespace"}),
    "K8sRunLauncher": frozenset({"step_k8s_config", "job_namespace"}),
}
"""Class of the launcher, and keys that only the executor of its package takes."""


def launcher_class_of(instance: DagsterInstance, run: DagsterRun) -> str | None:
    """The class of the launcher that the run's executor asks for; None where it needs none in particular."""
    if run.job_snapshot_id is None or not instance.has_job_snapshot(run.job_snapshot_id):
        return None
    snapshot = instance.get_job_snapshot(run.job_snapshot_id)
    types = snapshot.config_schema_snapshot
    root_key = snapshot.mode_def_snaps[0].root_config_key
    for name in ("execution", "config"):
        fields = {each.name: each for each in types.get_config_snap(root_key).fields or ()} if root_key else {}
        root_key = fields[name].type_key if name in fields else None
    keys = {each.name for each in types.get_config_snap(root_key).fields or ()} if root_key else set()
    return next((name for name, own in NEEDS.items() if own <= keys), None)
