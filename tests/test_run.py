"""Runs as they are asked for, killed, repeated and compared; and the one line in which they say what is wrong."""

import concurrent.futures
import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import papermill
import psutil
import pytest
import test_readers

from genlib import features, results, run
from genlib.__main__ import parse


def asked(words):
    return parse(["--profile", "smoke", *shlex.split(words)])


def planned(words):
    (one,) = run.runs_of(asked(words))
    return one


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with files of one's own, from where the command is called."""
    rng = np.random.default_rng(0)
    genes = {f"GENE{g}": rng.normal(8, 1, 60) for g in range(40)}
    rows = pd.DataFrame({"patient": [f"secret-{i}" for i in range(60)], "kind": ["A", "B"] * 30, **genes})
    rows.to_csv(tmp_path / "own.csv", index=False)
    rows.assign(GENE1=1e3 * rng.uniform(1, 9, 60)).to_csv(tmp_path / "linear.csv", index=False)
    (tmp_path / "clinical.tsv").write_text("patient\tkind\n")
    (tmp_path / "genes.gmt").write_text("first\tmade up\tGENE1\tGENE2\nsecond\tmade up\tGENE3\n")
    (tmp_path / "mine.py").write_text("def build(n_features, n_classes):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def names():
    """Names of runs whose folders are gone in the end."""
    found = [f"test-{os.getpid()}-{letter}" for letter in "ab"]
    yield found
    for folder in [path for name in found for path in run.OUTPUTS.glob(f"{name}*")]:
        shutil.rmtree(folder)


# What is asked for.


def test_every_option_of_the_command_line_reaches_the_notebooks_from_wherever_it_is_called(here):
    one = planned(
        "--cohort own.csv --label kind --drop-classes C D --min-class-size 5 --several first --units log2 --missing ? "
        "--ignore age stage --patient patient --clinical clinical.tsv --panel genes.gmt#second --network mine.py:build "
        "--network-options '{epochs: 5, learning_rate: 2e-2}' --seed 3 --run mine"
    )
    options = dict(one.parameters["cohort_options"])
    located = [*(one.parameters[name] for name in ("cohort", "panel", "network")), options.pop("clinical")]
    wanted = [here / name for name in ("own.csv", "genes.gmt#second", "mine.py:build", "clinical.tsv")]
    assert [(run.NOTEBOOKS / path).resolve() for path in located] == wanted
    assert not any(path.startswith("/") for path in located)  # they are shown to others
    assert options == {
        "label": "kind", "drop_classes": ["C", "D"], "min_class_size": 5, "several": "first", "units": "log2",
        "ignore": ["age", "stage"], "missing": ["?"], "patient": "patient",
    }  # fmt: skip
    assert one.parameters["network_options"] == {"epochs": 5, "learning_rate": 0.02} and one.parameters["seed"] == 3
    assert one.name == "mine" and one.notebooks == run.names()


def test_a_cohort_keeps_the_options_that_were_given_and_not_the_size_of_a_simulated_one(here, monkeypatch):
    assert planned("").parameters["cohort_options"] == {"n_patients": 240, "n_genes": 400, "n_classes": 3}
    assert planned("--cohort tcga-brca").parameters["cohort_options"] == {}
    usual = run.profile("smoke")
    kept = {"cohort_options": {"n_patients": 9, "drop_classes": "NC"}}
    monkeypatch.setattr(run, "profile", lambda _: usual | kept)
    assert planned("--cohort tcga-brca").parameters["cohort_options"] == {"drop_classes": "NC"}


def test_a_panel_is_the_cohorts_own_the_given_one_or_none(here):
    chosen = lambda words: planned(words).parameters["panel"]  # noqa: E731
    assert chosen("") == chosen("--cohort tcga-kipan --panel pam50") == "pam50"
    assert chosen("--cohort tcga-kipan") is chosen("--panel none") is chosen("--cohort own.csv --label kind") is None


def test_notebooks_are_those_below_ten_from_one_on_or_some_alone(here):
    assert run.names() == sorted(path.stem for path in run.NOTEBOOKS.glob("0?_*.ipynb"))
    assert planned("--only 3,02_target_model").notebooks == ["02_target_model", "03_answers"]
    assert planned("--from 7").notebooks == [name for name in run.names() if name >= "07"]
    assert set(run.names()) - set(planned("--network cnn").notebooks) == {"05_dp_sgd", "08_tradeoff"}


WRONG = {
    "--seed x": "seed: 'x' cannot be; write it like 0",
    "--seed -3": "seed -3: it must be at least 0",
    "--seed 0,,1": "--seed needs a value that is not empty",
    "--seed 0,0": "would both write to outputs/simulated-smoke; ask for it once",
    "--only 99": "unknown notebook '99'; choose among 01_cohort",
    "--run ../elsewhere": "a plain folder name",
    "--cohort tcga-bcra": "unknown cohort 'tcga-bcra'; known cohorts: khan-srbct, simulated",
    "--cohort tcga-brca,tcga-bcra": "unknown cohort 'tcga-bcra'",
    "--cohort own.csv": "own.csv: say which column holds each patient's class, as label='subtype' (--label)",
    "--cohort own.csv --label kind --clinical none.tsv": "there is no file none.tsv",
    "--cohort own.csv --label kind --min-class-size few": "--min-class-size: invalid int value: 'few'",
    "--label kind": "cohort 'simulated' takes drop_classes and min_class_size; given are label",
    "--panel pam5": "unknown panel 'pam5': there is no file",
    "--panel genes.gmt": "choose one of the 2 gene sets of genes.gmt",
    "--network forest": "unknown network 'forest'; choose cnn, deeptype, mlp, softmax, or a function of your own",
    "--network own": "unknown network 'own'",
    "--network none.py:build": "unknown network 'none.py:build'",
    "--network-options {epochs": "--network-options is no YAML",
    "--network-options 7": "--network-options: 7 cannot be; write it like {}",
    "--cohort-options '{n_patient: 9}'": "unknown option 'n_patient' of a cohort; the options are label",
    "--cohort own.csv --label kind --units log10": "units='log10' is not known; choose one of None, linear, ln, log2",
    "--sweep none.yaml": "none.yaml cannot be read",
    "--scheduler tcp://127.0.0.1:9": "spreads several runs, and this is one",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_run_is_said_in_one_line_before_any_notebook(here, words, monkeypatch, capsys):
    monkeypatch.setattr(run, "study", lambda _: pytest.fail("a run was begun"))
    with pytest.raises(SystemExit) as ended:
        run.main(asked(words))
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "" and WRONG[words] in said.err
    assert len(said.err.strip().splitlines()) == 1


def combinations(words):
    return [
        (one.parameters["cohort"], one.parameters["network"], one.parameters["seed"])
        for one in run.runs_of(asked(words))
    ]


def test_every_cohort_meets_every_network_and_every_seed(here):
    found = combinations("--cohort tcga-brca,tcga-lgg --network mlp,cnn --seed 0,3")
    assert len(found) == len(set(found)) == 8 and ("tcga-lgg", "cnn", 3) in found
    (here / "a,b.csv").write_text("a path may hold a comma")
    assert len(combinations("--cohort a,b.csv --label kind")) == 1


SWEEP = """
network: [mlp, {network: mine.py:build, network_options: {epochs: 2}}]
seed: [010, 1e1%s]
only: 01
panel: genes.gmt#first
cohort: [tcga-brca, {cohort: own.csv, label: no, drop_classes: 3, ignore: age, panel: none}]
"""


def test_a_sweep_file_gives_each_its_own_options_and_counts_paths_from_where_it_lies(here, monkeypatch):
    (here / "runs.yaml").write_text(SWEEP.replace(", 1e1%s", ""))
    monkeypatch.chdir("/")
    brca, brca_mine, own, own_mine = run.runs_of(asked(f"--sweep {here}/runs.yaml"))
    assert own.parameters["cohort_options"] == {"label": "no", "drop_classes": ["3"], "ignore": ["age"]}
    assert {one.parameters["seed"] for one in (brca, own)} == {10} and own.notebooks == ["01_cohort"]
    assert own.parameters["panel"] is None and brca_mine.parameters["network_options"] == {"epochs": 2}
    for name, text in {"panel": "genes.gmt#first", "network": "mine.py:build"}.items():
        assert (run.NOTEBOOKS / brca_mine.parameters[name]).resolve() == here / text
    assert len({one.name for one in (brca, brca_mine, own, own_mine)}) == 4
    (here / "runs.yaml").write_text(SWEEP % "")
    with pytest.raises(run.OptionError, match="would both write"):
        run.runs_of(asked(f"--sweep {here}/runs.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- tcga-brca", "must hold options"), ("cohorts: a", "unrecognized arguments: --cohorts=a"),
        ("cohort: [{label: x}]", "lacks 'cohort'"), ("cohort: [{cohort: a, lable: x}]", "arguments: --lable=x"),
        ("seed: yes", "seed: 'yes' cannot be"), ("seed: [0", "runs.yaml is no YAML"),
        ("run: x", "run is an option of the command line alone"), ("profile: fast", "invalid choice: 'fast'"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_file_says_what_is_wrong(here, text, said, capsys):
    (here / "runs.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        run.main(asked("--sweep runs.yaml"))
    problems = capsys.readouterr().err
    assert ended.value.code == 2 and said in problems and len(problems.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("delta: 1e-5", {"delta": 1e-5}),
        ("n_models: 1e1", {"n_models": 10}),
        ("noises: 1", {"noises": [1]}),
        ("n_models: '12'", {"n_models": 12}),
        ("panel: none", {"panel": None}), ("cohort_options:", {"cohort_options": {}}),
        ("n_bootstrapp: 50", "unknown option 'n_bootstrapp'"), ("n_models: ten", "n_models: 'ten' cannot be"),
        ("n_models: 9.5", "n_models: 9.5 cannot be"), ("network_options: 1", "network_options: 1 cannot be"),
    ],
)  # fmt: skip
def test_words_of_a_profile_are_taken_for_what_is_meant_or_refused(here, line, said, monkeypatch):
    lines = (run.NOTEBOOKS / "smoke.yaml").read_text().splitlines()
    kept = [one for one in lines if not one.startswith(line.split(":")[0] + ":")]
    (here / "mine.yaml").write_text("\n".join([*kept, line]))
    monkeypatch.setattr(results, "read_yaml", lambda _, read=results.read_yaml: read(here / "mine.yaml"))
    if isinstance(said, str):
        with pytest.raises(ValueError, match=f"profile smoke.yaml: {said}"):
            planned("")
    else:
        assert planned("").parameters.items() >= said.items()


def test_a_folder_stands_for_all_inputs_and_their_content(here):
    words = "--cohort own.csv --label kind --clinical clinical.tsv --panel genes.gmt#first --network mine.py:build"
    seen = {planned(words).name, planned(words).name}
    for file in ("own.csv", "clinical.tsv", "genes.gmt", "mine.py", "genes.gmt.centroids.tsv"):
        with open(here / file, "a") as changed:
            changed.write("\n")
        seen.add(planned(words).name)
    for more in ("--label stage", "--panel none", "--ignore age", "--seed 1", "--network-options '{epochs: 2}'"):
        seen.add(planned(f"{words} {more}").name)
    (here / "elsewhere").mkdir()
    shutil.copy("own.csv", "elsewhere/own.csv")
    seen.add(planned(words.replace("own.csv", "elsewhere/own.csv")).name)
    assert len(seen) == 12
    folder = here / "study"
    folder.mkdir()
    (folder / "data_clinical_sample.txt").write_text("a")
    before = planned("--cohort study --label kind").inputs
    (folder / "data_clinical_sample.txt").write_text("b")
    assert planned("--cohort study --label kind").inputs != before


# What is run.


def start(words):
    command = [sys.executable, "-m", "genlib", "--profile", "smoke", *shlex.split(words)]
    return subprocess.Popen(
        command, cwd=run.NOTEBOOKS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(words, capsys):
    """Run the command in this process, and return what it says."""
    capsys.readouterr()
    run.main(asked(words))
    return capsys.readouterr().out


def wait_for(process, name, pattern, kept=()):
    """Wait until a new file is there, however long that takes here. The limit only ends a test that hangs."""
    limit = time.monotonic() + 900
    while not set((run.OUTPUTS / name).glob(pattern)) - set(kept):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, f"{pattern} did not come"
        time.sleep(0.01)


def kernels(process):
    return [
        one for one in psutil.Process(process.pid).children(recursive=True) if "ipykernel_launcher" in one.cmdline()
    ]


@pytest.mark.slow(300)
@pytest.mark.xdist_group("smoke")
def test_a_run_stopped_in_any_way_says_so_goes_on_and_equals_an_undisturbed_one(names, smoke, capsys):
    words, folder = f"--only 01,02 --run {names[0]}", run.OUTPUTS / names[0]
    # A crash of the machine in the first notebook takes all; the system kills a kernel amid training; somebody stops.
    process = start(words)
    wait_for(process, names[0], "01_cohort.partial.ipynb")
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()
    for signals, status, said in (
        (lambda process: kernels(process)[0].kill(), 1, "02_target_model: its process was killed"),
        (lambda process: process.send_signal(signal.SIGINT), 130, "stopped; the same command goes on where it was"),
    ):
        # The first has models to train; when all are there, the beginning of the notebook is the event.
        event = "cache/*.npz" if status == 1 else "02_target_model.partial.ipynb"
        (folder / "02_target_model.partial.ipynb").unlink(missing_ok=True)
        kept = set(folder.glob(event))
        process = start(words)
        wait_for(process, names[0], event, kept)
        signals(process)
        lines = process.communicate()[1].strip().splitlines()
        assert process.returncode == status and len(lines) == 1 and said in lines[0]
    assert finish(words, capsys).count("finished before, unchanged") == 1
    for notebook in ("01_cohort", "02_target_model"):
        part = f"parts/{notebook}.csv"
        assert (folder / part).read_bytes() == (smoke / part).read_bytes()
    assert not list(folder.glob("*.partial.ipynb"))
    # Rows of other code are left out until they are made again.
    (folder / "02_target_model.ipynb").unlink()
    assert "02_target_model was made by other code" in finish(f"--only 01 --run {names[0]}", capsys)
    assert set(results.read(folder / "results.csv")["notebook"]) == {"01_cohort"}


def test_a_folder_holds_one_study_once_something_was_finished_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "OUTPUTS", tmp_path)
    first, other = planned("--run a"), planned("--run a --seed 1")
    (tmp_path / "a" / "parts").mkdir(parents=True)
    results.update_manifest(first.folder, "run", {"parameters": first.parameters, "inputs": first.inputs})
    run._refuse_another(other)
    (tmp_path / "a" / "parts" / "01_cohort.csv").touch()
    run._refuse_another(first)
    with pytest.raises(run.OptionError, match="holds another study, with seed 0"):
        run._refuse_another(other)


def broken(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "a"), "No space left (a); free some space"),
        (OSError(errno.EROFS, "Read-only", "b"), "(b); make that folder writable"),
        (RuntimeError("Kernel died early"), "01_cohort: its process was killed (Kernel died early), perhaps"),
        (papermill.PapermillExecutionError(3, 3, "x", "ValueError", "no\nsuch\ngene", []),
         "01_cohort failed in cell 3: ValueError: no such gene; the notebook as far as it came: "),
    ],
)  # fmt: skip
def test_an_accident_is_one_line_and_status_1(error, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "OUTPUTS", tmp_path)
    monkeypatch.setattr(papermill, "execute_notebook", broken(error))
    with pytest.raises(SystemExit) as ended:
        run.main(asked(""))
    problems = capsys.readouterr().err
    assert ended.value.code == 1 and said in problems and len(problems.strip().splitlines()) == 1


def test_after_a_failure_no_further_notebook_begins(monkeypatch):
    begun = []

    def execute(name):
        begun.append(name)
        if name == "b":
            raise run.RunError("b failed")

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(run.RunError, match="b failed"):
        run._execute_all([(name,) for name in "abcdef"], at_a_time=1)
    assert begun == ["a", "b"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "OUTPUTS", tmp_path / "file")
    with pytest.raises(SystemExit) as ended:
        run.main(asked(""))
    problems = capsys.readouterr().err
    assert ended.value.code == 1 and "Not a directory" in problems and len(problems.strip().splitlines()) == 1


@pytest.mark.slow(40)
@pytest.mark.parametrize(("network", "notebooks"), [("cnn", "02"), ("deeptype", "03")])
def test_every_network_has_its_own_road_through_the_notebooks(names, network, notebooks, capsys):
    finish(f"--network {network} --only {notebooks} --run {names[0]}", capsys)
    found = results.load(run.OUTPUTS / names[0])
    assert network in set(found["network"]) and len(set(found["notebook"])) == len(notebooks.split(","))


OWN = """import tensorflow as tf
def small(n_features, n_classes):
    layers = [tf.keras.Input((n_features,)), tf.keras.layers.Dense(12, "tanh"), tf.keras.layers.Dense(n_classes)]
    model = tf.keras.Sequential(layers)
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
"""


@pytest.mark.slow(90)
def test_files_of_ones_own_go_through_the_notebooks(names, here, capsys):
    (here / "mine.py").write_text(OWN)
    before = (here / "own.csv").read_bytes()
    words = f"--cohort own.csv --run {names[0]} --label kind --panel genes.gmt#first"
    words += " --network mine.py:small --network-options '{epochs: 4}'"
    finish(f"{words} --only 01,02,04,05,08", capsys)  # the others train nearly all the time
    folder = run.OUTPUTS / names[0]
    found = results.load(folder)
    made_up = found["control"].str.startswith("made by hand")  # weights of no cohort
    assert set(found.loc[~made_up, "cohort"]) == {"own"}
    assert set(found["notebook"]) == {"01_cohort", "02_target_model", "04_weights", "05_dp_sgd", "08_tradeoff"}
    assert {"A", "B"} <= set(found["group"]) and {"all genes", "first"} <= set(found["features"])
    assert (
        any(name.startswith("small") for name in found["network"]) and not found["features"].str.contains("gmt").any()
    )
    assert (here / "own.csv").read_bytes() == before
    assert "secret-" not in (folder / "02_target_model.ipynb").read_text()


@pytest.mark.slow(25)
def test_a_study_folder_as_downloaded_runs_with_its_path_and_label_only(names, tmp_path, capsys):
    genes = features.read_panel("pam50")
    values = 2 ** np.random.default_rng(0).normal(8, 2, (50, len(test_readers.SAMPLES)))
    test_readers.study(tmp_path / "thca_tcga", values, genes)
    finish(f"--cohort {tmp_path}/thca_tcga --label SUBTYPE --panel pam50 --only 01 --run {names[0]}", capsys)
    table = results.load(run.OUTPUTS / names[0], "01_cohort")
    everybody = table[table["group"] == "all"].set_index(["metric", "features"])["estimate"]
    assert everybody["patients", ""] == len(test_readers.SAMPLES)
    assert everybody["genes", "all genes"] == everybody["genes", "pam50"] == 50


@pytest.mark.slow
def test_papermill_from_the_root_of_the_repository_is_refused_with_the_way_out(tmp_path):
    words = ["notebooks/01_cohort.ipynb", str(tmp_path / "mine.ipynb"), "-f", "notebooks/smoke.yaml"]
    command = [sys.executable, "-m", "papermill", *words]
    done = subprocess.run(command, cwd=run.NOTEBOOKS.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "cd notebooks" in done.stderr
    assert not (run.NOTEBOOKS.parent.parent / "outputs" / "lab").exists()


# Many runs.


def test_what_runs_at_a_time_follows_cores_and_memory(monkeypatch):
    class Memory:
        available = 13e9

    monkeypatch.setattr(run.psutil, "virtual_memory", Memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert run.side_by_side(10) == 2  # 6 GB each
    assert run.side_by_side(10, busy=2) == 1  # runs of two notebooks
    Memory.available = 1e12
    assert (run.side_by_side(100), run.side_by_side(100, busy=2), run.side_by_side(5)) == (64, 32, 5)
    Memory.available = 1e9
    assert run.side_by_side(5) == 1


def test_a_run_of_a_sweep_has_the_environment_of_one_alone():
    with run.connect() as client:
        assert client.submit(lambda: dict(os.environ)).result().items() >= dict(os.environ).items()
        assert "MALLOC_TRIM_THRESHOLD_" not in client.submit(lambda: list(os.environ), pure=False).result()


@pytest.mark.slow(50)
def test_a_failed_run_is_named_at_the_end_and_does_not_stop_the_others(names, here, capsys):
    each = [f"{{cohort: {name}.csv, label: kind}}" for name in ("own", "linear")]
    (here / "runs.yaml").write_text(f"only: 01\ncohort: [{', '.join(each)}]")
    with pytest.raises(SystemExit) as ended:
        run.main(asked(f"--sweep {here}/runs.yaml --run {names[0]}"))
    said, problems = capsys.readouterr()
    table = pd.read_csv(run.OUTPUTS / names[0] / "sweep.csv").set_index("run")["outcome"]
    try:
        assert ended.value.code == 1 and "1 of 2 runs failed" in problems and "01_cohort failed in cell" in problems
        assert "1 of 40 columns reach more than 40" in problems and "10_across_cohorts is left out" in said
        (finished,) = table.index[table == "finished"]
        assert finished.startswith("own") and len(table) == 2
        assert set(results.load(run.OUTPUTS / finished)["cohort"]) == {"own"}
    finally:
        for name in table.index:
            shutil.rmtree(run.OUTPUTS / name, ignore_errors=True)


@pytest.mark.slow
def test_one_run_says_what_went_wrong_and_keeps_its_words(names):
    said = run.run_one(["--profile", "smoke", "--only", "99"], names[0], run.version())
    assert said.startswith("unknown notebook '99'")
    assert said in (run.OUTPUTS / names[0] / "log.txt").read_text()


class Cluster:
    """Runs end there as they are told to: with words, with an error, or finished, in this folder or in another."""

    loop = None

    def scheduler_info(self):
        return {"workers": [None]}

    def submit(self, _, words, name, *__, pure):
        ended = concurrent.futures.Future()
        if "seed0" in name:
            ended.set_exception(RuntimeError("the last worker died"))
        elif "seed1" in name:
            (run.OUTPUTS / name).mkdir()
            (run.OUTPUTS / name / "results.csv").touch()
            ended.set_result("finished")
        else:
            ended.set_result("finished" if "seed2" in name else "02 failed")
        return ended


def test_how_each_run_of_a_sweep_ended_is_told_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "OUTPUTS", tmp_path)
    monkeypatch.setattr(run, "connect", lambda *_: contextlib.nullcontext(Cluster()))
    monkeypatch.setattr(run.distributed, "as_completed", lambda tasks, loop: tasks)
    runs = [planned(f"--seed {seed}") for seed in range(4)]
    runs = [run.dataclasses.replace(one, name=f"seed{seed}") for seed, one in enumerate(runs)]
    with pytest.raises(run.RunError, match="3 of 4 runs failed"):
        run.sweep(runs, tmp_path / "sweep")
    outcomes = pd.read_csv(tmp_path / "sweep" / "sweep.csv")["outcome"].tolist()
    assert "the last worker died" in outcomes[0] and "must share it" in outcomes[2]
    assert outcomes[1] == "finished" and outcomes[3] == "02 failed"


def test_where_nobody_answers_it_says_how_to_start_them(monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 1)
    with pytest.raises(run.RunError, match="dask scheduler.*leave --scheduler out"):
        with run.connect("tcp://127.0.0.1:9"):
            pass


def test_a_run_is_refused_where_code_or_packages_differ(monkeypatch, tmp_path):
    wanted = run.version()
    monkeypatch.setattr(run, "OUTPUTS", tmp_path / "outputs")
    for name, value in (("code_digest", "other"), ("environment", {"versions": {"numpy": "0"}})):
        with monkeypatch.context() as there:
            there.setattr(results, name, lambda *_, value=value: value)
            said = run.run_one([], "none", wanted)
        assert "this worker has another genlib" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_worker_with_other_code_is_refused_whenever_it_joins(tmp_path, monkeypatch):
    shutil.copytree(run.NOTEBOOKS.parent / "genlib", tmp_path / "genlib")
    (tmp_path / "notebooks").symlink_to(run.NOTEBOOKS)
    with open(tmp_path / "genlib" / "audit.py", "a") as changed:
        changed.write("# changed")
    with run.connect() as client:
        address, (first,) = client.scheduler.address, client.scheduler_info()["workers"]
        words = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard"]
        words += ["--no-nanny", "--nthreads", "1", "--local-directory", str(tmp_path / "scratch")]
        other = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path)}}
        late = subprocess.Popen(words, **other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(2, timeout=300)
            (joined,) = set(client.scheduler_info()["workers"]) - {first}
            task = client.submit(
                run.run_one, ["--only", "01"], "must-not-be", run.version(), workers=[joined], pure=False
            )
            said = task.result(timeout=300)
            assert said.startswith("this worker has another genlib") and len(said.splitlines()) == 1
            assert not (tmp_path / "outputs").exists() and not (run.OUTPUTS / "must-not-be").exists()
        finally:
            late.terminate()
            late.wait()


# What counts as the same result.


@pytest.fixture
def table():
    """Rows as a study has them: rates and areas of some classes, with intervals of many widths, and counts."""
    rng = np.random.default_rng(0)
    estimate, wide = rng.uniform(0.2, 0.9, 2000), rng.uniform(0.01, 0.06, 2000)
    groups = {"group": [f"class {i % 20}" for i in range(2000)], "attack": [f"attack {i // 20}" for i in range(2000)]}
    rows = pd.DataFrame({"notebook": "03_answers", "metric": "AUC", **groups, "estimate": estimate})
    rows = rows.assign(
        low=estimate - wide, high=estimate + wide, n_patients=200, n_models=32, false_positive_patients=6
    )
    return results.tidy(pd.concat([rows, pd.DataFrame({"metric": ["patients"], "estimate": [769.0]})]))


def errors(table):
    return (table["high"] - table["low"]).fillna(0) / 2 / 1.96 * np.sqrt(2)


def test_on_the_same_platform_the_last_digit_counts(table):
    assert run.compare(table.sample(frac=1, random_state=0), table, same=True).empty
    for column in ("estimate", "low", "n_patients"):
        moved = table.copy()
        moved.loc[7, column] = np.nextafter(moved.loc[7, column], 1e9) if column != "n_patients" else 199
        assert run.compare(moved, table, same=True)["why"].tolist() == ["differs"]


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.3, 0.7, 1.0])
def test_elsewhere_what_resampling_explains_passes_and_five_points_more_do_not(table, spread):
    rng = np.random.default_rng(1)
    moved = table.assign(estimate=table["estimate"] + spread * errors(table) * rng.normal(size=len(table)))
    assert run.compare(moved, table, same=False).empty
    wide = table["high"] - table["low"]
    moved.loc[wide.idxmin() if spread else wide.idxmax(), "estimate"] += 0.05
    assert len(run.compare(moved, table, same=False)) == 1


