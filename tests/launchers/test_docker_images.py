"""How an image comes: pull policies, credentials, digests and platforms, with a registry that a daemon pulls from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from docker.errors import ImageNotFound
from images import BUSYBOX
from registry import Registry, registry
from targets import DockerRow, terminate_all

from stacks.errors import LaunchFailedError, TimeLimitError, UsageError
from stacks.handle import WorkerState

LIMIT: Final = timedelta(seconds=60)
SECRET: Final = "hush-hush"  # noqa: S105 - a password that is looked for


@pytest.fixture(scope="module")
def saved(dockerd: Any) -> bytes:  # noqa: ANN401 - a daemon
    """The tests' image, as `docker save` has it."""
    with contextlib.closing(dockerd.client()) as client:
        return b"".join(client.images.get(BUSYBOX).save(named=True))


@pytest.fixture
def served(docker_row: DockerRow, saved: bytes) -> Iterator[Registry]:
    """A registry with `etl:1`, whose images the daemon does not have, neither before nor after."""
    with registry() as made:
        made.add("etl", "1", saved, Env=["SAID=first", "PATH=/bin"])
        yield made
        terminate_all(docker_row.launcher(grace="0s"))
        for image in docker_row.client.images.list():
            if any(made.address in each for each in (*image.attrs["RepoTags"], *image.attrs["RepoDigests"])):
                docker_row.client.images.remove(image.id, force=True)


def said(row: DockerRow, **template: object) -> str:
    """What a run of the image says of itself."""
    launcher = row.launcher(**template)
    run = row.run('echo "$SAID"')
    status = launcher.wait(launcher.launch(run).handle, timeout=LIMIT)
    assert status.state is WorkerState.SUCCEEDED
    words = row.output(run.id).decode().strip()
    launcher.terminate(run.id)
    return words


@pytest.mark.parametrize(("pull", "after"), [("missing", "first"), ("always", "second")])
def test_a_tag_that_moved_is_followed_by_always_alone(
    docker_row: DockerRow, served: Registry, saved: bytes, pull: str, after: str
) -> None:
    image = f"{served.address}/etl:1"
    first = said(docker_row, image=image, pull=pull)
    served.add("etl", "1", saved, Env=["SAID=second", "PATH=/bin"])
    asked = len(served.asked)

    second = said(docker_row, image=image, pull=pull)

    assert (first, second) == ("first", after)
    assert (len(served.asked) > asked) is (pull == "always")


def test_an_image_that_is_never_pulled_is_not_asked_for(docker_row: DockerRow, served: Registry) -> None:
    with pytest.raises(LaunchFailedError, match="is never pulled"):
        docker_row.launcher(image=f"{served.address}/etl:1", pull="never").launch(docker_row.run("true"))

    assert served.asked == []


def test_what_the_registry_does_not_have_is_told_with_its_reason(docker_row: DockerRow, served: Registry) -> None:
    with pytest.raises(LaunchFailedError, match=r"etl:absent cannot be pulled: manifest (unknown|for .* not found)"):
        docker_row.launcher(image=f"{served.address}/etl:absent").launch(docker_row.run("true"))


# ---- who pulls ----


def registry_of(folder: Path, password: str) -> dict[str, Any]:
    (folder / "password").write_text(password)
    return {"username": "robot", "password": {"file": str(folder / "password")}}


def test_the_right_password_pulls_and_is_kept_nowhere(docker_row: DockerRow, served: Registry, tmp_path: Path) -> None:
    served.account = ("robot", SECRET)
    launcher = docker_row.launcher(image=f"{served.address}/etl:1", registry=registry_of(tmp_path, SECRET))
    handle = launcher.launch(docker_row.run("sleep 600")).handle

    assert docker_row.alive(handle)
    assert SECRET.encode() not in docker_row.public_traces()


