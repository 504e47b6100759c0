"""Runs of the study, one or many, each a row of notebooks; and `verify`, which compares one with the reference.

A notebook is executed beside its final name and moved there when it is finished; one that is finished, with the same
inputs, is not run again, so a run that was killed goes on where it was. Several runs are tasks of Dask, one a run: of a
local cluster that the command starts and ends, or of one whose scheduler is named.
"""

import ast
import contextlib
import dataclasses
import errno
import fcntl
import functools
import inspect
import itertools
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import sys
import time

import distributed
import nbformat
import numpy as np
import pandas as pd
import papermill
import psutil
import scipy.stats
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from genlib import cohorts, features, report, results
from genlib.__main__ import NOTEBOOKS, parse

OUTPUTS = NOTEBOOKS.parent / "outputs"
REFERENCE = OUTPUTS / "reference"
# Run by commands of their own, since they say nothing about a cohort's patients.
APART = {"cost": "11_cost", "sharp-edges": "12_sharp_edges"}
ACROSS = "10_across_cohorts"  # reads several runs
YOURS = "your_model"  # judges one model of a user's own
# DP-SGD needs gradients of shared kernels patient by patient, which are not known here; and what reads its results.
WITHOUT = {"cnn": ("05_dp_sgd", "08_tradeoff")}
# Options that say how one's own file is read, and those of any cohort, by what they are like.
WORDS = ("label", "clinical", "patient", "sample", "site", "several", "unmatched", "units", "layer")
OF_FILES = {**dict.fromkeys((*WORDS, "drop_constant_genes"), ""), "ignore": [""], "missing": [""]}
OF_COHORTS = {**OF_FILES, "drop_classes": [""], "min_class_size": 10}
OF_SIMULATED = tuple(inspect.signature(cohorts.simulate).parameters)
PATHS = ("cohort", "clinical", "panel", "network")  # may name a file, also FILE.gmt#SET or FILE.py:FUNCTION
SEVERAL = ("cohort", "network", "seed")
# What one run keeps busy: its notebook's process has a thread a core, and a bank of real patients needs some memory.
CORES_A_RUN = 2
MEMORY_A_RUN = 4e9  # bytes
PATIENCE = 30  # seconds to wait for a scheduler and its first worker
# A worker that was started before a file changed goes on with what it had loaded.
_LOADED = results.code_digest()


class OptionError(ValueError):
    """What was asked cannot be run as it is asked: one line with the way out. Exit status 2."""


class RunError(RuntimeError):
    """A run stopped: which notebook, why, and what to do. Exit status 1."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study, from `plan`.

    Attributes
    ----------
    name, profile : str
        The name is that of its folder below ``outputs``.
    notebooks : list of str
        Those that are wanted, in their order.
    parameters : dict
        Of all notebooks; each takes what it knows.
    inputs : str
        Digest of all that the results depend on beside code: parameters, and the content of every file they name.
    """

    name: str
    profile: str
    notebooks: list
    parameters: dict
    inputs: str

    @property
    def folder(self):
        """Where it goes."""
        return OUTPUTS / self.name


def names():
    """Names of the study's notebooks in their order.

    Examples
    --------
    >>> names()[0]
    '01_cohort'
    """
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb") if path.stem < "10")


@functools.cache
def parameters_of(notebook):
    """Parameters that a notebook takes, with their defaults.

    Examples
    --------
    >>> parameters_of("01_cohort")["seed"]
    0
    """
    found = papermill.inspect_notebook(str(NOTEBOOKS / f"{notebook}.ipynb"))
    return {name: ast.literal_eval(value["default"]) for name, value in found.items()}


def parameters_for(notebook, chosen):
    """Keep what this notebook takes of all parameters of a run.

    Examples
    --------
    >>> parameters_for("01_cohort", {"seed": 3, "delta": 1e-5})
    {'seed': 3}
    """
    return {name: value for name, value in chosen.items() if name in parameters_of(notebook)}


def profile(name):
    """Parameters of a profile: a YAML file beside the notebooks, which ``papermill -f`` takes as it is.

    Raises
    ------
    OptionError
        When a key is no parameter of a notebook, or a value is not of its kind.

    Examples
    --------
    >>> profile("smoke")["cohort"]
    'simulated'
    """
    taken = {key: value for one in names() for key, value in parameters_of(one).items()} | {"networks": {}}
    found = results.read_yaml(NOTEBOOKS / f"{name}.yaml")
    _refuse_unknown(found, taken, f"profile {name}.yaml")
    return {key: _as(taken[key], value, f"profile {name}.yaml: {key}") for key, value in found.items()}


def _refuse_unknown(found, known, where):
    unknown = [name for name in found if name not in known]
    if unknown:
        raise OptionError(f"{where}: unknown option '{unknown[0]}'; known are {', '.join(sorted(known))}")


