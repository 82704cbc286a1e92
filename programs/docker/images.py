"""Has a daemon fetch the image of a run: by the template's pull policy, with its credentials, pinned where asked."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
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
    if there is None or not _is_for(template.platform, there):
        if template.pull == "never":
            which = template.image if there is None else f"{template.image} for {template.platform}"
            message = f"the image {which} is not on the Docker daemon at {daemon.host}, and is never pulled"
            raise LaunchFailedError(message)
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


def _is_for(platform: str, image: Mapping[str, Any]) -> bool:
    """True of an image for this platform, which is os[/architecture[/variant]]."""
    told = [image.get(name) or "" for name in ("Os", "Architecture", "Variant")]
    wanted = platform.split("/") if platform else []
    return all(part in {"", there} for part, there in zip(wanted, told, strict=False))


def _pull(daemon: Daemon, template: DockerTemplate, caller: Mapping[str, str], left: timedelta) -> None:
    """Pull the image, in a thread of its own: of a registry that does not answer, the daemon says nothing at all."""
    auth, pulled, is_late = credentials(template, caller), Future[None](), threading.Event()

    def pull() -> None:
        try:
            _follow(daemon, template, auth, is_late)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            pulled.set_exception(error)
        else:
            pulled.set_result(None)

    threading.Thread(target=pull, daemon=True).start()
    try:
        pulled.result(left.total_seconds())
    except TimeoutError as error:
        is_late.set()
        message = f"the image {template.image} was not pulled in time"
        raise TimeLimitError(message) from error


def _follow(daemon: Daemon, template: DockerTemplate, auth: dict[str, str] | None, is_late: threading.Event) -> None:
    """Have the daemon pull to the end, or until it is late: then it goes on for nobody."""
    repository, tag = parse_repository_tag(template.image)
    platform = template.platform or None
    reason = None
    try:
        with daemon.answering():
            for line in daemon.api.pull(
                repository, tag or "latest", stream=True, decode=True, auth_config=auth, platform=platform
            ):
                reason = line.get("error")
                if reason or is_late.is_set():
                    break
    except APIError as error:
        reason = refusal(error)
    if reason:
        message = f"the image {template.image} cannot be pulled: {reason}"
        raise LaunchFailedError(message)


def _pinned(image: str, there: Mapping[str, Any]) -> str:
    """The image by its digest in its own repository; one that was never in a registry by its id."""
    wanted = _repository(image)
    digests = [str(each) for each in there.get("RepoDigests") or [] if _repository(each) == wanted]
    return digests[0] if digests else str(there["Id"])


def _repository(image: str) -> str:
    """The repository in its short form, as the daemon shows it."""
    return str(parse_repository_tag(image)[0]).removeprefix("docker.io/").removeprefix("library/")