def test_a_wrong_password_is_refused_with_the_registrys_reason_and_not_told(
    docker_row: DockerRow, served: Registry, tmp_path: Path
) -> None:
    served.account = ("robot", "another")
    launcher = docker_row.launcher(image=f"{served.address}/etl:1", registry=registry_of(tmp_path, SECRET))

    with pytest.raises(
        LaunchFailedError, match=r"cannot be pulled: .*(unauthorized|authentication required|no basic auth)"
    ) as caught:
        launcher.launch(docker_row.run("true"))

    assert SECRET not in f"{caught.value} {caught.value.details}"
    assert SECRET.encode() not in docker_row.public_traces()
    assert [*docker_row.leftovers(), *docker_row.stacks()] == []


def test_a_password_that_is_not_there_is_refused_before_anything(docker_row: DockerRow, served: Registry) -> None:
    account = {"username": "robot", "password": {"env": "ABSENT_HERE"}}

    with pytest.raises(UsageError, match="ABSENT_HERE"):
        docker_row.launcher(image=f"{served.address}/etl:1", registry=account).launch(docker_row.run("true"))

    assert not docker_row.home.exists()


# ---- which image it is ----


def test_a_pinned_image_is_the_one_that_its_tag_has_at_the_launch(
    docker_row: DockerRow, served: Registry, saved: bytes
) -> None:
    digest = served.add("etl", "1", saved, Env=["SAID=pinned", "PATH=/bin"])
    launcher = docker_row.launcher(image=f"{served.address}/etl:1", pin=True)
    handle = launcher.launch(docker_row.run("sleep 600")).handle

    assert docker_row.container(handle).attrs["Config"]["Image"] == f"{served.address}/etl@{digest}"
    assert said(docker_row, image=f"{served.address}/etl@{digest}") == "pinned"


def test_a_pinned_image_that_was_never_in_a_registry_is_known_by_its_id(docker_row: DockerRow) -> None:
    handle = docker_row.launcher(pin=True).launch(docker_row.run("sleep 600")).handle

    assert docker_row.container(handle).attrs["Config"]["Image"] == docker_row.client.images.get(BUSYBOX).id


def test_an_image_of_another_platform_is_told_and_not_run(docker_row: DockerRow) -> None:
    template = {"image": BUSYBOX, "platform": "linux/s390x", "pull": "never"}

    with pytest.raises(LaunchFailedError, match=f"{BUSYBOX} for linux/s390x is not on the Docker daemon"):
        docker_row.launcher(**template).launch(docker_row.run("true"))


def test_an_image_of_the_platform_asked_for_is_fetched_over_another_one(
    docker_row: DockerRow, served: Registry, saved: bytes, tmp_path: Path
) -> None:
    """By the launcher, with its credentials: the provider would ask as nobody."""
    image = f"{served.address}/etl:1"
    served.add("etl", "1", saved, architecture="s390x", Env=["SAID=strange", "PATH=/bin"])
    docker_row.client.images.pull(image, platform="linux/s390x")
    here = docker_row.client.images.get(BUSYBOX).attrs["Architecture"]
    served.add("etl", "1", saved, Env=["SAID=ours", "PATH=/bin"])
    served.account = ("robot", SECRET)

    words = said(docker_row, image=image, platform=f"linux/{here}", registry=registry_of(tmp_path, SECRET))

    assert words == "ours"


def test_a_registry_that_does_not_answer_is_given_up_at_the_time_limit(docker_row: DockerRow, served: Registry) -> None:
    served.goes_on.clear()
    launcher = docker_row.launcher(image=f"{served.address}/etl:1")
    run, begun = docker_row.run("true"), time.monotonic()

    with pytest.raises(TimeLimitError, match="was not launched within 2 s; nothing was left"):
        launcher.launch(run, timeout=timedelta(seconds=2))

    assert time.monotonic() - begun < 10
    assert [*docker_row.leftovers(), *docker_row.stacks()] == []
    with pytest.raises(ImageNotFound):
        docker_row.client.images.get(f"{served.address}/etl:1")
