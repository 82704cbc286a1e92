"""Has a daemon fetch the image of a run: by the template's pull policy, with its credentials, pinned where asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from docker.utils import parse_repository_tag
from pydantic import JsonValue

from programs.docker.reach import APIError, Daemon, ImageNotFound, NotFound, refusal
from programs.docker.template import DockerTemplate
from programs.references import resolve
from stacks.errors import LaunchFailedError, TimeLimitError


def credentials(template: DockerTemplate, caller: Mapping[str, str]) -> dict[str, str] | None:
    """What the registry is told; None leaves it to Docker's own configuration. Raises UsageError."""
    if template.registry is None:
        return None
    password = resolve("registry.password", template.registry.password, caller)
    return {"username": template.registry.username, "password": password}


def fetch(daemon: Daemon, template: DockerTemplate, caller: Mapping[str, str], left: timedelta) -> dict[str, JsonValue]:
    """Have the image there; returns what to launch, by digest where it is pinned, and the image's own entrypoint.

    Raises LaunchFailedError with the daemon's reason, TimeLimitError.
    """
    there = None if template.pull == "always" else _look(daemon, template.image)
    if there is None and template.pull == "never":
        message = f"the image {template.image} is not on the Docker daemon at {daemon.host}, and is never pulled"
        raise LaunchFailedError(message)
    if there is None:
        _pull(daemon, template, caller, left)
        there = _look(daemon, template.image)
    there = there or {"Config": {}}
    image = _pinned(template.image, there) if template.pin else template.image
    return {"image": image, "entrypoint": (there["Config"] or {}).get("Entrypoint")}


def of(inspected: Mapping[str, Any], command: Sequence[str]) -> dict[str, JsonValue]:
    """What `fetch` returned for a container that is there, as far as a program with this command asks for it."""
    config = inspected["Config"]
    entrypoint, words = list(config.get("Entrypoint") or []), list(command)
    return {
        "image": config["Image"],
        "entrypoint": entrypoint[: -len(words)] if entrypoint[-len(words) :] == words else [],
    }


def _look(daemon: Daemon, image: str) -> dict[str, Any] | None:
    with daemon.answering():
        try:
            found: dict[str, Any] = daemon.api.inspect_image(image)
        except (ImageNotFound, NotFound):
            return None
    return found


def _pull(daemon: Daemon, template: DockerTemplate, caller: Mapping[str, str], left: timedelta) -> None:
    """Pull the image; the daemon goes on for nobody where the time has passed."""
    repository, tag = parse_repository_tag(template.image)
    auth, platform = credentials(template, caller), template.platform or None
    try:
        with daemon.answering():
            told = daemon.api.pull(
                repository, tag or "latest", stream=True, decode=True, auth_config=auth, platform=platform
            )
            _follow(told, template.image, left)
    except APIError as error:
        message = f"the image {template.image} cannot be pulled: {refusal(error)}"
        raise LaunchFailedError(message) from error


def _follow(told: Any, image: str, left: timedelta) -> None:  # noqa: ANN401 - lines of JSON
    deadline = time.monotonic() + left.total_seconds()
    for line in told:
        if "error" in line:
            message = f"the image {image} cannot be pulled: {line['error']}"
            raise LaunchFailedError(message)
        if time.monotonic() > deadline:
            told.close()
            message = f"the image {image} was not pulled in time"
            raise TimeLimitError(message)


def _pinned(image: str, there: Mapping[str, Any]) -> str:
    """The image by its digest in its own repository; one that was never in a registry by its id."""
    wanted = _repository(image)
    digests = [str(each) for each in there.get("RepoDigests") or [] if _repository(each) == wanted]
    return digests[0] if digests else str(there["Id"])


def _repository(image: str) -> str:
    """The repository in its short form, as the daemon shows it."""
    return str(parse_repository_tag(image)[0]).removeprefix("docker.io/").removeprefix("library/")
