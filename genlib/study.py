"""Run the notebooks in their order: ``python -m genlib.study``, called by ``run_all.sh``.

A notebook is executed beside its final name and moved there when it is finished; one that is finished, with the same
inputs, is not run again. So a run that was killed goes on where it was.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import sys
import time

import nbformat
import pandas as pd
import papermill
import yaml
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from genlib import cohorts, report, results

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
# What is run by a command of its own, since it says nothing about a cohort's patients.
APART = {"cost": "11_cost", "sharp-edges": "12_sharp_edges"}
# 10_across_cohorts reads several runs.
NOT_IN_STUDY = (*APART.values(), "10_across_cohorts")


class NotebookError(RuntimeError):
    """A notebook stopped; says in which cell, why, and where it lies as far as it came."""


def names():
    """Names of the study's notebooks in their order.

    Examples
    --------
    >>> names()[0]
    '01_cohort'
    """
    return [p.stem for p in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) if p.stem not in NOT_IN_STUDY]


def parameters_of(notebook):
    """Parameters that a notebook takes, with their defaults as written.

    Parameters
    ----------
    notebook : str
        As ``"01_cohort"``.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> "seed" in parameters_of("01_cohort")
    True
    """
    found = papermill.inspect_notebook(str(NOTEBOOKS / f"{notebook}.ipynb"))
    return {name: value["default"] for name, value in found.items()}


def profile(name):
    """Parameters of a profile, one flat YAML file beside the notebooks: ``papermill -f`` takes it as it is.

    Examples
    --------
    >>> profile("smoke")["cohort"]
    'simulated'
    """
    return yaml.safe_load((NOTEBOOKS / f"{name}.yaml").read_text())


def parameters_for(notebook, chosen):
    """Keep what this notebook takes of all parameters of a run.

    Examples
    --------
    >>> parameters_for("01_cohort", {"seed": 3, "delta": 1e-5})
    {'seed': 3}
    """
    return {name: value for name, value in chosen.items() if name in parameters_of(notebook)}


def _options(arguments):
    parser = argparse.ArgumentParser(prog="run_all.sh", description="Run the study.")
    parser.add_argument("--cohort", help="tcga-brca, simulated, or a file of your own; or several, separated by commas")
    parser.add_argument("--label", help="column of your file that holds the class")
    parser.add_argument("--clinical", help="clinical table that goes with a matrix of genes x samples")
    parser.add_argument("--panel", help="published gene panel: pam50, FILE.gmt or FILE.gmt#SET; none to go without")
    parser.add_argument("--network", help="one of the profile's targets")
    parser.add_argument("--profile", default="quick", choices=["smoke", "quick", "full"])
    parser.add_argument("--seed", default="0", help="or several, separated by commas")
    parser.add_argument("--run", help="folder below outputs/")
    parser.add_argument("--from", dest="start", help="notebook to start at")
    parser.add_argument("--only", help="notebooks to run alone, separated by commas")
    parser.add_argument("--sweep", help="YAML file of options with lists of values: many runs")
    parser.add_argument("--scheduler", help="address of a Dask scheduler whose workers take the runs of a sweep")
    parser.add_argument(
        "--apart", choices=list(APART), help="run a notebook that needs no cohort: measure times, or show faults"
    )
    return parser.parse_args(arguments)


def _chosen(options):
    """Profile and command line in one set of parameters, the command line last."""
    chosen = profile(options.profile)
    if options.cohort and options.cohort != chosen["cohort"]:
        # Options of the profile's own cohort, as the size of a simulated one, do not go with another.
        chosen |= {"cohort": options.cohort, "cohort_options": {}}
        # A panel of the profile's own tumor may not fit a cohort that comes by name with few genes.
        if "panel" in cohorts.registry().get(options.cohort, {}):
            chosen["panel"] = cohorts.registry()[options.cohort]["panel"]
    if pathlib.Path(chosen["cohort"]).exists():
        # Notebooks run in their own folder; a path must not depend on where the command was called.
        chosen["cohort"] = os.path.relpath(chosen["cohort"], NOTEBOOKS)
    if options.label:
        chosen["cohort_options"] = {**chosen["cohort_options"], "label": options.label}
    if options.clinical:
        clinical = os.path.relpath(options.clinical, NOTEBOOKS)
        chosen["cohort_options"] = {**chosen["cohort_options"], "clinical": clinical}
    if options.panel:
        chosen["panel"] = _panel(options.panel)
    if options.network:
        file, colon, function = options.network.rpartition(":")
        if not colon and options.network not in chosen["networks"]:
            _fail(f"unknown network '{options.network}'; choose {', '.join(chosen['networks'])}, or FILE.py:FUNCTION")
        chosen["network"] = os.path.relpath(file, NOTEBOOKS) + colon + function if colon else options.network
    stem = pathlib.Path(chosen["cohort"]).stem
    other = (
        "" if chosen["network"] == profile(options.profile)["network"] else f"-{chosen['network'].rpartition(':')[2]}"
    )
    default = f"{stem}-{options.profile}{other}" + (f"-seed{options.seed}" if int(options.seed) else "")
    chosen |= {"seed": int(options.seed), "run_folder": f"../outputs/{options.run or default}"}
    return chosen


def _panel(given):
    file, hash_sign, wanted = given.partition("#")
    if given == "none":
        return None
    return os.path.relpath(file, NOTEBOOKS) + hash_sign + wanted if pathlib.Path(file).exists() else given


def folder_of(options):
    """Folder that a run of these options writes to.

    Examples
    --------
    >>> folder_of(_options(["--profile", "smoke"])).name
    'simulated-smoke'
    """
    return (NOTEBOOKS / _chosen(options)["run_folder"]).resolve()


# Needs gradients of shared kernels patient by patient, which are not known here; and what reads its results.
WITHOUT = {"cnn": ("05_dp_sgd", "08_tradeoff")}


def _selected(options, network):
    def find(start):
        matches = [name for name in names() if name == start or name.startswith(f"{start}_")]
        if len(matches) != 1:
            _fail(f"unknown notebook '{start}'; choose among {', '.join(names())}")
        return matches[0]

    if options.only:
        return [find(only) for only in options.only.split(",")]
    left_out = WITHOUT.get(network, ())
    if left_out:
        print(f"Left out: {', '.join(left_out)}; network '{network}' cannot be trained under an epsilon here")
    wanted = names()[names().index(find(options.start)) :] if options.start else names()
    return [name for name in wanted if name not in left_out]


def _fail(message):
    print(f"run_all.sh: {message}", file=sys.stderr)
    raise SystemExit(2)


def _fingerprint(notebook, chosen, before):
    source = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())
    cells = [[cell["cell_type"], cell["source"]] for cell in source["cells"]]
    data = data_digest(chosen["cohort"], chosen["cohort_options"].get("clinical"))
    lock = (ROOT / "requirements.lock").read_bytes()
    return results.digest(cells, parameters_for(notebook, chosen), data, results.code_digest(), lock, before)


def data_digest(cohort, clinical=None):
    """Digest of what a cohort is read from: its name and registry entry, or the content of its files.

    Parameters
    ----------
    cohort : str
        Name, or path from the folder of the notebooks.
    clinical : str, optional
        Path of a clinical table.

    Returns
    -------
    str

    Examples
    --------
    >>> data_digest("tcga-kipan") == data_digest("tcga-lgg")
    False
    """
    paths = [NOTEBOOKS / path for path in (cohort, clinical) if path]
    files = [file for path in paths for file in (sorted(path.glob("data_*.txt")) if path.is_dir() else [path])]
    found = [[file.name, results.file_digest(file)] for file in files if file.is_file()]
    return results.digest(cohort, cohorts.registry().get(cohort), found)


def _run_one(notebook, chosen, run_folder, fingerprint):
    """Execute one notebook unless it is finished; return the seconds it took, or None when it was finished before."""
    finished, mark = run_folder / f"{notebook}.ipynb", run_folder / "finished" / f"{notebook}.json"
    if finished.exists() and mark.exists() and json.loads(mark.read_text())["fingerprint"] == fingerprint:
        return None
    mark.unlink(missing_ok=True)
    partial = run_folder / f"{notebook}.partial.ipynb"
    start = time.perf_counter()
    # Relative paths: the executed notebook records them, and it is meant to be shown to others.
    papermill.execute_notebook(
        os.path.relpath(NOTEBOOKS / f"{notebook}.ipynb"),
        os.path.relpath(partial),
        parameters_for(notebook, chosen),
        cwd=NOTEBOOKS,
        progress_bar={"desc": notebook, "leave": False} if sys.stderr.isatty() else False,
        # On a busy machine a kernel may take more than a minute to begin, and its last words more than four seconds.
        start_timeout=900,
        iopub_timeout=900,
        # The kernel warns about its loopback socket on every start and about being interrupted at its end. What
        # TensorFlow's C++ logs says nothing to a reader of the notebook.
        extra_arguments=["--IPKernelApp.log_level=CRITICAL", "--IPKernelApp.capture_fd_output=False"],
    )
    seconds = time.perf_counter() - start
    _join_streams(partial)
    os.replace(partial, finished)
    results.save_json(mark, {"fingerprint": fingerprint})
    return seconds


def _join_streams(path):
    """One stream a cell, and of a progress bar what stood last: a kernel sends line by line what a cell prints."""
    executed = nbformat.read(path, as_version=4)
    joined, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(executed, {})
    with results.atomic_path(path) as part:
        nbformat.write(joined, part)


def _note_time(run_folder, notebook, seconds):
    path = run_folder / "timings.csv"
    before = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["notebook", "seconds"])
    row = pd.DataFrame({"notebook": [notebook], "seconds": [round(seconds, 1)]})
    table = pd.concat([before[before["notebook"] != notebook], row]).sort_values("notebook", kind="stable")
    with results.atomic_path(path) as part:
        table.to_csv(part, index=False)


def run_apart(notebook, run_folder):
    """Run a notebook that needs no cohort, always anew: a time that was measured once is no result to keep.

    Parameters
    ----------
    notebook : str
        One of `APART`.
    run_folder : pathlib.Path
        Its folder below ``outputs``.

    Raises
    ------
    NotebookError
        When a cell fails.

    Examples
    --------
    >>> run_apart("12_sharp_edges", ROOT / "outputs" / "sharp-edges")  # doctest: +SKIP
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / "finished" / f"{notebook}.json").unlink(missing_ok=True)
    chosen = {"run_folder": os.path.relpath(run_folder, NOTEBOOKS)}
    results.update_manifest(run_folder, notebook, results.environment())
    print(f"{notebook}: some minutes", flush=True)
    execute(notebook, chosen, run_folder, "")
    if (run_folder / "results.csv").exists():
        report.write(run_folder)  # a run's page lists it with the others
    else:
        report.pages(run_folder)
    print(f"The notebook (also as HTML), its figures and its table are in {os.path.relpath(run_folder)}")