def test_elsewhere_a_table_that_moved_as_a_whole_does_not_pass(table):
    moved = table.assign(estimate=table["estimate"] + 6 * errors(table))
    assert len(run.compare(moved, table, same=False)) > 1900


def test_elsewhere_a_rate_may_be_left_out_where_its_false_accusations_are_about_five(table):
    gone = table.assign(estimate=table["estimate"].where(table.index != 3), false_positive_patients=4)
    assert run.compare(gone, table, same=False).empty and run.compare(table, gone, same=False).empty
    many = table.assign(false_positive_patients=30)
    assert len(run.compare(gone, many, same=False)) == 1
    narrow = table[:2000].assign(low=table["estimate"], high=table["estimate"])
    assert run.compare(narrow.assign(estimate=narrow["estimate"] + 1 / 250), narrow, same=False).empty  # one patient
    assert len(run.compare(narrow.assign(estimate=narrow["estimate"] + 1 / 25), narrow, same=False)) == 2000


@pytest.mark.parametrize("same", [True, False])
def test_rows_that_are_missing_or_added_are_named(table, same):
    assert run.compare(table.iloc[1:], table, same)["why"].tolist() == ["missing"]
    for more in (table.iloc[[0]].assign(metric="new"), table.iloc[[0]], table.iloc[[0]].assign(epsilon=1.0)):
        assert run.compare(pd.concat([table, more]), table, same)["why"].tolist() == ["added"]


