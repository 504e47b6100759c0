"""Many runs from one command."""

import os
import shutil
import subprocess
import sys

import distributed
import numpy as np
import pandas as pd
import pytest
import yaml

from genlib import results, study, sweep


def options(*words):
    return study._options(["--profile", "smoke", *words])


def combos(*words):
    return [(one.cohort, one.network, one.seed) for one in sweep.combinations(options(*words))]


def test_every_cohort_meets_every_architecture_and_every_seed():
    found = combos("--cohort", "tcga-brca,tcga-lgg", "--network", "mlp,cnn", "--seed", "0,3")
    assert len(found) == len(set(found)) == 8
    assert ("tcga-lgg", "cnn", "3") in found
    assert combos("--seed", "1,2") == [(None, None, "1"), (None, None, "2")]


def test_a_sweep_is_what_has_several_values_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.csv").write_text("a path may hold a comma")
    assert not sweep.is_wanted(options("--cohort", "a,b.csv"))
    assert sweep.is_wanted(options("--cohort", "a.csv,b.csv"))
    assert sweep.is_wanted(options("--sweep", "runs.yaml"))
    assert not sweep.is_wanted(options("--only", "02,03"))


def test_a_file_gives_each_cohort_its_own_label_and_panel(tmp_path):
    (tmp_path / "thyroid.csv").write_text("x")
    asked = {
        "profile": "quick", "seed": [0, 1], "only": "01,02",
        "cohort": ["tcga-brca", {"cohort": "thyroid.csv", "label": "histology", "panel": "none"}],
    }  # fmt: skip
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(asked))
    found = sweep.combinations(options("--sweep", str(tmp_path / "runs.yaml")))
    assert [one.cohort for one in found] == ["tcga-brca"] * 2 + [str(tmp_path / "thyroid.csv")] * 2
    assert [one.label for one in found] == [None, None, "histology", "histology"]
    assert {one.profile for one in found} == {"quick"} and {one.only for one in found} == {"01,02"}
    assert found[2].panel == "none" and found[0].panel is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- tcga-brca", "must hold options"),
        ("cohorts: [a, b]", "unknown option 'cohorts'; known are cohort"),
        ("cohort: [{label: x}]", "lacks 'cohort'"),
        ("cohort: [{cohort: a, lable: x}]", "unknown option 'lable'"),
        ("seed: [0, 0]", "would both write to outputs/simulated-smoke"),
        ("seed: [0", "cannot be read"),
    ],
)
def test_a_wrong_sweep_file_says_what_is_wrong(tmp_path, text, said):
    (tmp_path / "runs.yaml").write_text(text)
    with pytest.raises(sweep.SweepError, match=said):
        sweep.combinations(options("--sweep", str(tmp_path / "runs.yaml")))


def test_a_label_for_several_cohorts_is_refused():
    with pytest.raises(sweep.SweepError, match="--label with 2 cohorts"):
        sweep.combinations(options("--cohort", "a.csv,b.csv", "--label", "x"))


def test_runs_at_a_time_follow_cores_and_memory(monkeypatch):
    class Memory:
        available = 9e9

    monkeypatch.setattr(sweep.psutil, "virtual_memory", Memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert sweep.side_by_side(10) == 2  # 4 GB each
    Memory.available = 1e12
    assert sweep.side_by_side(100) == 32
    assert sweep.side_by_side(5) == 5
    Memory.available = 1e9
    assert sweep.side_by_side(5) == 1


@pytest.fixture
def a_sweep(tmp_path):
    """Two cohorts, of which one cannot be trained on: its values are linear."""
    good, bad = tmp_path / f"good{os.getpid()}.csv", tmp_path / f"bad{os.getpid()}.csv"
    rng = np.random.default_rng(0)
    genes = {f"G{g}": rng.normal(8, 1, 60) for g in range(40)}
    rows = pd.DataFrame({"subtype": ["A", "B"] * 30, **genes})
    rows.to_csv(good, index=False)
    rows.assign(G1=1e3 * rng.uniform(1, 9, 60)).to_csv(bad, index=False)
    (tmp_path / "runs.yaml").write_text(
        yaml.safe_dump({"cohort": [{"cohort": p.name, "label": "subtype", "panel": "none"} for p in (good, bad)]})
    )
    run = f"test-{os.getpid()}-sweep"
    yield tmp_path / "runs.yaml", run
    for name in (run, f"{good.stem}-smoke", f"{bad.stem}-smoke"):
        shutil.rmtree(study.ROOT / "outputs" / name, ignore_errors=True)


@pytest.mark.slow
def test_a_failed_run_is_named_at_the_end_and_does_not_stop_the_others(a_sweep):
    file, run = a_sweep
    words = [sys.executable, "-m", "genlib.study", "--profile", "smoke", "--sweep", str(file), "--run", run]
    said = subprocess.run([*words, "--only", "01,02,03"], cwd=study.ROOT, capture_output=True, text=True)
    assert said.returncode == 1, said.stdout + said.stderr
    assert "1 of 2 runs failed" in said.stderr and "01_cohort failed in cell" in said.stderr
    assert "1 of 40 columns reach more than 40" in said.stderr
    table = pd.read_csv(study.ROOT / "outputs" / run / "sweep.csv").set_index("run")["finished"]
    assert table.sort_index(ascending=False).tolist() == [True, False]
    found = results.load(study.ROOT / "outputs" / run, "10_across_cohorts")
    assert len(found) == 4


def test_one_run_says_what_went_wrong_and_keeps_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.study, "folder_of", lambda _: tmp_path)

    def fail(_):
        print("words of the run")
        raise study.NotebookError("02 failed in cell 3")

    monkeypatch.setattr(sweep.study, "run", fail)
    assert sweep.run_one(vars(options()), sweep.version()) == "02 failed in cell 3"
    assert "words of the run\n02 failed in cell 3" in (tmp_path / "log.txt").read_text()
    monkeypatch.setattr(sweep.study, "run", lambda _: None)
    assert sweep.run_one(vars(options()), sweep.version()) == ""


