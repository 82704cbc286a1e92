"""Dagster's runs on run-launcher: `module: launchers.dagster`, `class: PulumiRunLauncher` in dagster.yaml.

At import it loads nothing but dagster, since with resuming switched on every code server loads it.
"""

from launchers.dagster.launcher import PulumiRunLauncher

__all__ = ["PulumiRunLauncher"]
