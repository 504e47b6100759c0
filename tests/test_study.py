"""Runs that are killed, repeated, or fail."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import test_readers

from genlib import features, report, results, study

SMOKE = ["--profile", "smoke"]


def start(run, *words):
    command = [sys.executable, "-m", "genlib.study", *SMOKE, "--run", run, *words]
    return subprocess.Popen(command, cwd=study.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(run, *words):
    process = start(run, *words)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def folder(run):
    return study.ROOT / "outputs" / run


@pytest.fixture
def runs():
    names = [f"test-{os.getpid()}-{letter}" for letter in "abc"]
    yield names
    for name in names:
        shutil.rmtree(folder(name), ignore_errors=True)


def kill_group(process):
    # Papermill's kernel is a process of its own: a crash of the machine takes both.
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def wait_for(process, run, pattern):
    """Wait until a file is there: how long that takes depends on the machine. The limit only ends a test that hangs."""
    limit = time.monotonic() + 900
    while not list(folder(run).glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, f"{pattern} did not come"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.xdist_group("smoke")
def test_a_run_killed_at_any_point_completes_and_equals_an_undisturbed_one(runs, smoke):
    killed, words = runs[0], ("--only", "01,02,03")
    # In the first notebook; among the models of a bank; in a notebook that reads what others made.
    for event in ("01_cohort.partial.ipynb", "cache/*.npz", "03_answers.partial.ipynb"):
        process = start(killed, *words)
        wait_for(process, killed, event)
        kill_group(process)
    assert "finished before, unchanged" in finish(killed, *words)
    for notebook in ("01_cohort", "02_target_model", "03_answers"):
        part = f"parts/{notebook}.csv"
        assert (folder(killed) / part).read_bytes() == (smoke / part).read_bytes()
    assert not list(folder(killed).glob("*.partial.ipynb"))


@pytest.mark.slow
@pytest.mark.xdist_group("smoke")
def test_another_seed_gives_other_numbers(runs, smoke):
    finish(runs[0], "--only", "02", "--seed", "1")
    first, second = (results.load(run, "02_target_model")["estimate"].to_numpy() for run in (smoke, folder(runs[0])))
    assert not np.allclose(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("network, notebooks", [("softmax", "03"), ("cnn", "05"), ("deeptype", "02,03,05")])
def test_every_architecture_has_its_own_road_through_the_notebooks(runs, network, notebooks):
    finish(runs[0], "--network", network, "--only", notebooks)
    assert set(results.load(folder(runs[0]))["network"]) == {network}
    assert len(set(results.load(folder(runs[0]))["notebook"])) == len(notebooks.split(","))
    assert (folder(runs[0]) / "figures" / "2e_representation.svg").exists() == ("02" in notebooks)


def test_an_architecture_without_an_epsilon_leaves_those_notebooks_out(capsys):
    options = study._options(["--profile", "smoke", "--network", "cnn"])
    assert "05_dp_sgd" not in study._selected(options, "cnn")
    assert "cannot be trained under an epsilon" in capsys.readouterr().out
    assert study._chosen(options)["run_folder"] == "../outputs/simulated-smoke-cnn"
    with pytest.raises(SystemExit):
        study._chosen(study._options(["--network", "forest"]))


@pytest.mark.slow
def test_the_worked_example_of_the_readme_runs_from_the_first_notebook_to_the_last(runs, tmp_path):
    rng = np.random.default_rng(0)
    names = np.array(["papillary", "follicular"])
    labels = names[np.arange(60) % 2]
    genes = {f"GENE{g}": rng.normal(8, 1, 60) + (g < 5) * (labels == "papillary") for g in range(40)}
    table = pd.DataFrame({"patient": [f"secret-{i}" for i in range(60)], "histology": labels, **genes})
    path = tmp_path / "thyroid.csv"
    table.to_csv(path, index=False)
    before = path.read_bytes()
    (tmp_path / "thyroid.gmt").write_text("THYROID\tmade up\t" + "\t".join(f"GENE{g}" for g in range(10)) + "\n")
    finish(runs[0], "--cohort", str(path), "--label", "histology", "--panel", f"{tmp_path}/thyroid.gmt")
    found = results.load(folder(runs[0]), "02_target_model")
    assert set(results.load(folder(runs[0]))["cohort"]) == {"thyroid"}
    assert set(results.load(folder(runs[0]))["notebook"]) == set(study.names())
    assert {"papillary", "follicular"} <= set(found["group"])
    # A panel goes by its own name, not by where its file lies.
    private = results.load(folder(runs[0]), "05_dp_sgd")["features"]
    assert {"all genes", "thyroid"} <= set(private) and not private.str.contains("gmt").any()
    assert path.read_bytes() == before
    assert "secret-" not in (folder(runs[0]) / "02_target_model.ipynb").read_text()


@pytest.mark.slow
def test_a_failing_notebook_is_named_with_its_cell_and_error(runs, tmp_path):
    path = tmp_path / "one_class.csv"
    path.write_text("patient,kind,A,B\n" + "\n".join(f"p{i},x,{i / 2},{i % 7}" for i in range(20)))
    process = start(runs[0], "--cohort", str(path), "--label", "kind", "--only", "02")
    said = process.communicate()[0]
    assert process.returncode == 1
    assert "02_target_model failed in cell" in said
    assert "at least 2 classes" in said
    assert (folder(runs[0]) / "02_target_model.failed.ipynb").exists()
    assert not (folder(runs[0]) / "02_target_model.ipynb").exists()


def test_names_come_in_order_and_leave_out_what_has_a_command_of_its_own():
    assert study.names() == sorted(study.names())
    assert set(study.names()).isdisjoint(study.NOT_IN_STUDY)
    every = {path.stem for path in study.NOTEBOOKS.glob("*.ipynb")}
    assert every == {*study.names(), *study.NOT_IN_STUDY} == set(report.QUESTIONS)
    assert set(study.NOT_IN_STUDY) == set(report.COMMANDS)


def test_a_cohort_from_the_command_line_does_not_inherit_the_options_of_another():
    chosen = study._chosen(study._options(["--profile", "smoke", "--cohort", "tcga-brca"]))
    assert chosen["cohort_options"] == {}
    assert chosen["run_folder"] == "../outputs/tcga-brca-smoke"


def test_a_clinical_table_goes_with_its_matrix_from_wherever_it_was_called(tmp_path):
    for name in ("matrix.tsv", "clinical.tsv"):
        (tmp_path / name).write_text("x")
    words = ["--cohort", str(tmp_path / "matrix.tsv"), "--clinical", str(tmp_path / "clinical.tsv"), "--label", "kind"]
    chosen = study._chosen(study._options(words))
    assert (study.NOTEBOOKS / chosen["cohort"]).resolve() == tmp_path / "matrix.tsv"
    assert (study.NOTEBOOKS / chosen["cohort_options"]["clinical"]).resolve() == tmp_path / "clinical.tsv"
    assert chosen["cohort_options"]["label"] == "kind"


def test_a_panel_is_the_cohorts_own_the_given_one_or_none(tmp_path):
    chosen = lambda *words: study._chosen(study._options(list(words)))["panel"]  # noqa: E731
    assert chosen() == "pam50"
    assert chosen("--cohort", "tcga-kipan") is None
    assert chosen("--cohort", "tcga-kipan", "--panel", "pam50") == "pam50"
    assert chosen("--panel", "none") is None
    (tmp_path / "thyroid.gmt").write_text("thyroid\tsource\tTG\tTPO\n")
    path = chosen("--panel", f"{tmp_path}/thyroid.gmt#thyroid")
    assert (study.NOTEBOOKS / path.removesuffix("#thyroid")).samefile(tmp_path / "thyroid.gmt")


def test_a_change_of_any_file_of_a_cohort_is_seen(tmp_path):
    (tmp_path / "data_mrna_seq_v2_rsem.txt").write_text("a")
    (tmp_path / "data_clinical_sample.txt").write_text("b")
    clinical = tmp_path / "phenotype.tsv"
    clinical.write_text("c")
    folder = os.path.relpath(tmp_path, study.NOTEBOOKS)
    seen = {study.data_digest(folder, os.path.relpath(clinical, study.NOTEBOOKS))}
    for path in (tmp_path / "data_clinical_sample.txt", clinical):
        path.write_text("changed")
        seen.add(study.data_digest(folder, os.path.relpath(clinical, study.NOTEBOOKS)))
    assert len(seen) == 3


@pytest.mark.slow
def test_a_study_folder_as_downloaded_runs_with_its_path_and_label_only(runs, tmp_path):
    genes = features.read_panel("pam50")
    values = 2 ** np.random.default_rng(0).normal(8, 2, (50, len(test_readers.SAMPLES)))
    test_readers.study(tmp_path / "thca_tcga", values, genes)
    finish(runs[0], "--cohort", str(tmp_path / "thca_tcga"), "--label", "SUBTYPE", "--only", "01,02")
    table = report.select(results.load(folder(runs[0])), notebook="01_cohort", group="all").set_index("metric")[
        "estimate"
    ]
    assert table[["patients", "genes", "genes of pam50 found"]].tolist() == [len(test_readers.SAMPLES), 50, 50]
