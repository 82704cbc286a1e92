"""Finding and bringing the CLI: with the executables that a user may have on PATH, and once for real."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stacks import bring, probe, tools
from stacks.errors import SetupError
from stacks.setup import Cli, ensure_cli, ensure_language_host, find_cli, tools_folder

ROOT = Path(__file__).parents[2]
# What the fakes below call; a `pulumi` or `go` of this machine is in none of these tests but the last.
SYSTEM_TOOLS = ("cat", "chmod", "cp", "env", "sh", "sleep", "touch")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NO_NETWORK = "http://127.0.0.1:9"
ENSURE = """
import sys
from pathlib import Path
from stacks.setup import ensure_cli
print(ensure_cli(Path(sys.argv[1]), lambda line: print(line, file=sys.stderr, flush=True)).origin)
"""
FAKE_INSTALLER = """
import pathlib

class PulumiCommand:
    @classmethod
    def install(cls, root, version):
        path = pathlib.Path(root, "bin", "pulumi")
        path.write_text(f"#!/bin/sh\\necho v{version}\\n")
        path.chmod(0o755)
"""


class Machine:
    """A user's machine: what is on PATH, a tools folder, and what progress was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools = root / "tools"
        self.bin = root / "bin"
        self.calls = root / "calls"
        self.told: list[str] = []
        self.bin.mkdir()
        self.calls.touch()
        for name in SYSTEM_TOOLS:
            (self.bin / name).symlink_to(shutil.which(name) or pytest.fail(f"this machine has no {name}"))

    def plant(self, name: str, script: str, folder: str = "bin") -> Path:
        """Put an executable shell script on PATH, or elsewhere; each call of it is noted."""
        path = self.root / folder / name
        path.parent.mkdir(exist_ok=True)
        noted = f'echo "{name} $*" >> {shlex.quote(str(self.calls))}'
        path.write_text(f"#!/bin/sh\n{noted}\n{script}\n")
        path.chmod(0o755)
        return path

    def plant_pulumi(self, version: str, folder: str = "bin") -> Path:
        return self.plant("pulumi", f"echo v{version}", folder)

    def plant_go(self, before: str = "") -> Path:
        """A `go` whose builds are a script that tells the version asked for."""
        return self.plant("go", f'{before}\nwhile [ "$1" != -o ]; do shift; done\n{_write_pulumi("$2")}')

    def find(self) -> Cli | None:
        return find_cli(self.tools)

    def ensure(self) -> Cli:
        return ensure_cli(self.tools, self.told.append)

    def called(self, name: str) -> int:
        return sum(line.split()[0] == name for line in self.calls.read_text().splitlines())

    def left_over(self) -> list[str]:
        return [path.name for path in self.tools.glob("part-*")]


def _write_pulumi(target: str) -> str:
    return f"printf '#!/bin/sh\\necho v{bring.VERSION}\\n' > {target}; exec chmod 755 {target}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(machine.bin))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, NO_NETWORK)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return machine


@pytest.mark.smoke
def test_a_supported_pulumi_on_path_is_used(machine: Machine) -> None:
    path = machine.plant_pulumi("3.200.1")

    assert machine.ensure() == Cli(path, "3.200.1", "path")
    assert machine.told == []


@pytest.mark.smoke
def test_a_warm_find_starts_no_process_and_takes_less_than_five_milliseconds(machine: Machine) -> None:
    machine.plant_pulumi("3.200.1")
    cold = machine.find()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        warm = machine.find()
        seconds.append(time.perf_counter() - started)

    assert warm == cold
    assert machine.called("pulumi") == 1
    assert min(seconds) < 0.005


def test_a_replaced_pulumi_is_asked_again(machine: Machine) -> None:
    machine.plant_pulumi("3.200.1")
    machine.find()
    machine.bin.joinpath("pulumi").unlink()
    machine.plant_pulumi("3.201.10")
    found = machine.find()

    assert found
    assert found.version == "3.201.10"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 1, "supported": null, "answers": 7}'])
def test_a_damaged_cache_is_made_anew(machine: Machine, damage: str) -> None:
    machine.plant_pulumi("3.200.1")
    machine.tools.mkdir()
    (machine.tools / "cli.json").write_text(damage)
    machine.find()

    assert machine.find()
    assert machine.called("pulumi") == 1


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("3.180.99", "too old"),
        ("3.181.0-alpha.1", "too old"),
        ("2.9.0", "too old"),
        ("4.0.0", "too new"),
        ("4.0.0-alpha.1", "too new"),
        ("10.0.0", "too new"),
    ],
)
def test_an_unsupported_version_is_skipped_and_progress_says_why(machine: Machine, version: str, why: str) -> None:
    path = machine.plant_pulumi(version)
    machine.plant_go()
    cli = machine.ensure()

    assert cli.origin == "built"
    assert f"Not using {path}: it is version {version}: {why}" in machine.told[0]


