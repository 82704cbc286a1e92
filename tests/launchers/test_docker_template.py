"""Every field of a Docker template arrives at the daemon, and what was launched is unchanged at a preview."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from dockerd import Daemon, Dockerd
from targets import DockerRow

from launchers.launcher import RunLauncher
from programs.docker.template import DockerTemplate
from stacks.errors import LaunchFailedError
from stacks.handle import WorkerHandle

LIMIT: Final = timedelta(seconds=60)
MIB: Final = 2**20
DISK: Final = next(str(path) for path in sorted(Path("/dev").iterdir()) if path.is_block_device())
Look = Callable[[dict[str, Any], dict[str, Any]], object]
"""What is looked at in a container's Config and HostConfig."""


def host(name: str) -> Look:
    return lambda _, there: there[name]


def config(name: str) -> Look:
    return lambda there, _: there.get(name)


RICH: Final[dict[str, tuple[Any, Look, Any]]] = {
    "image": ("busybox:local", config("Image"), "busybox:local"),
    "platform": ("linux", lambda *_: "", ""),
    "entrypoint": (["/bin/env", "-"], config("Entrypoint"), ["/bin/env", "-"]),
    "user": ("1000:1000", config("User"), "1000:1000"),
    "working_dir": ("/etc", config("WorkingDir"), "/etc"),
    "stop_signal": ("SIGUSR1", config("StopSignal"), "SIGUSR1"),
    "grace": ("7s", config("StopTimeout"), 7),
    "ports": (
        [{"container": 53, "protocol": "udp", "ip": "127.0.0.1"}],
        host("PortBindings"),
        {"53/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
    ),
    "hostname": ("worker", config("Hostname"), "worker"),
    "domainname": ("example", config("Domainname"), "example"),
    "dns": (["192.0.2.1"], host("Dns"), ["192.0.2.1"]),
    "dns_search": (["example.org"], host("DnsSearch"), ["example.org"]),
    "dns_opt": (["ndots:2"], host("DnsOptions"), ["ndots:2"]),
    "extra_hosts": ({"db": "192.0.2.7"}, host("ExtraHosts"), ["db:192.0.2.7"]),
    "tmpfs": ({"/t": "size=1m"}, host("Tmpfs"), {"/t": "size=1m"}),
    "read_only": (True, host("ReadonlyRootfs"), True),
    "shm_size": ("32Mi", host("ShmSize"), 32 * MIB),
    "memory_reservation": ("16Mi", host("MemoryReservation"), 16 * MIB),
    "memory_swap": ("64Mi", host("MemorySwap"), 64 * MIB),
    "resources": (
        {"cpu": "500m", "memory": "32Mi"},
        lambda _, there: (there["NanoCpus"], there["Memory"]),
        (500_000_000, 32 * MIB),
    ),
    "cpu_shares": (512, host("CpuShares"), 512),
    "cpuset": ("0", host("CpusetCpus"), "0"),
    "devices": (
        [{"host": "/dev/null", "container": "/dev/nothing", "permissions": "r"}],
        host("Devices"),
        [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing", "CgroupPermissions": "r"}],
    ),
    "device_cgroup_rules": (["c 1:3 r"], host("DeviceCgroupRules"), ["c 1:3 r"]),
    "device_rates": (
        {"read_bps": {DISK: "1Mi"}, "write_bps": {DISK: "2Mi"}, "read_iops": {DISK: 10}, "write_iops": {DISK: 20}},
        lambda _, there: [there[f"BlkioDevice{what}"] for what in ("ReadBps", "WriteBps", "ReadIOps", "WriteIOps")],
        [[{"Path": DISK, "Rate": rate}] for rate in (MIB, 2 * MIB, 10, 20)],
    ),
    "ulimits": (
        [{"name": "nofile", "soft": 100, "hard": 200}],
        host("Ulimits"),
        [{"Name": "nofile", "Soft": 100, "Hard": 200}],
    ),
    "sysctls": (
        {"net.ipv4.ip_unprivileged_port_start": "1"},
        host("Sysctls"),
        {"net.ipv4.ip_unprivileged_port_start": "1"},
    ),
    "init": (True, host("Init"), True),
    "cap_add": (["NET_ADMIN"], host("CapAdd"), ["NET_ADMIN"]),
    "cap_drop": (["MKNOD"], host("CapDrop"), ["MKNOD"]),
    "security_opt": (["no-new-privileges"], host("SecurityOpt"), ["no-new-privileges"]),
    "group_add": (["5"], host("GroupAdd"), ["5"]),
    "ipc": ("private", host("IpcMode"), "private"),
    "runtime": ("runc", host("Runtime"), "runc"),
    "tty": (True, config("Tty"), True),
    "log": (
        {"driver": "json-file", "options": {"max-size": "1m"}},
        host("LogConfig"),
        {"Type": "json-file", "Config": {"max-size": "1m"}},
    ),
    "healthcheck": (
        {"test": ["CMD", "true"], "interval": "2s", "timeout": "1500ms", "start_period": "1m", "retries": 4},
        config("Healthcheck"),
        {
            "Test": ["CMD", "true"],
            "Interval": 2 * 10**9,
            "Timeout": 1_500_000_000,
            "StartPeriod": 60 * 10**9,
            "Retries": 4,
        },
    ),
}
"""Fields that go together in one container: what is given, where it is looked for, and what is there then."""
APART: Final[dict[str, tuple[dict[str, Any], Look, Any]]] = {
    "privileged": ({"privileged": True}, host("Privileged"), True),
    "network_mode": ({"network_mode": "host"}, host("NetworkMode"), "host"),
    "userns_mode": ({"userns_mode": "host"}, host("UsernsMode"), "host"),
    "pid": ({"pid": "host"}, host("PidMode"), "host"),
    "cgroup": ({"cgroup": "private"}, host("CgroupnsMode"), "private"),
    "memory alone": ({"resources": {"memory": "32Mi"}}, host("MemorySwap"), 32 * MIB),
}
"""Fields that do not go with others."""
ELSEWHERE: Final = {
    "env", "env_files", "secrets",  # test_what_a_worker_finds_in_its_environment
    "labels", "networks", "volumes",  # below, and test_docker_shared.py
    "pull", "pin", "registry",  # test_docker_images.py
    "gpus", "cgroup_parent", "storage_opt",  # below
}  # fmt: skip


def inspected(row: DockerRow, handle: WorkerHandle) -> dict[str, Any]:
    there: dict[str, Any] = row.container(handle).attrs
    return there


def planned(launcher: RunLauncher[Any], handle: WorkerHandle) -> set[str]:
    """What an `up` of the run would do."""
    workspace = launcher.workspace
    args = launcher.args_again(launcher.record(handle), workspace.backend.open())
    return {each.operation for each in workspace.engine.preview(launcher.deployment(args), LIMIT)}


def test_every_field_of_the_template_has_a_test() -> None:
    own = set(DockerTemplate.__annotations__) - {"LATER", "DURABLE", "target"}

    assert own - RICH.keys() - APART.keys() == ELSEWHERE


def test_every_field_arrives_at_the_daemon_and_is_unchanged_at_a_preview(docker_row: DockerRow) -> None:
    network = docker_row.client.networks.create("rich-net")
    try:
        given = {name: value for name, (value, _, _) in RICH.items()}
        launcher = docker_row.launcher(
            **given,
            labels={"team": "data", "contract-row": docker_row._mark},
            networks=["rich-net"],
            volumes=[{"mount": "/h", "host": "/etc/hosts", "read_only": True}, {"mount": "/own", "create": "run"}],
        )
        run = docker_row.run("sleep 600").model_copy(update={"command": ("sleep", "600")})
        handle = launcher.launch(run).handle
        there = inspected(docker_row, handle)
        changes = planned(launcher, handle)
        launcher.terminate(handle)
    finally:
        network.remove()

    seen = {name: look(there["Config"], there["HostConfig"]) for name, (_, look, _) in RICH.items()}
    assert seen == {name: expected for name, (_, _, expected) in RICH.items()}
    assert there["Config"]["Cmd"] == ["sleep", "600"]
    assert there["Config"]["Labels"]["team"] == "data"
    assert sorted(there["HostConfig"]["Binds"]) == ["/etc/hosts:/h:ro", f"run-{run.id}.1:/own:rw"]
    assert there["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert list(there["NetworkSettings"]["Networks"]) == ["rich-net"]
    assert changes == {"same"}


@pytest.mark.parametrize("name", APART)
def test_what_goes_with_nothing_else_arrives_too(docker_row: DockerRow, name: str) -> None:
    fields, look, expected = APART[name]
    launcher = docker_row.launcher(**fields, grace="0s")
    try:
        handle = launcher.launch(docker_row.run("sleep 600")).handle
    except LaunchFailedError as error:
        if "operation not permitted" not in str(error):
            raise
        pytest.skip(f"this machine does not allow it: {error}")
    there = inspected(docker_row, handle)

    assert look(there["Config"], there["HostConfig"]) == expected
    assert planned(launcher, handle) == {"same"}


def test_a_worker_is_below_the_templates_cgroup(docker_row: DockerRow, dockerd: Daemon) -> None:
    if not isinstance(dockerd, Dockerd):
        pytest.skip("the machine's own daemon would keep the group")
    parent = f"/{dockerd.folder.name}/of-a-template"
    launcher = docker_row.launcher(cgroup_parent=parent, grace="0s")
    handle = launcher.launch(docker_row.run("sleep 600")).handle

    assert inspected(docker_row, handle)["HostConfig"]["CgroupParent"] == parent


def test_a_limit_of_the_disk_is_refused_by_a_storage_driver_that_has_none(docker_row: DockerRow) -> None:
    info = docker_row.client.info()
    if info["Driver"] != "overlay2" or dict(info["DriverStatus"])["Backing Filesystem"] == "xfs":
        pytest.skip("the daemon's disk may have quotas")

    with pytest.raises(LaunchFailedError, match=r"refused it: .*(storage|quota|size)"):
        docker_row.launcher(storage_opt={"size": "1G"}).launch(docker_row.run("true"))


def test_what_a_worker_finds_in_its_environment(
    docker_row: DockerRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.env").write_text("# said\n\nFROM_FILE=a b\nOVER=file\nCALLERS\nNOBODYS\n")
    (tmp_path / "token").write_text("of a file\n")
    monkeypatch.setenv("CALLERS", "own")
    monkeypatch.setenv("PASSWORD_HERE", "s3cr3t $x")
    monkeypatch.setenv("NOT_FOR_WORKERS", "x")
    launcher = docker_row.launcher(
        env_files=[str(tmp_path / "file.env")],
        env={"OVER": "template", "FIXED": "é\n'"},
        secrets={"PASSWORD": {"env": "PASSWORD_HERE"}, "TOKEN": {"file": str(tmp_path / "token")}},
    )
    run = docker_row.run("env -0", env={"RUNS": "own=1"})
    launcher.wait(launcher.launch(run).handle, timeout=LIMIT)
    found = dict(each.split("=", 1) for each in docker_row.output(run.id).decode().split("\0") if each)

    expected = {
        "FROM_FILE": "a b",
        "OVER": "template",
        "CALLERS": "own",
        "FIXED": "é\n'",
        "PASSWORD": "s3cr3t $x",
        "RUNS": "own=1",
        "RUN_LAUNCHER_RUN_ID": run.id,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["TOKEN"].strip() == "of a file"
    assert not {"NOBODYS", "NOT_FOR_WORKERS"} & found.keys()


def test_no_secret_is_in_a_state_a_record_a_file_or_a_process_list(
    docker_row: DockerRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD_HERE", "hush-template")
    monkeypatch.setenv("REGISTRY_HERE", "hush-registry")
    launcher = docker_row.launcher(
        secrets={"PASSWORD": {"env": "PASSWORD_HERE"}},
        registry={"username": "u", "password": {"env": "REGISTRY_HERE"}},
    )
    run = docker_row.run("sleep 600", env={"OWN": "hush-run"})
    launcher.launch(run)
    while_it_runs = docker_row.public_traces()
    away = docker_row.launcher(image="127.0.0.1:1/x", registry=launcher.template.registry)
    with pytest.raises(LaunchFailedError, match="cannot be pulled") as caught:
        away.launch(docker_row.run("true", env={"OWN": "hush-run"}))
    said = [repr(caught.value), caught.value.details, str(launcher.why(run.id)), docker_row.output(run.id).decode()]
    launcher.terminate(run.id)
    traces = while_it_runs + docker_row.public_traces() + "\n".join(said).encode()

    assert [hush for hush in (b"hush-template", b"hush-registry", b"hush-run") if hush in traces] == []