def execute(notebook, chosen, run_folder, fingerprint):
    """Execute one notebook unless it is finished with this fingerprint.

    Parameters
    ----------
    notebook : str
    chosen : dict
        Parameters; those that the notebook does not take are left out.
    run_folder : pathlib.Path
    fingerprint : str
        Digest of all that the result depends on.

    Returns
    -------
    float or None
        Seconds that it took, None where it was finished before.

    Raises
    ------
    NotebookError
        When a cell fails.

    Examples
    --------
    >>> execute("11_cost", {}, pathlib.Path("outputs/cost"), "")  # doctest: +SKIP
    """
    try:
        seconds = _run_one(notebook, chosen, run_folder, fingerprint)
    except papermill.PapermillExecutionError as error:
        failed = run_folder / f"{notebook}.failed.ipynb"
        os.replace(run_folder / f"{notebook}.partial.ipynb", failed)
        raise NotebookError(
            f"{notebook} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n"
            f"The notebook as far as it came: {os.path.relpath(failed)}"
        ) from None
    (run_folder / f"{notebook}.failed.ipynb").unlink(missing_ok=True)
    return seconds


@contextlib.contextmanager
def _alone(run_folder):
    """Let one process at a time write to a run's folder: the second waits, and then finds the work done."""
    run_folder.mkdir(parents=True, exist_ok=True)
    with open(run_folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is at work in {os.path.relpath(run_folder)}; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(options):
    """Run the notebooks that are wanted, in their order.

    Parameters
    ----------
    options : argparse.Namespace
        The command line's options, one value each.

    Raises
    ------
    NotebookError
        When a notebook fails; those after it are not run.
    SystemExit
        2 for a wrong option.

    Examples
    --------
    >>> run(_options(["--profile", "smoke"]))  # doctest: +SKIP
    """
    chosen = _chosen(options)
    selected = _selected(options, chosen["network"])
    run_folder = folder_of(options)
    with _alone(run_folder):
        results.update_manifest(run_folder, "run", {"profile": options.profile, "parameters": chosen})
        results.update_manifest(run_folder, "environment", results.environment())
        _run_selected(selected, chosen, run_folder)
        table = results.merge(run_folder)
        checksum = results.file_digest(run_folder / "results.csv")
        results.update_manifest(run_folder, "results", {"rows": len(table), "sha256": checksum})
    print("\n" + report.summary(table))
    _reports(run_folder)
    print(f"\nindex.html, notebooks, figures and results.csv are in {os.path.relpath(run_folder)}")


def _reports(run_folder):
    """Write the report page and the risk card, and say what they lack."""
    for lacking in report.write(run_folder):
        print(f"\n{lacking}")


def _run_selected(selected, chosen, run_folder):
    before = ""
    for number, notebook in enumerate(names(), start=1):
        before = _fingerprint(notebook, chosen, before)
        if notebook not in selected:
            continue
        print(f"[{number}/{len(names())}] {notebook}", flush=True)
        seconds = execute(notebook, chosen, run_folder, before)
        if seconds is None:
            print("      finished before, unchanged", flush=True)
        else:
            _note_time(run_folder, notebook, seconds)
            print(f"      {seconds:.0f} s", flush=True)


def main(arguments=None):
    """Run the study as the command line says; see ``run_all.sh --help``.

    Raises
    ------
    SystemExit
        1 when a notebook failed, 2 for a wrong option.

    Examples
    --------
    >>> main(["--only", "99"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    from genlib import sweep  # which calls this module

    options = _options(arguments)
    os.chdir(ROOT)
    try:
        if options.scheduler and (options.apart or not sweep.is_wanted(options)):
            _fail("--scheduler spreads the runs of a sweep, and this is a single run; leave it out, or ask for several")
        if options.apart:
            run_apart(APART[options.apart], ROOT / "outputs" / (options.run or options.apart))
        elif sweep.is_wanted(options):
            sweep.run(options)
        else:
            run(options)
    except (NotebookError, sweep.SweepError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
