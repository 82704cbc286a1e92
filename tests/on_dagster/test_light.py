"""What the launcher costs a process that only opens an instance."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from dagster import DagsterInvalidConfigError
from dagster._serdes import ConfigurableClassData

from launchers.dagster import PulumiRunLauncher

_LOADED = """
import json, sys
import dagster
before = set(sys.modules)
{more}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(more: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", _LOADED.format(more=more)], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.smoke
def test_the_module_loads_nothing_but_dagster() -> None:
    others = {name for name in loaded_by("import launchers.dagster") if name.partition(".")[0] != "dagster"}

    assert others == {"launchers", "launchers.dagster", "launchers.dagster.launcher", "launchers.dagster.schema"}


def test_an_instance_that_resumes_loads_the_launcher_and_no_more() -> None:
    more = """
from dagster._serdes import ConfigurableClassData
ConfigurableClassData("launchers.dagster", "PulumiRunLauncher", "{template: etl}").rehydrate()
"""
    loaded = loaded_by(more)

    assert not {name for name in loaded if name.partition(".")[0] in {"stacks", "programs", "pulumi", "pydantic"}}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{tempalte: etl}", 'unexpected config entry "tempalte" at the root'),
        ("{template: 5}", "at path root:template"),
        ("{launch_timeout_seconds: 30s}", "launch_timeout_seconds"),
        ("{reconcile: {every: 15}}", 'unexpected config entry "every" at path root:reconcile'),
        ("{previous: {class: DefaultRunLauncher}}", 'Missing required config entry "module" at path root:previous'),
        ("{template: {env: NO_SUCH_VARIABLE}}", "NO_SUCH_VARIABLE"),
    ],
)
def test_dagster_checks_the_config(config: str, told: str) -> None:
    with pytest.raises(Exception, match=r"Error|NO_SUCH") as raised:
        ConfigurableClassData("launchers.dagster", "PulumiRunLauncher", config).rehydrate()

    assert told in str(raised.value)
    assert isinstance(raised.value, DagsterInvalidConfigError) or "NO_SUCH" in told


@pytest.mark.parametrize(
    "config", ["{launch_timeout_seconds: 0}", "{unknown_grace_seconds: -1}", "{reconcile: {interval_seconds: 0}}"]
)
def test_values_that_make_no_sense_are_refused(config: str) -> None:
    with pytest.raises(Exception, match="it must be from"):
        ConfigurableClassData("launchers.dagster", "PulumiRunLauncher", config).rehydrate()


def test_a_launcher_can_be_made_without_a_config() -> None:
    data = ConfigurableClassData("launchers.dagster", "PulumiRunLauncher", "{}")
    made = data.rehydrate(as_type=PulumiRunLauncher)

    assert made.inst_data == data
    assert made.supports_check_run_worker_health
    assert made.supports_resume_run
    made.dispose()
    made.join()