def test_a_run_that_left_nothing_here_is_not_called_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.study, "folder_of", lambda _: tmp_path)

    class Task:
        def result(self):
            return ""

    assert "must share it" in sweep._ended(Task(), options())["outcome"]
    (tmp_path / "results.csv").touch()
    assert sweep._ended(Task(), options())["finished"]

    class Dead:
        def result(self):
            raise RuntimeError("the last worker died")

    assert "the last worker died" in sweep._ended(Dead(), options())["outcome"]


def test_where_nobody_answers_it_says_how_to_start_them(monkeypatch):
    monkeypatch.setattr(sweep, "PATIENCE", 1)
    with pytest.raises(sweep.SweepError, match="dask scheduler.*leave --scheduler out"):
        sweep.connect("tcp://127.0.0.1:9")


@pytest.mark.parametrize("words", [["--seed", "1"], ["--apart", "cost"]])
def test_a_single_run_is_not_spread_and_says_so_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        study.main(["--profile", "smoke", "--scheduler", "tcp://127.0.0.1:9", *words])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert "spreads the runs of a sweep" in said.err and len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize("what", ["code", "loaded", "packages"])
def test_a_run_is_refused_where_code_or_packages_differ(monkeypatch, what):
    wanted = sweep.version()
    monkeypatch.setattr(study, "run", lambda _: pytest.fail("the run was begun"))
    if what == "code":
        monkeypatch.setattr(results, "code_digest", lambda *_: "other")
    elif what == "loaded":
        monkeypatch.setattr(sweep, "_LOADED", "other")
    else:
        monkeypatch.setattr(results, "environment", lambda: {"versions": {"numpy": "0"}})
    said = sweep.run_one(vars(options()), wanted)
    assert "this worker has another genlib" in said and len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def workers():
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, memory_limit=None, dashboard_address=":0", silence_logs=50
    ) as local:
        yield local


@pytest.mark.slow
@pytest.mark.xdist_group("workers")
def test_a_worker_with_other_code_is_refused_at_the_start(workers, monkeypatch):
    monkeypatch.setattr(results, "code_digest", lambda *_: "other")
    with pytest.raises(sweep.SweepError, match="1 of 1 workers have another genlib"):
        sweep.connect(workers.scheduler_address)


@pytest.mark.slow
@pytest.mark.xdist_group("workers")
def test_a_worker_with_other_code_that_joins_later_runs_nothing(workers, tmp_path):
    shutil.copytree(study.ROOT / "genlib", tmp_path / "genlib")
    with open(tmp_path / "genlib" / "audit.py", "a") as changed:
        changed.write("# changed")
    with sweep.connect(workers.scheduler_address) as client:
        (first,) = client.scheduler_info()["workers"]
        words = [sys.executable, "-m", "distributed.cli.dask_worker", workers.scheduler_address, "--no-dashboard"]
        late = subprocess.Popen(
            [*words, "--no-nanny", "--nthreads", "1", "--local-directory", str(tmp_path / "scratch")],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            client.wait_for_workers(2, timeout=300)
            (other,) = set(client.scheduler_info()["workers"]) - {first}
            # Would the run be begun, it would ask for a folder of this name.
            run = vars(options("--run", "must-not-be", "--only", "01"))
            said = client.submit(sweep.run_one, run, sweep.version(), workers=[other], pure=False).result(timeout=300)
            assert said.startswith("this worker has another genlib") and len(said.splitlines()) == 1
            found = client.run(lambda: __import__("genlib").__file__, workers=[other])[other]
            assert found == str(tmp_path / "genlib" / "__init__.py")
            assert not (tmp_path / "outputs").exists() and not (study.ROOT / "outputs" / "must-not-be").exists()
            with pytest.raises(sweep.SweepError, match="1 of 2 workers have another genlib"):
                sweep.connect(workers.scheduler_address)
        finally:
            late.terminate()
            late.wait()
