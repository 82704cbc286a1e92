"""Options that narrow the suite, and what every test shares."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from dockerd import Daemon, Dockerd
    from servers import Place, Server

D = TypeVar("D")
_SHOWN = 3000  # characters of what a failure says, at once; all of it follows at the end
pytest.register_assert_rewrite("launchers.testing.contract")
sys.path.insert(0, str(Path(__file__).parent))  # tests are no package: targets.py is found by its name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", action="append", default=[], help="only this target's rows (may be repeated)")
    parser.addoption("--engine", action="append", default=[], choices=["cli", "warm"], help="only this engine")
    parser.addoption("--backend", action="append", default=[], help="only this backend of the contract: file, s3 …")
    parser.addoption(
        "--require", action="append", default=[], help="fail, not skip, where this target or server is absent"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # not in the processes that pytest-xdist starts
        config.pluginmanager.register(AtOnce(config))


class AtOnce:
    """Tells of a failure when it comes: of a run that a time limit cuts short, nothing else would say what failed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext[-_SHOWN:]}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The contract's many moments of a kill are for processes and files; of others most are left to `make soak`.

    What a target does has nothing to do with where its records are: other targets meet servers in `make soak` alone.
    """
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        served, other = parameters.get("place") in {"s3", "postgres"}, parameters.get("target", "process") != "process"
        seldom = (served or other) and parameters.get("delay", 0.2) not in {0.15, 0.2, None}
        if seldom or (served and other):
            item.add_marker("soak")


@pytest.fixture(autouse=True, scope="session")
def signals_for_what_tests_start() -> None:
    """Who runs the tests in the background (SIGINT) or by nohup (SIGHUP) has their children ignore that signal too.

    A handler, unlike that, ends with an exec; this process goes on to ignore the signal.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what the user of this machine keeps; the engine in the tools folder is shared."""
    for name in [name for name in os.environ if name.startswith("RUN_LAUNCHER_") and name != "RUN_LAUNCHER_TOOLS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUN_LAUNCHER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> Iterator[Server]:
    """moto's server, for the whole session."""
    yield from _served(request, "s3")


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A PostgreSQL server, for the whole session."""
    yield from _served(request, "postgres")


@pytest.fixture
def s3_place(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty bucket."""
    from servers import ACCOUNT  # noqa: PLC0415 - on sys.path only now

    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    return s3.place()


@pytest.fixture
def postgres_place(postgres: Server) -> Place:
    """An empty database."""
    return postgres.place()


@pytest.fixture(scope="session")
def dockerd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A Docker Engine with the tests' images, one for all processes of the session: no test ends or fills it."""
    from dockerd import absent, in_session  # noqa: PLC0415 - on sys.path only now

    _there_or_skip(request, "docker", absent())
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    common = tmp_path_factory.getbasetemp() if run is None else tmp_path_factory.getbasetemp().parent
    yield from _had(request, in_session(common / f"dockerd-{run}"))


@pytest.fixture
def docker_host(dockerd: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The session's Docker Engine, where launchers of this process and its children find it, and its provider."""
    from plugins.install import lead_to  # noqa: PLC0415 - on sys.path only now

    lead_to(dockerd, tmp_path / "plugins", monkeypatch)
    return dockerd


@pytest.fixture
def own_dockerd(request: pytest.FixtureRequest) -> Iterator[Dockerd]:
    """A Docker Engine with the tests' images for one test alone, which may kill it and start it again."""
    from dockerd import running  # noqa: PLC0415
    from dockerd_setup import cannot  # noqa: PLC0415

    _there_or_skip(request, "docker", cannot())
    yield from _had(request, running())
    with warnings.catch_warnings():  # docker's client leaves each socket open with which it could not connect
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _had(request: pytest.FixtureRequest, daemon: AbstractContextManager[D]) -> Iterator[D]:
    from dockerd_setup import UnavailableError  # noqa: PLC0415

    with ExitStack() as stack:
        try:
            value = stack.enter_context(daemon)
        except UnavailableError as error:
            why = str(error)
        else:
            yield value
            return
    _there_or_skip(request, "docker", why)


def _served(request: pytest.FixtureRequest, name: str) -> Iterator[Server]:
    from servers import absent, serving  # noqa: PLC0415 - on sys.path only now

    _there_or_skip(request, name, absent(name))
    with serving(name) as server:
        yield server


def _there_or_skip(request: pytest.FixtureRequest, name: str, why: str | None) -> None:
    """Skip the test if there is a reason why the server is absent, or fail it if it is required."""
    if why is not None:
        (pytest.fail if name in request.config.getoption("--require") else pytest.skip)(f"{name} is absent: {why}")