def _typed(said):
    """Write options of `cohorts.load` as they are typed on the command line.

    Examples
    --------
    >>> _typed("leave it out with ignore=['age', 'os days'], or pass units='linear'")
    "leave it out with --ignore age 'os days', or pass --units linear"
    """
    names, value = "|".join(OF_COHORTS), r"\[(?:'[^']*'(?:, )?)*\]|'[^']*'|\d+|True"

    def flag(found):
        words = ast.literal_eval(found[2])
        words = words if isinstance(words, list) else [words]
        return " ".join([f"--{found[1].replace('_', '-')}", *(shlex.quote(str(word)) for word in words)])

    return re.sub(rf"\b({names})=({value})", flag, said)


def _as(like, value, where):
    """Take a value for what is meant, where there is no doubt: for one of the kind of another."""
    if isinstance(like, str) or like is None:
        return value if value is None else str(value)
    if isinstance(like, list | dict):
        value = type(like)() if value is None else value
        value = [value] if isinstance(like, list) and not isinstance(value, list | dict) else value
        if isinstance(value, type(like)):
            return [str(one) for one in value] if like and isinstance(like, list) and like[0] == "" else value
    elif not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = int(value) if isinstance(value, int) or str(value).isdecimal() else float(value)
            if isinstance(like, float) or number == int(number):
                return number if isinstance(like, float) else int(number)
    raise OptionError(f"{where}: {value!r} cannot be; write it like {like!r}")


def plan(asked):
    """Make one run out of options.

    Parameters
    ----------
    asked : dict
        The command line's options by their names, one value each, paths absolute, as `runs_of` makes them; and
        `cohort_options`, further options of `cohorts.load`.

    Returns
    -------
    Run

    Raises
    ------
    OptionError
        When what is asked for is not there, or does not go together: before any notebook is run.

    Examples
    --------
    >>> run = plan(vars(parse(["--profile", "smoke", "--seed", "3"])))
    >>> run.name, run.parameters["seed"]
    ('simulated-smoke-seed3', 3)
    """
    chosen = profile(asked["profile"])
    known, usual = chosen.pop("networks"), chosen["network"]
    network = asked["network"] or usual
    if not _file(network)[0] and (network == "own" or network not in known):
        there = ", ".join(sorted(set(known) - {"own"}))
        raise OptionError(f"unknown network '{network}'; choose {there}, or a function of your own as FILE.py:FUNCTION")
    seed = _as(0, 0 if asked["seed"] is None else asked["seed"], "seed")
    if seed < 0:
        raise OptionError(f"seed {seed}: it must be at least 0")
    changes = _as({}, asked["network_options"] or chosen["network_options"], "network_options")
    chosen |= {"network": network, "network_options": changes, "seed": seed, **_cohort(chosen, asked)}
    files = [chosen["cohort"], chosen["cohort_options"].get("clinical"), chosen["panel"], network]
    contents = [_contents(one) for one in files]
    entry = _known_cohorts().get(chosen["cohort"])
    inputs = results.digest(chosen, known.get(network, known["own"]), contents, entry)
    parts = [pathlib.Path(chosen["cohort"]).stem, asked["profile"]]
    parts += [network.rpartition(":")[2]] * (network != usual) + [f"seed{seed}"] * (seed > 0)
    unsaid = (*OF_COHORTS, "cohort_options", "panel", "network_options")
    parts += [inputs[:6]] * any([*contents, *(asked.get(name) for name in unsaid)])
    name = asked["run"] or "-".join(parts)
    if "/" in name or name.startswith("."):
        raise OptionError(f"--run {name}: it must be a plain folder name, without '/'")
    chosen["run_folder"] = f"../outputs/{name}"
    return Run(name, asked["profile"], _selected(asked, network), chosen, inputs)


def _known_cohorts():
    return {"simulated": {}, "tcga-brca": {}, **cohorts.registry()}


def _cohort(chosen, asked):
    """Choose cohort, its options and its panel, as parameters."""
    known, cohort = _known_cohorts(), asked["cohort"] or chosen["cohort"]
    own = cohort not in known
    if own and not _file(cohort)[0]:
        raise OptionError(f"unknown cohort '{cohort}'; choose among {', '.join(known)}, or give an existing file")
    options = chosen["cohort_options"] | (asked.get("cohort_options") or {})
    options |= {name: asked[name] for name in OF_COHORTS if asked[name] is not None}
    # The size of a simulated cohort says nothing of another.
    options = {name: value for name, value in options.items() if cohort == "simulated" or name not in OF_SIMULATED}
    options |= {name: _as(OF_COHORTS[name], options[name], name) for name in options if name in OF_COHORTS}
    wrong = [name for name in OF_FILES if name in options and not own]
    if wrong:
        raise OptionError(f"cohort '{cohort}' is known and takes no {wrong[0]}; that goes with a file of your own")
    if own and not options.get("label"):
        name = pathlib.Path(cohort).name
        raise OptionError(f"{name}: say which column holds each patient's class, as --label subtype")
    if "clinical" in options and not _file(options["clinical"])[0]:
        raise OptionError(f"there is no clinical table '{options['clinical']}'")
    panel = asked["panel"] or (chosen["panel"] if cohort in cohorts.NAMED else cohorts.default_panel(cohort))
    panel = None if panel == "none" else panel
    with contextlib.chdir(NOTEBOOKS):
        features.read_panel(panel or "pam50")  # refuses what is no panel
    return {"cohort": cohort, "cohort_options": options, "panel": panel}


