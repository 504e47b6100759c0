"""run_all.sh as a user meets it: help, wrong options, and the Python that it picks."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def call(*words, cwd=ROOT, script=ROOT / "run_all.sh", **environment):
    return subprocess.run(
        ["bash", str(script), *words], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["study", "--help"], ["test", "--help"]])
def test_help_names_every_option(words):
    answer = call(*words)
    assert answer.returncode == 0
    for option in ("--cohort", "--label", "--profile", "--seed", "--run", "--from", "--only"):
        assert option in answer.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profil", "quick"], "unrecognized arguments:"), (["--profile", "fast"], "invalid choice: 'fast'"),
        (["--profile"], "expected one argument"), (["--seed", ""], "--seed needs a value that is not empty"),
        (["stduy"], "unknown command 'stduy'; choose study, judge, verify"),
        (["verify", "--seed", "1"], "unrecognized arguments: --seed 1"),
        (["cost", "--cohort", "tcga-brca"], "unrecognized arguments: --cohort"),
    ],
)  # fmt: skip
def test_a_wrong_word_gets_one_sentence_and_status_2_before_anything_is_installed(bare, words, said):
    shutil.copytree(ROOT / "genlib", bare / "genlib", ignore=lambda *_: ["__pycache__", "data"])
    (bare / "notebooks").symlink_to(ROOT / "notebooks")
    answer = call(*words, cwd=bare, script=bare / "run_all.sh", CONDA_PREFIX="")
    assert answer.returncode == 2 and said in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1 and answer.stdout == ""
    assert not (bare / ".venv").exists()


@pytest.fixture
def bare(tmp_path):
    """A checkout without an environment, and a folder of commands that holds no Python but what a test puts there."""
    for name in ("run_all.sh", "requirements.lock", "requirements-gpu.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "grep", "rm", "tail", "tee", "awk", "mkdir", "ls", "sed", "tr"):
        (commands / name).symlink_to(shutil.which(name))
    return tmp_path


def put(folder, name, text):
    path = folder / name
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_without_python_311_and_uv_it_says_what_to_install(bare):
    put(bare / "commands", "python3", 'case "$*" in *platform*) echo 3.9.1 ;; *) exit 1 ;; esac')
    answer = call("test", cwd=bare, script=bare / "run_all.sh", PATH=str(bare / "commands"), CONDA_PREFIX="")
    assert answer.returncode == 2
    assert "Python 3.11 is needed, found 3.9.1" in answer.stderr


def test_with_another_python_and_uv_it_lets_uv_bring_311(bare):
    put(bare / "commands", "python3", 'case "$*" in *platform*) echo 3.13.0 ;; *) exit 1 ;; esac')
    put(bare / "commands", "uv", f'echo "$@" > {bare}/uv-was-asked; exit 1')
    answer = call("test", cwd=bare, script=bare / "run_all.sh", PATH=str(bare / "commands"), CONDA_PREFIX="")
    assert "--python 3.11 --seed .venv" in (bare / "uv-was-asked").read_text()
    assert answer.returncode == 2
    assert "uv could not bring it" in answer.stderr


def test_a_conda_environment_of_another_python_is_refused(bare):
    (bare / "env" / "bin").mkdir(parents=True)
    put(bare / "env" / "bin", "python", "exit 1")
    answer = call(
        "test", cwd=bare, script=bare / "run_all.sh", CONDA_PREFIX=str(bare / "env"), CONDA_DEFAULT_ENV="other"
    )
    assert answer.returncode == 2
    assert "conda environment 'other' has another Python than 3.11" in answer.stderr


def test_an_active_conda_environment_is_used_and_a_second_call_installs_nothing(bare):
    env = bare / "env"
    (env / "bin").mkdir(parents=True)
    put(
        env / "bin", "python",
        f'echo "$@" >> {bare}/asked; case "$1" in -c) exec {sys.executable} "$@" ;; esac',
    )  # fmt: skip
    inside = {"CONDA_PREFIX": str(env), "CONDA_DEFAULT_ENV": "genlib"}
    for _ in range(2):
        call("study", "--profile", "smoke", cwd=bare, script=bare / "run_all.sh", **inside)
    asked = (bare / "asked").read_text()
    assert asked.count("pip install --disable-pip-version-check") == 1
    assert asked.count("-m genlib study --profile smoke") == 2
    assert not (bare / ".venv").exists()
