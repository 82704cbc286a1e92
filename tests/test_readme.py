"""What the README says holds: its commands run as written, its tree names every file, its imports are light."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

import launchers
from launchers.testing.contract import eventually
from stacks.setup import tools_folder

ROOT: Final = Path(__file__).parents[1]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES: Final = ("launchers", "programs", "stacks")
SDKS: Final = ("boto3", "botocore", "dagster", "docker", "grpc", "kubernetes", "pulumi")
SOURCES: Final = {".c", ".go", ".py", ".yaml"}
INSTALLS: Final = ("make ", "pip ")
"""How lines begin that install or call this very suite; they are checked, not run."""
TOOLS: Final = tools_folder()  # asked before a test has a home of its own, so that no test brings an engine again
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A fenced block that a reader would run, and the lines that the README shows of its output."""

    language: str
    text: str
    shown: tuple[str, ...]

    @property
    def script(self) -> str:
        """What is run of it."""
        return "\n".join(line for line in self.text.splitlines() if not line.startswith(INSTALLS))


def fences() -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in FENCE.finditer(README)]


def examples() -> list[Example]:
    blocks = fences()
    after = [*blocks[1:], ("", "")]
    return [
        Example(language, text, tuple(output.splitlines()) if kind == "text" else ())
        for (language, text), (kind, output) in zip(blocks, after, strict=True)
        if language in {"sh", "python"}
    ]


class Newcomer:
    """Somebody with an empty home who types the README's blocks, one after the other, in one terminal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("home", "work", "temp"):
            (root / name).mkdir()
        (root / "cwd").write_text(str(root / "work"), encoding="utf-8")
        (root / "exports").touch()
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PULUMI_", "PYTHON", "RUN_LAUNCHER_", "XDG_"))
        }
        self.environment = {
            **mine,
            "HOME": str(root / "home"),
            "PULUMI_HOME": str(root / "home" / ".pulumi"),  # by default below the home of the passwd entry
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "RUN_LAUNCHER_HOME": str(root / "kept"),
            "RUN_LAUNCHER_TOOLS": str(TOOLS),
            "TMPDIR": str(root / "temp"),
        }

    def types(self, example: Example) -> str:
        """Run a block, where the one before has left off; returns all that it said."""
        (self.root / "block").write_text(example.script, encoding="utf-8")
        block = f'. "{self.root}/block"' if example.language == "sh" else f'python "{self.root}/block"'
        lines = [
            "set -e",
            f'. "{self.root}/exports"',
            f'cd "$(cat "{self.root}/cwd")"',
            block,
            f'export -p >"{self.root}/exports"',
            f'pwd >"{self.root}/cwd"',
        ]
        return self.call("sh", "-c", "\n".join(lines))

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}"
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Every process of this user, as the kernel shows them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                if any(str(self.root) in word for word in words):
                    found.append(process)
        return found


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    """At the end all runs are terminated, and whatever a failed block left running is killed."""
    with tempfile.TemporaryDirectory(prefix="rl-") as root:
        user = Newcomer(Path(root))
        yield user
        try:
            runs = user.call("run-launcher", "ps", "-o", "name").split()
            if runs:
                user.call("run-launcher", "terminate", *runs)
            eventually(lambda: user.processes() == [])  # a `pulumi` leaves its language host to end by itself
            left = [process.cmdline() for process in user.processes()]
        finally:
            for process in user.processes():
                process.kill()

    assert left == []


def appears(line: str, output: str) -> bool:
    pattern = r".*".join(re.escape(part) for part in line.strip().split("…"))
    return re.search(pattern, output) is not None


def test_every_command_and_example_runs_as_written(newcomer: Newcomer) -> None:
    for example in examples():
        output = newcomer.types(example)
        absent = [line for line in example.shown if not appears(line, output)]

        assert absent == [], f"{example.text}\nsaid:\n{output}"


def test_the_make_targets_it_names_exist() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    there = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert {"demo", "test"} <= named
    assert named <= there


def test_pip_installs_this_distribution_with_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {words.split()[0] for words in re.findall(r"^pip install (.+)$", README, re.MULTILINE)}

    assert installed == {project["name"]}
    assert all(f"`{extra}`" in README for extra in project["optional-dependencies"] if extra != "test")


def tree_of_the_readme() -> set[str]:
    text = next(text for _, text in fences() if text.startswith("launchers/ "))
    named: set[str] = set()
    above: list[str] = []
    for line in text.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [name]
        named.add("".join(above))
    return named


def tree_of_the_packages() -> set[str]:
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    there = [Path(name) for name in files if (ROOT / name).exists()]
    folders = {f"{folder}/" for path in there for folder in path.parents if folder != Path()}
    return folders | {str(path) for path in there if path.suffix in SOURCES and path.name != "__init__.py"}


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a checkout")
def test_its_tree_of_layers_names_every_file() -> None:
    told, there = tree_of_the_readme(), tree_of_the_packages()

    assert sorted(there - told) == []
    assert sorted(name for name in told if not (ROOT / name).exists()) == []


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    assert launchers.__all__ == sorted(launchers.__all__)
    assert [name for name in launchers.__all__ if getattr(launchers, name, None) is None] == []


def loaded_by(module: str) -> set[str]:
    """The top-level packages that a fresh Python has loaded after this import."""
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def sdks(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name in SDKS or name.startswith("pulumi_")}


def test_importing_launchers_loads_neither_pulumi_nor_grpc() -> None:
    assert sdks(loaded_by("launchers")) == set()


@pytest.mark.parametrize("target", sorted(path.parent.name for path in (ROOT / "programs").glob("*/template.py")))
def test_a_targets_template_loads_no_sdk(target: str) -> None:
    assert sdks(loaded_by(f"programs.{target}.template")) == set()


def test_its_python_examples_name_public_things_only() -> None:
    imported = [
        alias.name
        for example in examples()
        if example.language == "python"
        for node in ast.walk(ast.parse(example.text))
        if isinstance(node, ast.ImportFrom) and node.module == "launchers"
        for alias in node.names
    ]

    assert set(imported) <= set(launchers.__all__)
