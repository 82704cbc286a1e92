"""What the tests of Dagster's runs share: a code server for the session, and a site for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from dagster_site import Desk, Site, code_server, short_folder
from targets import take_engine


@pytest.fixture(scope="session")
def code() -> Iterator[Path]:
    """The code server's socket."""
    with short_folder() as folder, code_server(Path(folder)) as address:
        yield address


@pytest.fixture(params=["warm", "cli"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    return take_engine(request, request.param)


@pytest.fixture
def make_site(code: Path, engine: str) -> Iterator[Callable[..., Site]]:
    """Makes sites; at the end nothing may be left of their runs."""
    with ExitStack() as held:
        sites: list[Site] = []

        def make(config: dict[str, Any] | None = None, **more: Any) -> Site:  # noqa: ANN401 - YAML
            folder = Path(held.enter_context(short_folder())) / "site"
            home = more.pop("home", None)
            site = Site(folder, code, engine, config or {}, more, home)
            sites.append(site)
            return site

        yield make
        for site in sites:
            site.configure()
            with site.desk() as desk:
                clean(desk)
            assert site.leftovers() == []


@pytest.fixture
def desk(make_site: Callable[..., Site]) -> Iterator[Desk]:
    """An instance with our launcher, opened by this process."""
    with make_site().desk() as made:
        yield made


def clean(desk: Desk) -> None:
    """End what a test left running, as Dagster would have it, and have it reconciled."""
    for run in desk.instance.get_runs():
        desk.site.let_go(run.run_id)
        if not run.is_finished:
            desk.launcher.terminate(run.run_id)
            desk.instance.report_run_canceled(run)
    binding = desk.launcher.binding
    for run_id in binding.workspace.records.ids():
        if binding.workspace.records.read(run_id).owner == binding.owner:  # type: ignore[union-attr]
            binding.launcher_of(run_id).terminate(run_id)
