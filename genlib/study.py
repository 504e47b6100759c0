"""Run the notebooks in their order: ``python -m genlib.study``, called by ``run_all.sh``.

A notebook is executed beside its final name and moved there when it is finished; one that is finished, with the same
inputs, is not run again. So a run that was killed goes on where it was.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import pandas as pd
import papermill
import yaml

from genlib import cohorts, report, results

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
NOT_IN_STUDY = ("08_cost",)  # compares speed, which says nothing about patients; runs by its own command


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
    parser.add_argument("--cohort", help="tcga-brca, simulated, or a file of your own")
    parser.add_argument("--label", help="column of your file that holds the class")
    parser.add_argument("--clinical", help="clinical table that goes with a matrix of genes x samples")
    parser.add_argument("--panel", help="published gene panel: pam50, FILE.gmt or FILE.gmt#SET; none to go without")
    parser.add_argument("--architecture", help="one of the profile's targets")
    parser.add_argument("--profile", default="quick", choices=["smoke", "quick", "full"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", help="folder below outputs/")
    parser.add_argument("--from", dest="start", help="notebook to start at")
    parser.add_argument("--only", help="notebooks to run alone, separated by commas")
    parser.add_argument("--cost", action="store_true", help="measure times: run 08_cost alone")
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
    if options.architecture:
        if options.architecture not in chosen["targets"]:
            _fail(f"unknown architecture '{options.architecture}'; choose among {', '.join(chosen['targets'])}")
        chosen["architecture"] = options.architecture
    stem = pathlib.Path(chosen["cohort"]).stem
    other = "" if chosen["architecture"] == profile(options.profile)["architecture"] else f"-{chosen['architecture']}"
    default = f"{stem}-{options.profile}{other}" + (f"-seed{options.seed}" if options.seed else "")
    chosen |= {"seed": options.seed, "run_folder": f"../outputs/{options.run or default}"}
    return chosen


def _panel(given):
    file, hash_sign, wanted = given.partition("#")
    if given == "none":
        return None
    return os.path.relpath(file, NOTEBOOKS) + hash_sign + wanted if pathlib.Path(file).exists() else given


# Needs gradients of shared kernels patient by patient, which are not known here; and what reads its results.
WITHOUT = {"cnn": ("04_dp_sgd", "07_tradeoff")}


def _selected(options, architecture):
    def find(start):
        matches = [name for name in names() if name == start or name.startswith(f"{start}_")]
        if len(matches) != 1:
            _fail(f"unknown notebook '{start}'; choose among {', '.join(names())}")
        return matches[0]

    if options.only:
        return [find(only) for only in options.only.split(",")]
    left_out = WITHOUT.get(architecture, ())
    if left_out:
        print(f"Left out: {', '.join(left_out)}; architecture '{architecture}' cannot be trained under an epsilon here")
    wanted = names()[names().index(find(options.start)) :] if options.start else names()
    return [name for name in wanted if name not in left_out]


def _fail(message):
    print(f"run_all.sh: {message}", file=sys.stderr)
    raise SystemExit(2)


def _fingerprint(notebook, chosen, before):
    source = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())
    cells = [[cell["cell_type"], cell["source"]] for cell in source["cells"]]
    cohort = NOTEBOOKS / chosen["cohort"]
    data = results.file_digest(cohort) if cohort.is_file() else chosen["cohort"]
    lock = (ROOT / "requirements.lock").read_bytes()
    return results.digest(cells, parameters_for(notebook, chosen), data, results.code_digest(), lock, before)


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
        # The kernel warns about its loopback socket on every start and about being interrupted at its end.
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
    )
    seconds = time.perf_counter() - start
    os.replace(partial, finished)
    results.save_json(mark, {"fingerprint": fingerprint})
    return seconds


def _note_time(run_folder, notebook, seconds):
    path = run_folder / "timings.csv"
    before = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["notebook", "seconds"])
    row = pd.DataFrame({"notebook": [notebook], "seconds": [round(seconds, 1)]})
    table = pd.concat([before[before["notebook"] != notebook], row]).sort_values("notebook")
    with results.atomic_path(path) as part:
        table.to_csv(part, index=False)


def measure_cost(run_folder):
    """Run ``08_cost`` alone, always anew: a time that was measured once is no result to keep.

    Parameters
    ----------
    run_folder : pathlib.Path
        Its folder below ``outputs``.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / "finished" / "08_cost.json").unlink(missing_ok=True)
    chosen = {"run_folder": os.path.relpath(run_folder, NOTEBOOKS)}
    results.update_manifest(run_folder, "environment", results.environment())
    _execute("08_cost", chosen, run_folder, "")
    print(f"The notebook, its figures and cost.csv are in {os.path.relpath(run_folder)}")


def _execute(notebook, chosen, run_folder, fingerprint):
    """Run one notebook, or say where it failed and leave."""
    try:
        return _run_one(notebook, chosen, run_folder, fingerprint)
    except papermill.PapermillExecutionError as error:
        failed = run_folder / f"{notebook}.failed.ipynb"
        os.replace(run_folder / f"{notebook}.partial.ipynb", failed)
        print(
            f"{notebook} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n"
            f"The notebook as far as it came: {os.path.relpath(failed)}",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


def main(arguments=None):
    """Run the study as the command line says; see ``run_all.sh --help``.

    Raises
    ------
    SystemExit
        0 when all went well, 1 when a notebook failed, 2 for a wrong option.

    Examples
    --------
    >>> main(["--only", "99"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    options = _options(arguments)
    os.chdir(ROOT)
    if options.cost:
        measure_cost(ROOT / "outputs" / (options.run or "cost"))
        return
    chosen = _chosen(options)
    selected = _selected(options, chosen["architecture"])
    run_folder = (NOTEBOOKS / chosen["run_folder"]).resolve()
    run_folder.mkdir(parents=True, exist_ok=True)
    results.update_manifest(run_folder, "run", {"profile": options.profile, "parameters": chosen})
    results.update_manifest(run_folder, "environment", results.environment())
    before = ""
    for number, notebook in enumerate(names(), start=1):
        before = _fingerprint(notebook, chosen, before)
        if notebook not in selected:
            continue
        print(f"[{number}/{len(names())}] {notebook}", flush=True)
        seconds = _execute(notebook, chosen, run_folder, before)
        (run_folder / f"{notebook}.failed.ipynb").unlink(missing_ok=True)
        if seconds is None:
            print("      finished before, unchanged", flush=True)
        else:
            _note_time(run_folder, notebook, seconds)
            print(f"      {seconds:.0f} s", flush=True)
    table = results.merge(run_folder)
    checksum = results.file_digest(run_folder / "results.csv")
    results.update_manifest(run_folder, "results", {"rows": len(table), "sha256": checksum})
    print("\n" + report.summary(table))
    print(f"\nNotebooks, figures and results.csv are in {os.path.relpath(run_folder)}")


if __name__ == "__main__":
    main()