def test_the_same_platform_is_the_same_processor_blas_device_and_packages():
    here = {"environment": results.environment(), "02_target_model": {"device": "CPU"}}
    assert run.same_platform(here, here)
    for word in ("platform", "time", "git_commit", "processors"):
        assert run.same_platform(here, {**here, "environment": {**here["environment"], word: "another"}})
    for word in ("versions", "processor", "blas"):
        assert not run.same_platform(here, {**here, "environment": {**here["environment"], word: "another"}})
    assert not run.same_platform(here, {**here, "02_target_model": {"device": "NVIDIA A100"}})


def test_verify_runs_quick_anew_and_fails_by_a_planted_change(table, tmp_path, monkeypatch, capsys):
    def study(one):
        assert not list(one.folder.glob("*"))
        assert one.profile == "quick" and one.parameters["cohort"] == "tcga-brca" and one.notebooks == run.names()
        one.folder.mkdir()
        made.to_csv(one.folder / "results.csv", index=False)
        results.save_json(one.folder / "manifest.json", here)

    here = {"environment": results.environment(), "02_target_model": {"device": "CPU"}}
    monkeypatch.setattr(run, "OUTPUTS", tmp_path)
    monkeypatch.setattr(run, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr(run, "study", study)
    for folder in ("reference", "verify/cache"):
        (tmp_path / folder).mkdir(parents=True)
    table.to_csv(tmp_path / "reference" / "results.csv", index=False)
    results.save_json(tmp_path / "reference" / "manifest.json", here)
    made = table
    run.main(parse(["verify"]))
    made = table.assign(estimate=table["estimate"] + 0.05 * (table.index == 9))
    with pytest.raises(SystemExit) as ended:
        run.main(parse(["verify"]))
    said = capsys.readouterr()
    assert ended.value.code == 1 and "on the same platform" in said.out and "1 rows differ" in said.out
    assert "another result from the same data" in said.err


def test_the_sweep_over_networks_is_every_network_on_six_cohorts():
    runs = run.runs_of(parse(["--sweep", str(run.NOTEBOOKS / "sweeps" / "networks.yaml")]))
    trained = {
        (one.parameters["cohort"], one.parameters["network"], bool(one.parameters["network_options"])) for one in runs
    }
    assert len(trained) == len(runs) == 24 and len({one.folder for one in runs}) == 24
    assert all(one.notebooks == run.names()[:4] for one in runs)
