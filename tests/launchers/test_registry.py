"""Targets come from the dict, then from entry points of installed packages; each failure says what to install."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launchers import registry
from launchers.registry import TARGETS, Target, connection_model, launcher_class, target_names, template_model
from launchers.templates import parse_template
from programs.process.template import ProcessTemplate
from stacks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("empty_home")

MODULE = """
from launchers.registry import Target
TARGET = Target("{name}:Launcher", "{name}:Template", extra="sdk")
BAD = 5
"""
WORKING = """
from typing import Literal
from programs.args import LauncherTemplate
class Template(LauncherTemplate, frozen=True, extra="forbid"):
    target: Literal["nomad"] = "nomad"
    datacenter: str
class Launcher: pass
"""
CONNECTED = """
from programs.args import Connection
class Address(Connection):
    host: str
TARGET = Target("acme_nomad:Launcher", "acme_nomad:Template", connection="acme_nomad:Address")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str], str], None]:
    """Make a package installed: its entry points and one module, in a folder of its own on the path."""

    def make(package: str, targets: dict[str, str], code: str = "") -> None:
        folder = tmp_path / package
        info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in targets.items())
        (info / "entry_points.txt").write_text(f"[run_launcher.targets]\n{lines}\n")
        module = package.replace("-", "_")
        (folder / f"{module}.py").write_text(MODULE.format(name=module) + code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        act()
    return str(caught.value)


def test_the_dict_names_the_built_in_targets() -> None:
    assert target_names() == ["docker", "process"]
    assert template_model("process") is ProcessTemplate


@pytest.mark.parametrize("name", TARGETS)
def test_a_built_in_target_is_the_discriminator_of_its_own_model(name: str) -> None:
    assert template_model(name).model_fields["target"].default == name


def test_the_registry_imports_no_target() -> None:
    code = (
        "import sys, launchers.registry; "
        "print(sorted(name for name in sys.modules if name.startswith(('pulumi', 'programs.process', 'launchers.p'))))"
    )
    root = Path(registry.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, check=True
    )

    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("proces", "unknown target 'proces'; did you mean 'process'?"),
        ("Process", "unknown target 'Process'; did you mean 'process'?"),
        ("lambda", "unknown target 'lambda'; known targets: docker, process"),
        ("", "unknown target ''; known targets: docker, process"),
    ],
)
@pytest.mark.parametrize("act", [template_model, launcher_class])
def test_an_unknown_target_is_refused_with_a_near_miss(act: Callable[[str], object], target: str, words: str) -> None:
    assert refusal(lambda: act(target)) == words


def test_an_installed_package_adds_a_target(install: Callable[[str, dict[str, str], str], None]) -> None:
    install("acme-nomad", {"nomad": "acme_nomad:TARGET"}, WORKING)

    assert target_names() == ["docker", "nomad", "process"]
    assert launcher_class("nomad").__name__ == "Launcher"
    assert parse_template("target: nomad\ndatacenter: here", "t.yaml", "t").template.target == "nomad"
    assert "did you mean 'nomad'?" in refusal(lambda: template_model("nomat"))


def test_a_target_may_declare_the_model_of_its_connections(
    install: Callable[[str, dict[str, str], str], None],
) -> None:
    install("acme-nomad", {"nomad": "acme_nomad:TARGET"}, WORKING + CONNECTED)

    model = connection_model("nomad")
    assert model is not None
    assert list(model.model_fields) == ["host"]
    assert connection_model("process") is None


def test_a_model_of_connections_that_is_none_is_refused(install: Callable[[str, dict[str, str], str], None]) -> None:
    install("acme-nomad", {"nomad": "acme_nomad:TARGET"}, WORKING + CONNECTED.replace("Address(Connection)", "Address"))

    assert refusal(lambda: connection_model("nomad")) == (
        "target 'nomad' of the package 'acme-nomad': acme_nomad:Address is no Connection"
    )


def test_listing_the_targets_imports_none_of_them(install: Callable[[str, dict[str, str], str], None]) -> None:
    install("acme-nomad", {"nomad": "acme_nomad:TARGET"}, "raise RuntimeError")

    assert target_names() == ["docker", "nomad", "process"]


def test_a_target_that_two_packages_claim_names_both(install: Callable[[str, dict[str, str], str], None]) -> None:
    install("acme-nomad", {"nomad": "acme_nomad:TARGET"}, WORKING)
    install("other-nomad", {"nomad": "other_nomad:TARGET"}, WORKING)

    words = "target 'nomad' is claimed by acme-nomad and other-nomad"
    assert words in refusal(lambda: template_model("nomad"))
    assert words in refusal(target_names)
    assert template_model("process") is ProcessTemplate


def test_a_package_that_claims_a_built_in_target_does_not_get_it(
    install: Callable[[str, dict[str, str], str], None],
) -> None:
    install("acme-nomad", {"process": "acme_nomad:TARGET"}, WORKING)

    assert template_model("process") is ProcessTemplate
    assert isinstance(parse_template("target: process", "t.yaml", "t").template, ProcessTemplate)
    assert "target 'process' is claimed by run-launcher and acme-nomad" in refusal(target_names)


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ("acme_nomad:TARGET", "import no_such_sdk", 'pip install "acme-nomad"'),
        ("acme_nomad:TARGET", "from json import no_such_name", 'pip install "acme-nomad"'),
        ("no_such_module:TARGET", "", "No module named 'no_such_module'"),
        ("acme_nomad:MISSING", "", "acme_nomad has no MISSING"),
        ("acme_nomad:BAD", "", "acme_nomad:BAD is no launchers.registry.Target"),
        ("acme_nomad:TARGET", "", "acme_nomad has no Template"),
        ("acme_nomad:TARGET", "Template = dict", "acme_nomad:Template is no LauncherTemplate"),
        ("acme_nomad:TARGET", "Template = 5", "acme_nomad:Template is no LauncherTemplate"),
    ],
)
def test_a_package_that_is_broken_is_named(
    install: Callable[[str, dict[str, str], str], None], value: str, code: str, words: str
) -> None:
    install("acme-nomad", {"nomad": value}, code)

    message = refusal(lambda: template_model("nomad"))
    assert words in message
    assert "acme-nomad" in message


def test_a_missing_sdk_is_answered_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, install: Callable[[str, dict[str, str], str], None]
) -> None:
    install("acme-moon", {}, "import no_such_sdk")
    monkeypatch.setattr(registry, "TARGETS", {"moon": Target("acme_moon:Launcher", "acme_moon:Template", extra="moon")})

    message = refusal(lambda: launcher_class("moon"))
    assert 'pip install "run-launcher[moon]"' in message
    assert "no_such_sdk" in message


def test_a_fault_of_our_own_is_not_blamed_on_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TARGETS", {"x": Target("launchers.no_such_module:X", "programs.args:X", extra="x")})

    with pytest.raises(ModuleNotFoundError):
        launcher_class("x")


def test_the_model_of_a_built_in_target_stands_where_the_dict_says() -> None:
    for target in TARGETS.values():
        module, _, name = target.template.partition(":")

        assert hasattr(importlib.import_module(module), name)