def _file(value, folder=NOTEBOOKS):
    """Path of the file that an option names, counted from a folder, and what follows it; no path for a mere name."""
    for mark in ("", "#", ":"):
        path, mark, rest = str(value).rpartition(mark) if mark else (str(value), "", "")
        if path and (folder / path).exists():
            return (folder / path).resolve(), mark + rest
    return None, ""


def _located(values, folder):
    """Count paths from where notebooks run, whatever folder they are counted from: they are recorded, and shown."""
    found = {}
    for name in PATHS:
        given = str(values.get(name))
        if given not in _known_cohorts() and (name in PATHS[:2] or "." in given):  # a folder may be called mlp
            path, rest = _file(given, folder)
            found |= {name: os.path.relpath(path, NOTEBOOKS) + rest} if path else {}
    return {**values, **found}


def _contents(value):
    """Digest of the files that an option names; beside a panel lie its centroids."""
    path, _ = _file(value)
    if not path:
        return ""
    beside = path.parent.iterdir() if path.suffix == ".gmt" else [path]
    files = path.iterdir() if path.is_dir() else [one for one in beside if one.name.startswith(path.stem)]
    return results.digest([[file.name, results.file_digest(file)] for file in sorted(files) if file.is_file()])


def _find(start):
    start = str(start).strip().zfill(2)
    found = [name for name in names() if name == start or name.startswith(f"{start}_")]
    if len(found) != 1:
        raise OptionError(f"unknown notebook '{start}'; choose among {', '.join(names())}")
    return found[0]


def _selected(asked, network):
    """Notebooks that are wanted, in their order."""
    if asked["only"] is not None:
        only = asked["only"] if isinstance(asked["only"], list) else str(asked["only"]).split(",")
        return sorted({_find(one) for one in only})
    first = names()[0] if asked["from"] is None else _find(asked["from"])
    return [name for name in names() if name >= first and name not in WITHOUT.get(network, ())]


def runs_of(options):
    """List the runs that a command line asks for: every cohort with every network and every seed.

    Parameters
    ----------
    options : argparse.Namespace
        With several values, separated by commas, or with `sweep`: a YAML file of the same options with lists of
        values, where a value may have options of its own, as ``{cohort: thyroid.csv, label: histology}``. Paths count
        from where the file lies.

    Returns
    -------
    list of Run

    Raises
    ------
    OptionError
        When the file cannot be read or has an unknown option, when two runs are one, and as `plan`.

    Examples
    --------
    >>> [run.name for run in runs_of(parse(["--profile", "smoke", "--seed", "0,1"]))]
    ['simulated-smoke', 'simulated-smoke-seed1']
    """
    here = pathlib.Path.cwd()
    asked = _located(vars(options), here)
    if options.network_options:
        asked["network_options"] = results.parse_yaml(options.network_options, "--network-options")
    lists = {name: _each(name, vars(options)[name], here) for name in SEVERAL}
    if options.sweep:
        file, known = pathlib.Path(options.sweep), {*asked, "cohort_options"} - {"command", "run", "sweep", "scheduler"}
        found = results.read_yaml(file)
        if not isinstance(found, dict):
            raise OptionError(f"sweep file {file} must hold options, as 'cohort: [tcga-brca, tcga-lgg]'")
        own = {name: _each(name, found[name], file.parent.resolve()) for name in SEVERAL if name in found}
        for part in (found, *itertools.chain(*own.values())):
            _refuse_unknown(part, known, f"sweep file {file}")
        lists |= own
        asked |= _located(found, file.parent.resolve())
    each = [functools.reduce(dict.__or__, values) for values in itertools.product(*lists.values())]
    if len(each) > 1 or options.sweep:
        asked["run"] = None  # that of what holds over all
    runs = [plan(asked | one) for one in each]
    found = [run.name for run in runs]
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise OptionError(f"two runs would both write to outputs/{twice[0]}; ask for it once, and leave --run out")
    return runs


