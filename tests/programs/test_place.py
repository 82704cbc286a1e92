from __future__ import annotations

import os
import subprocess
import sys

import pytest

from programs.provider.place import Place, boot_id, pid_namespace


def test_a_place_is_read_as_it_was_written() -> None:
    own = Place.own()

    assert Place.parse(str(own)) == own
    assert own.here
    assert not own.restarted


def test_the_place_of_a_handle_of_the_first_release_is_read() -> None:
    place = Place.parse(f"host:-/{boot_id()}/{pid_namespace()}")

    assert place is not None
    assert place.here


@pytest.mark.parametrize("text", ["", "docker:ABCD", "host:a/b", "host:a/b/c", "elsewhere:1"])
def test_the_place_of_another_target_is_none_of_ours(text: str) -> None:
    assert Place.parse(text) is None


def test_a_host_that_changes_its_name_stays_the_same_place() -> None:
    renamed = Place("0" * 16, boot_id(), pid_namespace(), os.geteuid(), "renamed")

    assert renamed.here


def test_another_user_of_the_host_is_another_place() -> None:
    theirs = Place("-", boot_id(), pid_namespace(), os.geteuid() + 1, "vm")

    assert not theirs.here
    assert theirs.in_words() == f"this host, as user {os.geteuid() + 1}"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes a pid namespace, as root on Linux")
def test_a_container_is_another_place_and_says_where_it_is() -> None:
    code = "from programs.provider.place import Place; print(Place.own())"
    command = ["unshare", "--pid", "--fork", "--uts", "sh", "-c", 'hostname etl-3 && exec "$@"', "sh"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=True)

    place = Place.parse(done.stdout.strip())

    assert place is not None
    assert not place.here
    assert place.in_words() == "this host (etl-3), in another container"