@pytest.mark.parametrize("version", [probe.SUPPORTED[0], "3.259.0", "3.999.0", "3.272.0-alpha.xbc", "3.259.0+dirty"])
def test_versions_within_the_bounds_are_used(machine: Machine, version: str) -> None:
    machine.plant_pulumi(version)
    found = machine.find()

    assert found
    assert found.version == version


def test_a_supported_one_later_on_path_is_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plant_pulumi("3.100.0")
    later = machine.plant_pulumi("3.200.0", folder="later")
    monkeypatch.setenv("PATH", f"{machine.bin}:{later.parent}")
    first, second = machine.ensure(), machine.ensure()

    assert first == second == Cli(later, "3.200.0", "path")
    assert len(machine.told) == 1, "a known skip is not told again"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no such backend >&2; exit 1", "ended with exit code 1: no such backend"),
        ("sleep 600 & wait", "gave no answer within 0.5 s"),
        ("echo hello", "tells no version, but 'hello'"),
        ("exit 0", "tells no version, but ''"),
    ],
)
def test_a_broken_or_hanging_pulumi_is_skipped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(probe, "_LIMIT", 0.5)
    machine.plant("pulumi", script)
    machine.plant_go()
    cli = machine.ensure()

    assert cli.origin == "built"
    assert why in machine.told[0]