def _each(name, given, folder):
    """Values of an option that may have several, each as options of one run."""
    if isinstance(given, str) and not (folder / given).exists():  # a path may hold a comma
        given = given.split(",")
    each = [one if isinstance(one, dict) else {name: one} for one in (given if isinstance(given, list) else [given])]
    for one in each:
        if name not in one:
            raise OptionError(f"an entry of {name} lacks '{name}': {one}; write it as '{{{name}: ..., ...}}'")
    return [_located(one, folder) for one in each]


def study(run):
    """Do one run: its notebooks in their order, the results table, the page and a short answer.

    Parameters
    ----------
    run : Run

    Raises
    ------
    OptionError
        When its folder holds another study.
    RunError
        When a notebook fails; those after it are not run.

    Examples
    --------
    >>> study(plan(vars(parse(["--profile", "smoke"]))))  # doctest: +SKIP
    """
    with _alone(run.folder):
        _refuse_another(run)
        said = {"profile": run.profile, "parameters": run.parameters, "inputs": run.inputs}
        results.update_manifest(run.folder, "run", said)
        results.update_manifest(run.folder, "environment", results.environment())
        _run_notebooks(run)
        table = results.merge(run.folder)
        checksum = results.file_digest(run.folder / "results.csv")
        results.update_manifest(run.folder, "results", {"rows": len(table), "sha256": checksum})
    print("\n" + report.summary(table))
    for lacking in report.write(run.folder):
        print(f"\n{lacking}")
    print(f"\nindex.html, notebooks, figures and results.csv are in {os.path.relpath(run.folder)}")


