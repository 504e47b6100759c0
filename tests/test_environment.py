"""The packages: one lock, which resolves as it is, imports, and is the one that every road installs."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys

import yaml
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent.parent


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    return {re.sub("[-_.]+", "-", r.name).lower(): r for r in found}


def test_every_line_of_the_lock_pins_one_version():
    assert all(re.fullmatch(r"==[^*]+", str(r.specifier)) for r in pins("requirements.lock").values())


def test_direct_dependencies_are_pinned_in_the_lock_as_asked_for():
    lock = pins("requirements.lock")
    assert all(lock[name].specifier == wanted.specifier for name, wanted in pins("requirements.in").items())


def test_environment_file_installs_the_lock_on_the_right_python():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in dependencies
    assert {"pip": ["-r requirements.lock", "-e ."]} in dependencies


def test_installed_versions_are_those_of_the_lock():
    wrong = {n: r for n, r in pins("requirements.lock").items() if importlib.metadata.version(n) not in r.specifier}
    assert not wrong


def test_no_package_misses_or_contradicts_a_requirement_of_another():
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_jupyterlab_starts():
    # Importing the package does not import what it needs to start.
    answer = subprocess.run([sys.executable, "-m", "jupyter", "lab", "--version"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == importlib.metadata.version("jupyterlab")


def test_gpu_lock_is_what_tensorflow_asks_for():
    wanted = {
        Requirement(line).name: str(Requirement(line).specifier)
        for line in importlib.metadata.requires("tensorflow")
        if Requirement(line).marker
        and Requirement(line).marker.evaluate({"extra": "and-cuda"})
        and not Requirement(line).marker.evaluate({"extra": ""})
    }
    assert wanted == {r.name: str(r.specifier) for r in pins("requirements-gpu.lock").values()}