def test_a_hanging_one_is_ended_with_its_children(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_LIMIT", 0.5)
    alive = machine.root / "alive"
    os.mkfifo(alive)
    machine.plant("pulumi", f"(echo started; exec sleep 600) > {alive} & wait")
    with os.fdopen(os.open(alive, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        machine.find()
        os.set_blocking(reader.fileno(), True)

        assert reader.read() == "started\n", "the end of the file comes when the last writer is gone"


def test_a_file_that_cannot_be_executed_is_skipped(machine: Machine) -> None:
    machine.bin.joinpath("pulumi").write_bytes(b"\x7fELF")
    machine.bin.joinpath("pulumi").chmod(0o755)
    machine.plant_go()

    assert machine.ensure().origin == "built"
    assert "cannot be executed" in machine.told[0]


def test_a_hanging_one_is_asked_again_only_after_a_while(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plant("pulumi", "exit 1")
    machine.find()
    machine.find()
    asked_at_once = machine.called("pulumi")
    monkeypatch.setattr(probe, "_ASK_AGAIN", 0.0)
    machine.find()

    assert asked_at_once == 1
    assert machine.called("pulumi") == 2


def test_the_users_pulumi_settings_do_not_reach_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_HOME", "/nowhere")
    monkeypatch.setenv("PULUMI_ACCESS_TOKEN", "secret")
    seen = machine.root / "seen"
    machine.plant("pulumi", f"env > {seen}; touch $PULUMI_HOME/log; echo v3.200.0")
    machine.find()
    variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if line.startswith("PULUMI_"))

    home = variables.pop("PULUMI_HOME")
    assert variables == {"PULUMI_SKIP_UPDATE_CHECK": "1"}
    assert not Path(home).exists()


def test_a_configured_path_comes_first(machine: Machine) -> None:
    machine.plant_pulumi("3.200.0")
    own = machine.plant_pulumi("3.210.0", folder="own")

    assert find_cli(machine.tools, configured=own) == Cli(own, "3.210.0", "configured")


@pytest.mark.parametrize("version", ["3.100.0", None])
def test_a_configured_path_that_cannot_be_used_is_an_error(machine: Machine, version: str | None) -> None:
    machine.plant_pulumi("3.200.0")
    own = machine.plant_pulumi(version, folder="own") if version else machine.root / "absent"

    with pytest.raises(SetupError, match=str(own)):
        ensure_cli(machine.tools, machine.told.append, configured=own)


@pytest.mark.smoke
def test_no_download_and_no_go_is_an_error_with_the_ways_out(machine: Machine) -> None:
    machine.plant_pulumi("3.100.0")
    started = time.monotonic()
    with pytest.raises(SetupError) as caught:
        machine.ensure()

    message = str(caught.value)
    assert time.monotonic() - started < 15
    assert "too old" in message
    assert "The official download: " in message
    assert "refused" in message
    assert "there is no `go` on PATH" in message
    for way in ("on PATH (", "reach Pulumi's download", "install Go", "in the configuration"):
        assert way in message
    assert machine.left_over() == []


def test_a_download_that_hangs_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bring, "_STALLED", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SetupError, match="nothing arrived for 1 s"):
            machine.ensure()

    assert any(line.startswith("Downloading the Pulumi CLI") for line in machine.told)


def test_a_download_is_installed_once_and_found_after(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    package = machine.root / "python" / "pulumi"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "automation.py").write_text(FAKE_INSTALLER)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    first, second = machine.ensure(), machine.ensure()

    folder = machine.tools / f"installed-{bring.VERSION}" / "bin"
    assert first == second == Cli(folder / "pulumi", bring.VERSION, "installed", (folder,))
    assert sum("installed in" in line for line in machine.told) == 1
    assert machine.left_over() == []


@pytest.mark.smoke
def test_a_build_is_kept_and_found_in_a_moment(machine: Machine) -> None:
    machine.plant_go()
    first = machine.ensure()
    started = time.perf_counter()
    second = machine.ensure()

    folder = machine.tools / f"built-{bring.VERSION}" / "bin"
    assert time.perf_counter() - started < 0.5
    assert first == second == Cli(folder / "pulumi", bring.VERSION, "built", (folder,))
    assert machine.called("go") == 1
    assert machine.left_over() == []


def test_a_build_is_told_of_after_a_second(machine: Machine) -> None:
    machine.plant_go(before="sleep 1.3")
    machine.ensure()

    assert [line for line in machine.told if line.startswith("Building") and line.endswith(": 1 s")]


def test_go_gets_the_pinned_modules_whatever_the_user_has_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GOFLAGS": "-mod=vendor", "GOWORK": "/go.work", "GOOS": "plan9", "CGO_ENABLED": "1"}.items():
        monkeypatch.setenv(name, value)
    seen = machine.root / "seen"
    machine.plant_go(before=f"env > {seen}; cat go.mod go.sum > {seen}.modules")
    machine.ensure()

    variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if line.startswith(("GO", "CGO")))
    assert variables["GOFLAGS"] == "-mod=readonly -buildvcs=false"
    assert (variables["GOWORK"], variables["CGO_ENABLED"]) == ("off", "0")
    assert "GOOS" not in variables
    pinned = [(ROOT / "stacks" / "warm" / name).read_text() for name in ("go.mod", "go.sum")]
    assert Path(f"{seen}.modules").read_text() == "".join(pinned)


def test_a_failed_build_is_told_in_gos_own_words_and_leaves_nothing(machine: Machine) -> None:
    machine.plant("go", "echo no space left on device >&2; exit 1")
    with pytest.raises(SetupError, match="A build from Go modules: ended with exit code 1: no space left on device"):
        machine.ensure()

    assert machine.left_over() == []
    assert machine.find() is None


def test_a_build_that_gives_another_thing_than_pulumi_is_refused(machine: Machine) -> None:
    machine.plant("go", f'while [ "$1" != -o ]; do shift; done; cp {machine.bin}/sh "$2"')
    with pytest.raises(SetupError, match="what came of it does not answer `pulumi version`"):
        machine.ensure()

    assert machine.find() is None


def test_a_broken_tool_of_ours_is_built_anew(machine: Machine) -> None:
    machine.plant_go()
    cli = machine.ensure()
    cli.path.write_text("#!/bin/sh\nexit 1\n")

    assert machine.find() is None
    assert machine.ensure() == cli
    assert machine.called("go") == 2


@pytest.mark.smoke
def test_after_a_kill_in_the_middle_of_a_build_the_next_call_ends_well(machine: Machine) -> None:
    gate = machine.root / "gate"
    os.mkfifo(gate)
    # The target is there and executable already, and then nothing happens.
    machine.plant("go", f'while [ "$1" != -o ]; do shift; done; cp {machine.bin}/cat "$2"; cat < {gate}')
    with _ensuring(machine) as child, _opened(gate):
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    found_after_kill, left_after_kill = machine.find(), machine.left_over()
    machine.plant_go()
    cli = machine.ensure()

    assert found_after_kill is None
    assert left_after_kill
    assert cli.origin == "built"
    assert machine.left_over() == []


def test_of_two_calls_at_once_one_builds_and_the_other_waits_and_says_so(machine: Machine) -> None:
    gate = machine.root / "gate"
    os.mkfifo(gate)
    machine.plant_go(before=f"cat < {gate}")
    reading, writing = os.pipe()
    with _ensuring(machine, writing) as first, _ensuring(machine, writing) as second, os.fdopen(reading) as told:
        os.close(writing)
        with _opened(gate):
            waited = any("Waiting for another process" in line for line in told)
        outcomes = [child.communicate()[0] for child in (first, second)]

    assert waited
    assert outcomes == ["built\n", "built\n"]
    assert machine.called("go") == 1


def _ensuring(machine: Machine, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ENSURE, str(machine.tools)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


@contextmanager
def _opened(gate: Path) -> Iterator[None]:
    """Hold the writing end of a FIFO; opening it waits for its reader, so the build has begun."""
    with gate.open("w"):
        yield


@contextmanager
def _small_disk(path: Path, options: str) -> Iterator[None]:
    """A file system of its own at `path`, which takes a right to mount."""
    mount, umount = shutil.which("mount", path=SYSTEM_PATH), shutil.which("umount", path=SYSTEM_PATH)
    path.mkdir()
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", path], check=False).returncode:
        pytest.skip("this machine does not let us mount a file system")
    try:
        yield
    finally:
        assert umount
        subprocess.run([umount, path], check=True)


def test_a_read_only_tools_folder_is_one_clear_error(machine: Machine) -> None:
    machine.plant_go()
    with _small_disk(machine.tools, "ro,size=64k"), pytest.raises(SetupError) as caught:
        machine.ensure()

    assert f"The tools folder {machine.tools} cannot be used: " in str(caught.value)
    assert "Read-only file system" in str(caught.value)
    assert tools.TOOLS_VARIABLE in str(caught.value)
    assert machine.called("go") == 0


def test_a_full_disk_is_one_clear_error_before_any_work(machine: Machine) -> None:
    machine.plant_go()
    with (
        _small_disk(machine.tools, "size=64k"),
        pytest.raises(SetupError, match="has 0 MB left, and 300 MB are needed"),
    ):
        machine.ensure()

    assert machine.called("go") == 0


@pytest.mark.smoke
def test_a_tools_folder_that_cannot_be_made_is_one_clear_error(machine: Machine) -> None:
    machine.tools.write_text("a file")

    with pytest.raises(SetupError, match=f"The tools folder {machine.tools} cannot be used"):
        machine.ensure()


def test_a_pulumi_on_path_needs_no_tools_folder(machine: Machine) -> None:
    machine.plant_pulumi("3.200.0")
    machine.tools.write_text("a file")

    assert machine.ensure().origin == "path"


def test_without_go_the_language_host_is_a_warning(machine: Machine) -> None:
    machine.plant_pulumi("3.200.0")
    cli = machine.ensure()

    assert ensure_language_host(cli, machine.tools, machine.told.append) == cli
    assert "launches will" in machine.told[-1]


def test_a_language_host_on_path_is_left_alone(machine: Machine) -> None:
    machine.plant_pulumi("3.200.0")
    for name in bring.LANGUAGE_FILES:
        machine.plant(name, "")
    cli = machine.ensure()

    assert ensure_language_host(cli, machine.tools, machine.told.append) == cli
    assert machine.told == []


def test_the_tools_folder_is_named_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tools.TOOLS_VARIABLE, str(tmp_path))
    named = tools_folder()
    monkeypatch.delenv(tools.TOOLS_VARIABLE)
    default = tools_folder()

    assert named == tmp_path
    assert default.parts[-2:] == ("run-launcher", "tools")
    assert default.is_absolute()


@pytest.mark.smoke
def test_importing_it_loads_no_library() -> None:
    script = (
        "import sys, stacks.setup; print(sorted({'pulumi', 'pydantic', 'semver', 'platformdirs'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.timeout(2700)
def test_the_real_cli_and_language_host_are_built_from_the_pinned_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("go") is None:
        pytest.skip("this machine has no Go")
    real = [folder for folder in os.get_exec_path() if not shutil.which("pulumi", path=folder)]
    monkeypatch.setenv("PATH", os.pathsep.join(real))
    monkeypatch.setenv("GOFLAGS", "-mod=vendor")
    told: list[str] = []
    with tools.changing(tmp_path / "tools", told.append), tools.staged(tmp_path / "tools" / "built-x") as part:
        bring.build_cli(part, told.append)
    found = find_cli(tmp_path / "tools")
    assert found
    cli = ensure_language_host(found, tmp_path / "tools", told.append)

    assert (cli.version, cli.origin) == (bring.VERSION, "built")
    assert all(shutil.which(name, path=os.pathsep.join(map(str, cli.extra_path))) for name in bring.LANGUAGE_FILES)
    assert find_cli(tmp_path / "tools") == cli