@contextlib.contextmanager
def _alone(folder):
    """Let one process at a time write to a run's folder: the second waits, and then finds the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is at work in {os.path.relpath(folder)}; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_another(run):
    """Never let one folder hold two studies."""
    path = run.folder / "manifest.json"
    there = json.loads(path.read_text()).get("run", {}) if path.exists() else {}
    if there.get("inputs", run.inputs) != run.inputs:
        other = [name for name, value in run.parameters.items() if there["parameters"].get(name) != value]
        what = f"{other[0]} {there['parameters'].get(other[0])}" if other else "what a file held then"
        raise OptionError(
            f"outputs/{run.name} holds another study, with {what}; name another folder (--run), or remove that one"
        )


def _run_notebooks(run):
    for left in set(WITHOUT.get(run.parameters["network"], ())) - set(run.notebooks):
        print(f"Left out: {left}; network '{run.parameters['network']}' cannot be trained under an epsilon here")
    if run.parameters["panel"] is None:
        print("No published panel: all genes alone (--panel names one)", flush=True)
    beside = [_contents(f"../{name}") for name in ("genlib/data", "requirements.lock")]
    before = results.digest(run.inputs, results.code_digest(), beside)
    for number, notebook in enumerate(names(), start=1):
        cells = [[cell.cell_type, cell.source] for cell in nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", 4).cells]
        before = results.digest(cells, parameters_for(notebook, run.parameters), before)
        part = run.folder / "parts" / f"{notebook}.csv"
        if notebook not in run.notebooks:
            if part.exists() and not _is_finished(notebook, run.folder, before):
                part.unlink()
                print(f"{notebook} was made by other code: left out of results.csv until it is run again", flush=True)
            continue
        print(f"[{number}/{len(names())}] {notebook}", flush=True)
        seconds = execute(notebook, run.parameters, run.folder, before)
        print("      finished before, unchanged" if seconds is None else f"      {seconds:.0f} s", flush=True)


def _mark(notebook, folder):
    return folder / "finished" / f"{notebook}.json"


def _is_finished(notebook, folder, fingerprint):
    mark = _mark(notebook, folder)
    there = (folder / f"{notebook}.ipynb").exists() and mark.exists()
    return there and json.loads(mark.read_text())["fingerprint"] == fingerprint


def execute(notebook, chosen, folder, fingerprint):
    """Execute one notebook unless it is finished with this fingerprint.

    Parameters
    ----------
    notebook : str
    chosen : dict
        Parameters; those that the notebook does not take are left out.
    folder : pathlib.Path
    fingerprint : str
        Digest of all that the result depends on.

    Returns
    -------
    float or None
        Seconds that it took, None where it was finished before.

    Raises
    ------
    RunError
        When a cell fails, or the notebook's process is killed.

    Examples
    --------
    >>> execute("11_cost", {}, OUTPUTS / "cost", "")  # doctest: +SKIP
    """
    if _is_finished(notebook, folder, fingerprint):
        return None
    _mark(notebook, folder).unlink(missing_ok=True)
    partial, failed = folder / f"{notebook}.partial.ipynb", folder / f"{notebook}.failed.ipynb"
    start = time.perf_counter()
    try:
        # Relative paths: the executed notebook records them, and it is meant to be shown to others.
        papermill.execute_notebook(
            os.path.relpath(NOTEBOOKS / f"{notebook}.ipynb"),
            os.path.relpath(partial),
            parameters_for(notebook, chosen),
            cwd=NOTEBOOKS,
            progress_bar={"desc": notebook, "leave": False} if sys.stderr.isatty() else False,
            # On a busy machine a kernel may take over a minute to begin, and its last words more than four seconds.
            start_timeout=900,
            iopub_timeout=900,
            # The kernel warns about its loopback socket on every start and about being interrupted at its end. What
            # TensorFlow's C++ logs says nothing to a reader of the notebook.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL", "--IPKernelApp.capture_fd_output=False"],
        )
    except papermill.PapermillExecutionError as error:
        os.replace(partial, failed)
        said = _typed(" ".join(f"{error.ename}: {error.evalue}".split()))
        where = f"the notebook as far as it came: {os.path.relpath(failed)}"
        raise RunError(f"{notebook} failed in cell {error.cell_index}: {said}; {where}") from None
    except RuntimeError as error:  # DeadKernelError is one, and what comes before a kernel answers
        raise RunError(
            f"{notebook}: its process was killed ({error}), perhaps by the system for lack of memory; free some, or "
            "take a smaller profile or cohort, and give the same command again: what was finished is kept"
        ) from None
    seconds = time.perf_counter() - start
    _join_streams(partial)
    os.replace(partial, folder / f"{notebook}.ipynb")
    results.save_json(_mark(notebook, folder), {"fingerprint": fingerprint})
    failed.unlink(missing_ok=True)
    _note_time(folder, notebook, seconds)
    return seconds


def _join_streams(path):
    """One stream a cell, and of a progress bar what stood last: a kernel sends line by line what a cell prints."""
    joined, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(nbformat.read(path, as_version=4), {})
    with results.atomic_path(path) as part:
        nbformat.write(joined, part)


def _note_time(folder, notebook, seconds):
    path = folder / "timings.csv"
    times = pd.read_csv(path, index_col="notebook")["seconds"].to_dict() if path.exists() else {}
    table = pd.DataFrame(sorted({**times, notebook: round(seconds, 1)}.items()), columns=["notebook", "seconds"])
    with results.atomic_path(path) as part:
        table.to_csv(part, index=False)


def apart(notebook, folder, chosen=None):
    """Run a notebook of a command of its own, always anew: a time that was measured once is no result to keep.

    Parameters
    ----------
    notebook : str
        One of `APART`, or `YOURS`.
    folder : pathlib.Path
        Its folder below ``outputs``.
    chosen : dict, optional
        Its parameters.

    Raises
    ------
    RunError
        As `execute`.

    Examples
    --------
    >>> apart("12_sharp_edges", OUTPUTS / "sharp-edges")  # doctest: +SKIP
    """
    with _alone(folder):
        _mark(notebook, folder).unlink(missing_ok=True)
        results.update_manifest(folder, notebook, results.environment())
        print(f"{notebook}: some minutes", flush=True)
        execute(notebook, {**(chosen or {}), "run_folder": os.path.relpath(folder, NOTEBOOKS)}, folder, "")
        if (folder / "results.csv").exists():
            report.write(folder)  # a run's page lists it with the others
        else:
            report.pages(folder)
    print(f"The notebook (also as HTML), its figures and its table are in {os.path.relpath(folder)}")


def judge(options):
    """Judge one trained model by the notebook `YOURS`, and say the verdict.

    Parameters
    ----------
    options : argparse.Namespace

    Raises
    ------
    OptionError
        When a file is not there.
    RunError
        As `execute`.

    Examples
    --------
    >>> judge(parse(["judge", "--model", "no.keras", "--members", "no.txt", "--cohort", "simulated"]))
    Traceback (most recent call last):
    genlib.run.OptionError: --model no.keras: there is no such file
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    paths = {
        name: pathlib.Path(given[name]).resolve() for name in ("model", "members", "name_patients") if name in given
    }
    for name in ("model", "members"):
        if not paths[name].exists():
            raise OptionError(f"--{name} {given[name]}: there is no such file")
    usual = parameters_of(YOURS) | {"accuracy": 0.0}
    chosen = {name: _as(usual[name], value, name) for name, value in given.items() if name in usual}
    asked = {**_located(vars(options), pathlib.Path.cwd()), "panel": None}
    chosen |= _cohort({"cohort": "", "cohort_options": {}, "panel": None}, asked)
    chosen |= {name: os.path.relpath(path, NOTEBOOKS) for name, path in paths.items()}
    name = options.run or f"judge-{paths['model'].stem}-{results.digest(chosen)[:6]}"
    apart(YOURS, OUTPUTS / name, chosen)
    card = json.loads((OUTPUTS / name / "model_card.json").read_text())
    print(f"The model {card['verdict']}: {card['why']}. Its card is model_card.md there")


