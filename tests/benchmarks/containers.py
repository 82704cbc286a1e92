"""Containers: our launcher side by side with the daemon's plain API, and in Dagster with DockerRunLauncher."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from launchers import Run, load_launcher
from launchers.settings import Config, EngineSettings
from launchers.testing.contract import eventually
from programs.docker.states import time_of
from programs.docker.template import DockerTemplate

from .meter import Sample, measure, middle
from .on_dagster import launch_timed
from .place import Place
from .table import Table, milliseconds, ratio

if TYPE_CHECKING:
    from dagster_site import Desk
    from dockerd import Daemon

PLAIN: Final = "the daemon's API: create, start; stop, remove"
PREVIOUS: Final = "DockerRunLauncher"
OURS: Final = "run-launcher"
JOB: Final = "good_in_process"
_WORKER: Final = ("sh", "-c", 'trap "exit 0" TERM; sleep 600 & wait')
_GRACE: Final = 10
_MARKS: Final = ("launch_run", "RUN_START", "RUN_SUCCESS", "container ended")


def containers(place: Place, rounds: int) -> Table:
    """Launch and termination of one container, by the daemon's API and by our launcher in turn."""
    from images import BUSYBOX  # noqa: PLC0415 - beside the tests

    table = Table(
        f"A container's life, median of {rounds}; wall/CPU in ms", ("way", "launch", "x API", "terminate", "x API")
    )
    with _daemon(place) as (daemon, ours), contextlib.closing(daemon.client()) as client:
        engine = EngineSettings.model_validate({"kind": "warm"})
        template = DockerTemplate.model_validate({"image": BUSYBOX, "pull": "never", "grace": f"{_GRACE}s"})
        launcher = load_launcher(template, config=Config(home=place.home("containers"), engine=engine))

        def make(name: str) -> None:
            client.api.start(client.api.create_container(BUSYBOX, list(_WORKER), name=name))

        def end(name: str) -> None:
            client.api.stop(name, timeout=_GRACE)
            client.api.remove_container(name)

        ways: dict[str, tuple[Callable[[str], object], Callable[[str], object]]] = {
            PLAIN: (make, end),
            ours: (lambda name: launcher.launch(Run(id=name, command=_WORKER)), launcher.terminate),
        }
        samples: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for index, (name, (launch, terminate)) in enumerate(ways.items()):
                place.say(f"round {number} of {rounds}: {name}")
                run_id = f"life-{index}-{number}"
                both = measure(lambda: launch(run_id)), measure(lambda: terminate(run_id))  # noqa: B023
                if number:
                    samples[name].append(both)
    middles = {name: [middle(part) for part in zip(*pairs, strict=True)] for name, pairs in samples.items()}
    launched, ended = middles[PLAIN]
    for name, (first, second) in middles.items():
        table.add(name, milliseconds(first), ratio(first, launched), milliseconds(second), ratio(second, ended))
    return table


def docker_runs(place: Place, rounds: int) -> Table:
    """One run of Dagster after the other, each in a container, by DockerRunLauncher and by ours in turn."""
    samples: dict[str, list[tuple[float, ...]]] = {}
    with _daemon(place) as (daemon, ours), _desks(ours) as desks:
        for number in range(rounds + 2):  # the first two bring what every daemon brings once
            for name, desk in desks.items():
                place.say(f"round {number} of {rounds + 1}: {name}")
                sample = _one(daemon, desk)
                if number > 1:
                    samples.setdefault(name, []).append(sample)
    table = Table(
        f"One run of Dagster in a container, median of {rounds}; in ms from the call of launch_run",
        ("launcher", *_MARKS),
    )
    middles = {name: [median(each) for each in zip(*taken, strict=True)] for name, taken in samples.items()}
    for name, values in middles.items():
        table.add(name, *(f"{value * 1000:.0f}" for value in values))
    table.add("ratio", *(f"{one / other:.3f}" for one, other in zip(middles[ours], middles[PREVIOUS], strict=True)))
    return table


@contextmanager
def _daemon(place: Place) -> Iterator[tuple[Daemon, str]]:
    """A Docker Engine with the provider's plugin on PATH, and our name: it says so where the plugin is a stand-in."""
    from dockerd import running  # noqa: PLC0415 - beside the tests
    from plugins.install import provide, published  # noqa: PLC0415

    name = OURS if published("docker") else f"{OURS}, stand-in plugin"
    before = dict(os.environ)
    with running() as daemon:
        folder = provide(place.folder / "plugins", "docker")
        os.environ.update(DOCKER_HOST=daemon.url, PATH=os.pathsep.join([str(folder), os.environ["PATH"]]))
        try:
            yield daemon, name
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _desks(ours: str) -> Iterator[dict[str, Desk]]:
    """An instance with DockerRunLauncher, and one with ours and the warm engine: same image, network and mounts."""
    from dagster_site import Site, code_server, short_folder  # noqa: PLC0415 - beside the tests, and loads dagster
    from images import WORKER, mounts  # noqa: PLC0415

    with ExitStack() as held:
        code = held.enter_context(code_server(Path(held.enter_context(short_folder()))))
        desks = {}
        for name in (PREVIOUS, ours):
            site = Site(Path(held.enter_context(short_folder())) / "site", code, "warm", {"template": "etl"})
            env = {"SITE_FOLDER": str(site.folder / "done")}
            folders = [*((str(each.host), each.read_only) for each in mounts()), (str(site.folder), False)]
            volumes = [{"host": path, "mount": path, "read_only": fixed} for path, fixed in folders]
            site.template(
                "etl", target="docker", image=WORKER, pull="never", network_mode="host", env=env, volumes=volumes
            )
            kwargs = {
                "network_mode": "host",
                "volumes": [f"{path}:{path}{':ro' if fixed else ''}" for path, fixed in folders],
            }
            config = {"image": WORKER, "env_vars": [f"{key}={value}" for key, value in env.items()]}
            there = {
                "module": "dagster_docker",
                "class": PREVIOUS,
                "config": {**config, "container_kwargs": kwargs},
            }
            site.configure(there if name == PREVIOUS else None)
            desks[name] = held.enter_context(site.desk())
        yield desks


def _one(daemon: Daemon, desk: Desk) -> tuple[float, ...]:
    run = desk.create(JOB)
    launched = launch_timed(desk, run.run_id)
    desk.ends(run.run_id, as_="SUCCESS")
    with contextlib.closing(daemon.client()) as client:
        assert eventually(lambda: not client.containers.list())
        container = client.containers.list(all=True)[0]
        ended = time_of(container.attrs["State"]["FinishedAt"])
        container.remove()
    assert ended is not None
    stats = desk.instance.get_run_stats(run.run_id)
    assert stats.start_time is not None
    assert stats.end_time is not None
    return tuple(mark - launched[0] for mark in (launched[1], stats.start_time, stats.end_time, ended.timestamp()))