def sweep(runs, folder, scheduler=None):
    """Do several runs, say how each ended, and then run ``10_across_cohorts`` over those that are complete.

    Parameters
    ----------
    runs : list of Run
    folder : pathlib.Path
        Of what holds over all of them.
    scheduler : str, optional
        Address of a Dask scheduler whose workers take the runs, one each at a time, and see this same folder.

    Raises
    ------
    RunError
        When no worker is reached (`connect`); at the end, when runs failed: names each and why.
    """
    ended = []
    with _client(scheduler, len(runs)) as client:
        n_workers = len(client.scheduler_info()["workers"])
        print(f"{len(runs)} runs, {n_workers} at a time; their words are in outputs/RUN/log.txt", flush=True)
        tasks = {client.submit(run_one, dataclasses.asdict(run), version(), pure=False): run for run in runs}
        for task in distributed.as_completed(tasks, loop=client.loop):
            ended.append(_ended(task, tasks[task]))
            print(f"[{len(ended)}/{len(runs)}] {ended[-1]['run']}: {ended[-1]['outcome']}", flush=True)
    table = pd.DataFrame(ended).sort_values("run", kind="stable")
    with results.atomic_path(folder / "sweep.csv") as part:
        table.to_csv(part, index=False)
    failed = table[table["outcome"] != "finished"]
    problems = [f"- {row['run']}: {row['outcome']}" for _, row in failed.iterrows()]
    try:
        _across([OUTPUTS / name for name in table["run"].drop(failed.index)], folder)
    except RunError as error:
        problems.append(f"- {folder.name}: {error}")
    if problems:
        said = f"{len(failed)} of {len(table)} runs failed; the same command does only what failed again:"
        raise RunError("\n".join(["", said, *problems]))


def _across(folders, folder):
    """Run ``10_across_cohorts`` over the runs that have what it reads."""
    complete = [one for one in folders if (one / "parts" / "03_answers.csv").exists()]
    if not complete:
        print(f"{ACROSS} is left out: no run has the results of 01 to 03.")
        return
    chosen = {"runs": [os.path.relpath(one, NOTEBOOKS) for one in complete]}
    chosen["run_folder"] = os.path.relpath(folder, NOTEBOOKS)
    read = [results.file_digest(one / "results.csv") for one in complete]
    cells = (NOTEBOOKS / f"{ACROSS}.ipynb").read_bytes()
    print(ACROSS, flush=True)
    results.update_manifest(folder, "environment", results.environment())
    seconds = execute(ACROSS, chosen, folder, results.digest(cells, read, chosen, results.code_digest()))
    print(f"      {'finished before, unchanged' if seconds is None else f'{seconds:.0f} s'}")
    print(f"\nWhat holds over the runs is in {os.path.relpath(folder)}")


def side_by_side(n_runs):
    """Say how many runs this machine can do at a time, by its cores and its free memory.

    Examples
    --------
    >>> side_by_side(1)
    1
    """
    cores = len(os.sched_getaffinity(0)) // CORES_A_RUN
    memory = int(psutil.virtual_memory().available // MEMORY_A_RUN)
    return max(1, min(n_runs, cores, memory))


@contextlib.contextmanager
def _client(scheduler, n_runs):
    if scheduler:
        with connect(scheduler) as client:
            yield client
        return
    # A run's own process is not a worker's, so the workers' memory says nothing and is not watched.
    options = {"memory_limit": None, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=side_by_side(n_runs), threads_per_worker=1, **options) as local:
        with distributed.Client(local, set_as_default=False) as client:
            yield client


def connect(address):
    """Reach a scheduler, and see that its workers have this very code. Those that join later are seen by `run_one`.

    Parameters
    ----------
    address : str
        As ``"tcp://10.0.0.7:8786"``. Dask sends Python objects and runs code: use a cluster that is yours, on a network
        that you trust.

    Returns
    -------
    distributed.Client

    Raises
    ------
    RunError
        When nobody answers within 30 seconds, or there is no worker; when a worker has another genlib or packages.

    Examples
    --------
    >>> connect("tcp://127.0.0.1:9")  # doctest: +SKIP
    """
    client = None
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
        client.wait_for_workers(1, timeout=PATIENCE)
        # A worker whose genlib is too old to know the question answers with an error, which is another version too.
        versions = client.run(version, on_error="return")
        others = sorted(worker for worker, found in versions.items() if found != version())
        if not others:
            return client
        said = (
            f"{len(others)} of {len(versions)} workers have another genlib or other packages than this machine: "
            f"{', '.join(others[:3])}. Install the same checkout there, and start them anew"
        )
    except (OSError, TimeoutError, ValueError) as error:
        said = (
            f"no Dask scheduler with a worker at {address}: {error}. Start them with 'dask scheduler' and 'dask worker "
            "ADDRESS', in this environment, or leave --scheduler out"
        )
    if client:
        client.close()
    raise RunError(said)


def version():
    """Name what numbers depend on beside options: genlib's code, as it was loaded and as it lies, and the packages.

    Examples
    --------
    >>> version() == version()
    True
    """
    packages = results.environment()["versions"]
    # Another patch of Python 3.11 computes the same.
    return _LOADED, results.code_digest(), {name: found for name, found in packages.items() if name != "python"}


def run_one(run, wanted):
    """Do one run in this process, its words in ``log.txt`` of its folder.

    Parameters
    ----------
    run : dict
        Of a `Run`; a worker with other code may know no such class.
    wanted : tuple
        `version` of the command. It is asked for in every run: a worker may have joined after `connect` looked.

    Returns
    -------
    str
        What went wrong; empty when all went well.

    Examples
    --------
    >>> run_one({}, ("other code",))[:36]
    'this worker has another genlib than '
    """
    if version() != wanted:
        return (
            "this worker has another genlib than the sweep was begun with, or other packages; install the same on "
            f"{platform.node()}, and start its workers anew"
        )
    run = Run(**run)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.folder / "log.txt", "a") as log, _all_words_to(log):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), flush=True)
            try:
                study(run)
            except (OptionError, RunError) as error:
                print(error, flush=True)
                return str(error)
    except OSError as error:
        return _accident(error)
    return ""


@contextlib.contextmanager
def _all_words_to(log):
    """Send also what the notebooks' processes write, which do not know of Python's own redirection, to a file."""
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _ended(task, run):
    """How a run ended: a line of ``sweep.csv``."""
    try:
        problem = task.result()
    except Exception as error:  # one run's accident, as a worker that died three times, must not end the others
        problem = f"{type(error).__name__}: {error}"
    if not problem and not (run.folder / "results.csv").exists():
        problem = "it finished, but not in this folder; workers on other machines must share it"
    chosen = {name: run.parameters[name] for name in SEVERAL}
    return {"run": run.name, **chosen, "outcome": problem or "finished"}


def _accident(error):
    """What the file system refused, in one line."""
    where = os.path.relpath(error.filename or OUTPUTS)
    way = {errno.ENOSPC: "free some space", errno.EROFS: "make that folder writable"}
    way = way.get(error.errno, "see to it")
    return f"{error.strerror or error} ({where}); {way}, and give the same command again: what was finished is kept"


def verify():
    """Run quick anew in ``outputs/verify``, and compare every row of its results with the reference.

    Raises
    ------
    RunError
        When a row differs, is missing or was added.

    Examples
    --------
    >>> verify()  # doctest: +SKIP
    """
    one = plan({**vars(parse([])), "run": "verify"})
    shutil.rmtree(one.folder, ignore_errors=True)  # anew: neither notebooks nor models that are finished
    study(one)
    same = same_platform(*(json.loads((folder / "manifest.json").read_text()) for folder in (one.folder, REFERENCE)))
    table, reference = (results.read(folder / "results.csv") for folder in (one.folder, REFERENCE))
    found = compare(table, reference, same)
    rule = "the same platform, where rows must be equal" if same else "another platform, where rounding may grow"
    print(f"\n{len(reference)} rows of the reference; on {rule}: {len(found)} rows differ.")
    for (notebook, why), part in found.groupby(["notebook", "why"], sort=False):
        print(f"\n{notebook}: {len(part)} rows, {why}")
        print(part[["defense", "features", "attack", "group", "metric", "estimate", "reference"]].head(10).to_string())
    if len(found):
        raise RunError(
            "verify: these rows are another result from the same data, seed and parameters: code or packages changed "
            "what is computed"
        )


def same_platform(here, there):
    """Say whether two runs, by their manifests, compute the same to the last digit: packages, processor, BLAS, device.

    Examples
    --------
    >>> environment = {"environment": results.environment(), "02_target_model": {"device": "CPU"}}
    >>> same_platform(environment, environment), same_platform(environment, {})
    (True, False)
    """
    words = ("versions", "processor", "blas")
    both = [[one.get("environment", {}).get(word) for word in words] for one in (here, there)]
    devices = [one.get("02_target_model", {}).get("device") for one in (here, there)]
    return None not in [*both[0], *devices] and both[0] == both[1] and devices[0] == devices[1]


def compare(table, reference, same):
    """List the rows in which a run differs from the reference beyond what may be.

    Parameters
    ----------
    table, reference : pandas.DataFrame
        Results of a run and of the reference.
    same : bool
        On the same platform all numbers must be equal. Elsewhere sums are rounded otherwise, and training lets that
        grow. There an estimate may be one standard error away, of the difference of two runs that draw their patients
        and models anew; or, where the whole table moved, as on another device, as far as normal errors of that spread
        (at most 1) go in one of fifty such tables: 0.02 rows are expected beyond.

    Returns
    -------
    pandas.DataFrame
        The names of each such row, estimate, reference, and why.

    Examples
    --------
    >>> row = results.tidy(pd.DataFrame({"metric": ["AUC"], "estimate": 0.5, "low": 0.4, "high": 0.6}))
    >>> compare(row.assign(estimate=0.55), row, same=False).empty
    True
    >>> compare(row.assign(estimate=0.55), row, same=True)["why"].tolist()
    ['differs']
    """
    left, right = (one.assign(time=one.groupby(results.KEYS, dropna=False).cumcount()) for one in (table, reference))
    keys = [*results.KEYS, "time"]
    both = left.merge(right, on=keys, how="outer", suffixes=("", " of reference"), indicator="why")
    both["why"] = both["why"].map({"left_only": "added", "right_only": "missing", "both": ""}).astype(object)
    if same:
        numbers = [name for name in (*results.NUMBERS, *results.COUNTS) if name not in keys]
        pairs = [(both[name].astype(float), both[f"{name} of reference"].astype(float)) for name in numbers]
        equal = np.all([(one == other) | (one.isna() & other.isna()) for one, other in pairs], axis=0)
        both.loc[(both["why"] == "") & ~equal, "why"] = "differs"
    else:
        far = _distances(both)
        spread = min(1.0, np.nanquantile(far, 0.9) / 1.645)
        limit = max(1.0, spread * scipy.stats.norm.isf(0.01 / len(both)))
        both.loc[(both["why"] == "") & (far > limit), "why"] = "further than resampling explains"
    shown = both[both["why"] != ""].rename(columns={"estimate of reference": "reference"})
    return shown[[*results.KEYS, "estimate", "reference", "low of reference", "high of reference", "why"]]


def _distances(both):
    """Distances of estimates from the reference's in standard errors; see `compare`."""
    wide = [both[f"high{of}"] - both[f"low{of}"] for of in ("", " of reference")]
    wanted, found = both["estimate of reference"], both["estimate"]
    error = (np.hypot(*wide) / (2 * 1.96)).fillna(0.01 * wanted.abs())
    # The interval of a single pair of models holds its patients alone, not what another training gives.
    error = error.where(~(both["n_models of reference"].astype(float) <= 2), 3 * error)
    patient = 1 / both["n_patients"].astype(float).fillna(np.inf)  # one more or less says nothing
    error = np.hypot(error, patient)
    far = ((found - wanted).abs() / error).where(found != wanted, 0.0)
    # A rate is left out where it stands for fewer than five false accusations.
    counts = both[["false_positive_patients", "false_positive_patients of reference"]].astype(float).max(axis=1)
    far[found.isna() ^ wanted.isna()] = np.inf
    far[(found.isna() ^ wanted.isna()) & (counts < 5 + 2 * 5**0.5)] = 0.0
    return far


def main(options=None):
    """Do what a command line says; see ``./run_all.sh --help``.

    Parameters
    ----------
    options : argparse.Namespace, optional
        From `genlib.__main__.parse`, of this process by default.

    Raises
    ------
    SystemExit
        1 when a run failed or `verify` found differences, 2 for a wrong option, 130 when stopped; with one line each.

    Examples
    --------
    >>> main(parse(["--only", "99"]))
    Traceback (most recent call last):
    SystemExit: 2
    """
    try:
        _command(options or parse())
    except KeyboardInterrupt:
        said, status = "stopped; the same command goes on where it was", 130
    except OptionError as error:
        said, status = error, 2
    except RunError as error:
        said, status = error, 1
    except OSError as error:
        said, status = _accident(error), 1
    else:
        return
    print(f"run_all.sh: {said}", file=sys.stderr)
    raise SystemExit(status)


def _command(options):
    if options.command in APART:
        apart(APART[options.command], OUTPUTS / (options.run or options.command))
    elif options.command == "verify":
        verify()
    elif options.command == "judge":
        judge(options)
    else:
        try:
            runs = runs_of(options)
        except ValueError as error:  # of a panel, a YAML file or the registry
            raise OptionError(error) from None
        if len(runs) > 1 or options.sweep:
            sweep(runs, OUTPUTS / (options.run or f"sweep-{runs[0].profile}"), options.scheduler)
        elif options.scheduler:
            raise OptionError("--scheduler spreads several runs, and this is one; leave it out, or ask for several")
        else:
            study(runs[0])


if __name__ == "__main__":
    main()
