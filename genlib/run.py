"""Runs of the study, one or many, each a row of notebooks; and `verify`, which compares one with the reference.

A notebook is executed beside its final name and moved there when it is finished; one that is finished, with the same
inputs, is not run again, so a run that was killed goes on where it was. Notebooks that do not read each other run two
at a time. Several runs are tasks of Dask, one a run: of a local cluster that the command starts and ends, or of one
whose scheduler is named.
"""

import ast
import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import functools
import itertools
import json
import logging
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time

import dask
import distributed
import nbformat
import numpy as np
import pandas as pd
import papermill
import psutil
import scipy.stats
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from genlib import cohorts, features, readers, report, results
from genlib.__main__ import NOTEBOOKS, parse

OUTPUTS = NOTEBOOKS.parent / "outputs"
REFERENCE = OUTPUTS / "reference"
# Run by commands of their own, since they say nothing about a cohort's patients.
APART = {"cost": "11_cost", "sharp-edges": "12_sharp_edges"}
ACROSS = "10_across_cohorts"  # reads several runs
YOURS = "your_model"  # judges one model of a user's own
# DP-SGD needs gradients of shared kernels patient by patient, which are not known here; and what reads its results.
WITHOUT = {"cnn": ("05_dp_sgd", "08_tradeoff")}
OF_COHORT = [field.name for field in dataclasses.fields(readers.Options)]
PATHS = ("cohort", "clinical", "panel", "network")  # may name a file, also FILE.gmt#SET or FILE.py:FUNCTION
SEVERAL = ("cohort", "network", "seed")
# Read what 02 trained, and nothing of each other; the longest first. 04 last: what 03 trained for it is kept by then.
TOGETHER = ["05_dp_sgd", "03_answers", "06_defenses", "07_audit", "04_weights"]
MEMORY = 6e9  # bytes that a notebook may need: 10,000 patients with 20,000 genes
PATIENCE = 30  # seconds to wait for a scheduler and its first worker
# On a busy machine a kernel may take over a minute to begin, and its last words more than four seconds. Papermill's own
# `cwd` would move the whole process, in which another notebook may run.
KERNEL = {"resources": {"metadata": {"path": str(NOTEBOOKS)}}, "start_timeout": 900, "iopub_timeout": 900}
# The kernel warns about its loopback socket on every start and about being interrupted at its end. What TensorFlow's
# C++ logs, past every level that it can be told, says nothing to a reader: it goes nowhere.
KERNEL["extra_arguments"] = [
    "--IPKernelApp.log_level=CRITICAL", "--IPKernelApp.capture_fd_output=False",
    "--IPKernelApp.exec_lines=__import__('os').dup2(__import__('os').open('/dev/null', 1), 2)",
]  # fmt: skip

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else the first of two notebooks takes all of a GPU
logging.getLogger("papermill").addHandler(logging.NullHandler())  # it says of a dead kernel what a `RunError` says


class OptionError(ValueError):
    """What was asked cannot be run as it is asked: one line with the way out. Exit status 2."""


class RunError(RuntimeError):
    """A run stopped: which notebook, why, and what to do. Exit status 1."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study: from `plan`, by these words of a command line.

    `name` is that of its folder below ``outputs``; `parameters` are those of all `notebooks`, each takes what it knows;
    `inputs` is a digest of all that the results depend on beside code: parameters, and the content of files they name.
    """

    words: list
    name: str
    profile: str
    notebooks: list
    parameters: dict
    inputs: str

    @property
    def folder(self):
        """Where it goes."""
        return OUTPUTS / self.name


# --- what is asked for ----------------------------------------------------------------------------------------------


def names():
    """Names of the study's notebooks in their order.

    Examples
    --------
    >>> names()[0]
    '01_cohort'
    """
    return sorted(path.stem for path in NOTEBOOKS.glob("0*.ipynb"))


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
    """Keep what this notebook takes of all parameters of a run."""
    return {name: value for name, value in chosen.items() if name in parameters_of(notebook)}


def profile(name):
    """Parameters of a profile: a YAML file beside the notebooks, which ``papermill -f`` takes as it is.

    Examples
    --------
    >>> profile("smoke")["cohort"]
    'simulated'
    """
    where, taken = f"profile {name}.yaml", {"networks": {}}
    for notebook in names():
        taken |= parameters_of(notebook)
    found = results.read_yaml(NOTEBOOKS / f"{name}.yaml")
    for key in found:
        if key not in taken:
            raise OptionError(f"{where}: unknown option '{key}'; known are {', '.join(sorted(taken))}")
    return {key: results.meant(taken[key], value, f"{where}: {key}") for key, value in found.items()}


def _words(options):
    """Options as words of a command line, where each may be given once more; the last counts."""
    words = []
    for name, value in options.items():
        flag = f"--{str(name).replace('_', '-')}"
        if isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def _typed(said):
    """Write options of `cohorts.load` as they are typed on the command line.

    Examples
    --------
    >>> _typed("leave it out with ignore=['age', 'os days'], or pass units='linear'")
    "leave it out with --ignore age 'os days', or pass --units linear"
    """

    def flag(found):
        words = ast.literal_eval(found[2])
        words = words if isinstance(words, list) else [words]
        return " ".join([f"--{found[1].replace('_', '-')}", *(shlex.quote(str(word)) for word in words)])

    return re.sub(rf"\b({'|'.join(OF_COHORT)})=(\[(?:'[^']*'(?:, )?)*\]|'[^']*'|\d+|True)", flag, said)


def plan(words, where="run_all.sh"):
    """Make one run out of words of a command line, in which paths count from the notebooks' folder.

    Raises
    ------
    OptionError, ValueError, SystemExit
        When what is asked for is not there, or does not go together: in one line, before any notebook is run.

    Examples
    --------
    >>> run = plan(["--profile", "smoke", "--seed", "3"])
    >>> run.name, run.parameters["seed"]
    ('simulated-smoke-seed3', 3)
    """
    asked = vars(parse(words, where))
    chosen = profile(asked["profile"])
    known, usual = chosen.pop("networks"), chosen["network"]
    network = asked["network"] or usual
    if not _file(network)[0] and (network == "own" or network not in known):
        there = ", ".join(sorted(set(known) - {"own"}))
        raise OptionError(f"unknown network '{network}'; choose {there}, or a function of your own as FILE.py:FUNCTION")
    seed = results.meant(0, asked["seed"] or 0, "seed")
    if seed < 0:
        raise OptionError(f"seed {seed}: it must be at least 0")
    changes = chosen["network_options"] | _options(asked, "network_options")
    chosen |= {"network": network, "network_options": changes, "seed": seed, **_cohort(chosen, asked)}
    files = [chosen["cohort"], chosen["cohort_options"].get("clinical"), chosen["panel"], network]
    contents = [_contents(one) for one in files]
    entry = _known_cohorts().get(chosen["cohort"])
    inputs = results.digest(chosen, known.get(network, known["own"]), contents, entry)
    parts = [pathlib.Path(chosen["cohort"]).stem, asked["profile"]]
    parts += [network.rpartition(":")[2]] * (network != usual) + [f"seed{seed}"] * (seed > 0)
    unsaid = (*OF_COHORT, "cohort_options", "panel", "network_options")
    parts += [inputs[:6]] * any([*contents, *(asked.get(name) for name in unsaid)])
    name = asked["run"] or "-".join(parts)
    if "/" in name or name.startswith("."):
        raise OptionError(f"--run {name}: it must be a plain folder name, without '/'")
    chosen["run_folder"] = f"../outputs/{name}"
    return Run(words, name, asked["profile"], _selected(asked, network), chosen, inputs)


def _options(asked, name):
    """Options that were written as one word of YAML."""
    flag = f"--{name.replace('_', '-')}"
    return results.meant({}, asked[name] and results.parse_yaml(asked[name], flag), flag)


def _known_cohorts():
    return {"simulated": {}, "tcga-brca": {}, **cohorts.registry()}


def _cohort(chosen, asked):
    """Choose cohort, its options and its panel, as parameters."""
    cohort = asked["cohort"] or chosen["cohort"]
    options = _options(asked, "cohort_options") | {name: asked.get(name) for name in OF_COHORT}
    options = chosen["cohort_options"] | {name: value for name, value in options.items() if value is not None}
    # The size of a simulated cohort says nothing of another.
    options = {name: value for name, value in options.items() if cohort == "simulated" or name not in cohorts.SIZES}
    panel = asked["panel"] or (chosen["panel"] if cohort in cohorts.NAMED else cohorts.default_panel(cohort))
    panel = None if panel == "none" else panel
    with contextlib.chdir(NOTEBOOKS):
        cohorts.options_for(cohort, options)
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
    for name in [name for name in PATHS if values.get(name) and values[name] not in _known_cohorts()]:
        path, rest = _file(values[name], folder)
        if path and (name in PATHS[:2] or path.is_file()):  # a folder may be called mlp
            values = values | {name: os.path.relpath(path, NOTEBOOKS) + rest}
    return values


def _contents(value):
    """Digest of the files that an option names; beside a panel lie its centroids."""
    path, _ = _file(value)
    if not path:
        return ""
    beside = path.parent.iterdir() if path.suffix == ".gmt" else [path]
    files = path.iterdir() if path.is_dir() else [one for one in beside if one.name.startswith(path.stem)]
    return results.digest([[file.name, results.file_digest(file)] for file in sorted(files) if file.is_file()])


def _find(start):
    found = [name for name in names() if name == start or name.startswith(f"{start.strip().zfill(2)}_")]
    if len(found) != 1:
        raise OptionError(f"unknown notebook '{start}'; choose among {', '.join(names())}")
    return found[0]


def _selected(asked, network):
    """Notebooks that are wanted, in their order."""
    if asked["only"]:
        return sorted({_find(one) for word in asked["only"] for one in word.split(",")})
    first = _find(asked["from"] or "1")
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
        When the file cannot be read, when two runs are one, and as `plan`.

    Examples
    --------
    >>> [run.name for run in runs_of(parse(["--profile", "smoke", "--seed", "0,1"]))]
    ['simulated-smoke', 'simulated-smoke-seed1']
    """
    alone, where = ("command", "run", "sweep", "scheduler"), "run_all.sh"
    parts = [({name: value for name, value in vars(options).items() if name not in alone}, pathlib.Path.cwd())]
    if options.sweep:
        file = pathlib.Path(options.sweep)
        where = f"run_all.sh: sweep file {file}"
        parts.append((results.read_yaml(file), file.parent.resolve()))
        if not isinstance(parts[1][0], dict):
            raise OptionError(f"sweep file {file} must hold options, as 'cohort: [tcga-brca, tcga-lgg]'")
    shared, lists = {}, {}
    for part, folder in parts:
        lists |= {name: _each(name, part[name], folder) for name in SEVERAL if part.get(name) is not None}
        shared |= _located({name: value for name, value in part.items() if name not in SEVERAL}, folder)
    each = [functools.reduce(dict.__or__, values, shared) for values in itertools.product(*lists.values())]
    wrong = [name for one in each for name in alone if name in one]
    if wrong:
        raise OptionError(f"{where}: {wrong[0]} is an option of the command line alone")
    if len(each) == 1 and not options.sweep:
        each[0]["run"] = options.run  # else that of what holds over all
    runs = [plan(_words(one), where) for one in each]
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


# --- one run --------------------------------------------------------------------------------------------------------


def study(run):
    """Do one run: its notebooks in their order, the results table, the page and a short answer.

    Raises
    ------
    OptionError
        When its folder holds another study.
    RunError
        When a notebook fails; those after it are not run.
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
    print("", report.summary(table), *report.write(run.folder), sep="\n")
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
    """Never let one folder hold two studies; one that ended before anything was finished leaves it to the next."""
    path = run.folder / "manifest.json"
    there = json.loads(path.read_text()).get("run", {}) if path.exists() else {}
    if there.get("inputs", run.inputs) != run.inputs and any(run.folder.glob("parts/*.csv")):
        old = there["parameters"]
        other = [f"{name} {old.get(name)}" for name, value in run.parameters.items() if old.get(name) != value]
        what, way = (*other, "what a file held then")[0], "name another folder (--run), or remove that one"
        raise OptionError(f"outputs/{run.name} holds another study, with {what}; {way}")


def _run_notebooks(run):
    for left in set(WITHOUT.get(run.parameters["network"], ())) - set(run.notebooks):
        print(f"Left out: {left}; network '{run.parameters['network']}' cannot be trained under an epsilon here")
    if run.parameters["panel"] is None:
        print("No published panel: all genes alone (--panel names one)", flush=True)
    before, wanted = results.digest(run.inputs, results.code_digest(), _contents("../requirements.lock")), []
    for notebook in names():
        cells = [[cell.cell_type, cell.source] for cell in nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", 4).cells]
        before = results.digest(cells, parameters_for(notebook, run.parameters), before)
        part = run.folder / "parts" / f"{notebook}.csv"
        if notebook in run.notebooks:
            wanted.append((notebook, run.parameters, run.folder, before))
        elif part.exists() and not _is_finished(notebook, run.folder, before):
            part.unlink()
            print(f"{notebook} was made by other code: left out of results.csv until it is run again", flush=True)
    for together, some in itertools.groupby(wanted, lambda one: one[0] in TOGETHER):
        some = sorted(some, key=lambda one: TOGETHER.index(one[0])) if together else list(some)
        _execute_all(some, side_by_side(2) if together else 1)  # by cores and memory


def _execute_all(wanted, at_a_time):
    """Execute notebooks in their order; after a failure those that had begun end, when stopped they are stopped."""
    queue, running, failed = list(wanted), set(), None
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        try:
            while running or (queue and not failed):
                while queue and not failed and len(running) < at_a_time:
                    running.add(pool.submit(execute, *queue.pop(0)))
                done, running = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
                failed = failed or next(filter(None, (task.exception() for task in done)), None)
                if failed and running:
                    print("a notebook failed; another one ends first", flush=True)
        except KeyboardInterrupt:
            while running:  # a kernel may be starting only now
                for child in psutil.Process().children():
                    with contextlib.suppress(psutil.Error):  # it ended meanwhile
                        if "ipykernel_launcher" in child.cmdline():
                            child.kill()
                running = concurrent.futures.wait(running, timeout=0.2).not_done
            raise
    if failed:
        raise failed


def _is_finished(notebook, folder, fingerprint):
    path = folder / f"{notebook}.ipynb"
    return path.exists() and nbformat.read(path, as_version=4).metadata.get("fingerprint") == fingerprint


def execute(notebook, chosen, folder, fingerprint):
    """Execute one notebook unless it is finished with this fingerprint, and say how long it took.

    Parameters
    ----------
    notebook : str
    chosen : dict
        Parameters; those that the notebook does not take are left out.
    folder : pathlib.Path
    fingerprint : str
        Digest of all that the result depends on, kept in the executed notebook.

    Raises
    ------
    RunError
        When a cell fails, or the notebook's process is killed.
    """
    if _is_finished(notebook, folder, fingerprint):
        print(f"{notebook}: finished before, unchanged\n", end="", flush=True)
        return
    print(f"{notebook} begins\n", end="", flush=True)  # in one piece: two write
    # Relative paths: the executed notebook records them, and it is meant to be shown to others.
    source, partial = map(os.path.relpath, (NOTEBOOKS / f"{notebook}.ipynb", folder / f"{notebook}.partial.ipynb"))
    bar = {"desc": notebook, "leave": False} if sys.stderr.isatty() else False
    try:
        papermill.execute_notebook(source, partial, parameters_for(notebook, chosen), progress_bar=bar, **KERNEL)
    except papermill.PapermillExecutionError as error:
        said = _typed(" ".join(f"{error.ename}: {error.evalue}".split()))
        where = f"the notebook as far as it came: {partial}"
        raise RunError(f"{notebook} failed in cell {error.cell_index}: {said}; {where}") from None
    except RuntimeError as error:  # DeadKernelError is one, and what comes before a kernel answers
        raise RunError(
            f"{notebook}: its process was killed ({error}), perhaps by the system for lack of memory; free some, or "
            "take a smaller profile or cohort, and give the same command again: what was finished is kept"
        ) from None
    # One stream a cell, and of a progress bar what stood last: a kernel sends line by line what a cell prints.
    made, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(nbformat.read(partial, as_version=4), {})
    made.metadata["fingerprint"] = fingerprint
    with results.atomic_path(folder / f"{notebook}.ipynb") as part:
        nbformat.write(made, part)
    os.remove(partial)
    print(f"{notebook}: {made.metadata.papermill.duration:.0f} s\n", end="", flush=True)


def apart(notebook, folder, **chosen):
    """Run a notebook of no single cohort, always anew: a time that was measured once is no result to keep."""
    with _alone(folder):
        results.update_manifest(folder, "environment", results.environment())
        chosen["run_folder"] = os.path.relpath(folder, NOTEBOOKS)
        execute(notebook, chosen, folder, f"at {time.time()}")
        # A run's page lists it with the others.
        (report.write if (folder / "results.csv").exists() else report.pages)(folder)
    print(f"The notebook (also as HTML), its figures and its table are in {os.path.relpath(folder)}")


def judge(options):
    """Judge one trained model by the notebook `YOURS`, and say the verdict.

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
    named = given.keys() & {"model", "members", "name_patients"}
    paths = {name: pathlib.Path(given[name]).resolve() for name in sorted(named)}
    for name in ("model", "members"):
        if not paths[name].exists():
            raise OptionError(f"--{name} {given[name]}: there is no such file")
    chosen = {name: value for name, value in given.items() if name in parameters_of(YOURS)}
    asked = {**_located(vars(options), pathlib.Path.cwd()), "panel": "none"}
    chosen |= _cohort({"cohort": "", "cohort_options": {}}, asked)
    chosen |= {name: os.path.relpath(path, NOTEBOOKS) for name, path in paths.items()}
    folder = OUTPUTS / (options.run or f"judge-{paths['model'].stem}-{results.digest(chosen)[:6]}")
    apart(YOURS, folder, **chosen)
    card = json.loads((folder / "model_card.json").read_text())
    print(f"Verdict: {card['verdict']} ({card['why']}). The card is model_card.md there")


# --- many runs ------------------------------------------------------------------------------------------------------


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
    with connect(scheduler, len(runs)) as client:
        n_workers = len(client.scheduler_info()["workers"])
        print(f"{len(runs)} runs, {n_workers} at a time; their words are in outputs/RUN/log.txt", flush=True)
        tasks = {client.submit(run_one, run.words, run.name, version(), pure=False): run for run in runs}
        for task in distributed.as_completed(tasks, loop=client.loop):
            run = tasks[task]
            try:
                outcome = task.result()
            except Exception as error:  # one run's accident, as a worker that died three times, must not end the others
                outcome = f"{type(error).__name__}: {error}"
            if outcome == "finished" and not (run.folder / "results.csv").exists():
                outcome = "it finished, but not in this folder; workers on other machines must share it"
            ended.append({"run": run.name, **{name: run.parameters[name] for name in SEVERAL}, "outcome": outcome})
            print(f"[{len(ended)}/{len(runs)}] {run.name}: {outcome}", flush=True)
    table = pd.DataFrame(ended).sort_values("run", kind="stable")
    results.write_csv(folder / "sweep.csv", table)
    failed = table[table["outcome"] != "finished"]
    problems = [f"- {row['run']}: {row['outcome']}" for row in failed.to_dict("records")]
    complete = [OUTPUTS / name for name in table["run"].drop(failed.index)]
    complete = [one for one in complete if (one / "parts" / "03_answers.csv").exists()]
    try:
        if complete:
            apart(ACROSS, folder, runs=[os.path.relpath(one, NOTEBOOKS) for one in complete])
        else:
            print(f"{ACROSS} is left out: no run has the results of 01 to 03.")
    except RunError as error:
        problems.append(f"- {folder.name}: {error}")
    if problems:
        said = f"{len(failed)} of {len(table)} runs failed; the same command does only what failed again:"
        raise RunError("\n".join(["", said, *problems]))


def side_by_side(n, busy=1):
    """Say how many of n things this machine can do at a time, by cores and free memory; each is so many notebooks."""
    memory = int(psutil.virtual_memory().available // MEMORY)
    return max(1, min(n, len(os.sched_getaffinity(0)) // busy, memory // busy))


@contextlib.contextmanager
def connect(scheduler=None, n_runs=1):
    """Reach a scheduler, or start one.

    Parameters
    ----------
    scheduler : str, optional
        Its address, as ``"tcp://10.0.0.7:8786"``. Dask sends Python objects and runs code: use a cluster that is yours,
        on a network that you trust.
    n_runs : int
        How many runs there are to do.

    Yields
    ------
    distributed.Client

    Raises
    ------
    RunError
        When nobody answers within 30 seconds, or there is no worker.
    """
    with contextlib.ExitStack() as opened:
        if not scheduler:
            # A run's own process is not a worker's, so the workers' memory says nothing and is not watched.
            options = {"memory_limit": None, "dashboard_address": ":0", "silence_logs": 50}
            # Dask would give a run one thread of BLAS, and have it hand back memory all the time: half as slow again.
            opened.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": {}}))
            local = distributed.LocalCluster(n_workers=side_by_side(n_runs, busy=2), threads_per_worker=1, **options)
            scheduler = opened.enter_context(local).scheduler_address
        try:
            client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
            opened.enter_context(client).wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            way = "Start them with 'dask scheduler' and 'dask worker ADDRESS', or leave --scheduler out"
            raise RunError(f"no Dask scheduler with a worker at {scheduler}: {error}. {way}") from None
        yield client


def version():
    """Name what numbers depend on beside options: the code of genlib, and the packages.

    Another patch of Python 3.11 computes the same.
    """
    packages = results.environment()["versions"]
    return results.code_digest(), {name: found for name, found in packages.items() if name != "python"}


def run_one(words, name, wanted):
    """Do one run of a sweep by a command of its own, whose words go to ``log.txt`` of its folder.

    Parameters
    ----------
    words : list of str
        Of a `Run`.
    name : str
        Its folder.
    wanted : tuple
        `version` of the command. It is asked for in every run: a worker may join at any time.

    Returns
    -------
    str
        ``"finished"``, or what went wrong.

    Examples
    --------
    >>> run_one([], "none", ("other code",))[:36]
    'this worker has another genlib than '
    """
    if version() != wanted:
        said = "this worker has another genlib than the sweep was begun with, or other packages; install the same on"
        return f"{said} {platform.node()}, and start its workers anew"
    folder, command = OUTPUTS / name, [sys.executable, "-m", "genlib", *words, "--run", name]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a+") as log:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), file=log, flush=True)
        here = {"cwd": NOTEBOOKS, "env": {**os.environ, "PYTHONPATH": str(NOTEBOOKS.parent)}}
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, **here)
        log.seek(0)
        last = log.read().splitlines()[-1]
    return last.removeprefix("run_all.sh: ") if done.returncode else "finished"


def _accident(error):
    """What the file system refused, in one line."""
    where = os.path.relpath(error.filename or OUTPUTS)
    way = {errno.ENOSPC: "free some space", errno.EROFS: "make that folder writable"}
    way = way.get(error.errno, "see to it")
    return f"{error.strerror or error} ({where}); {way}, and give the same command again: what was finished is kept"


# --- the same result ------------------------------------------------------------------------------------------------


def verify():
    """Run quick anew in ``outputs/verify``, and compare every row of its results with the reference.

    Raises
    ------
    RunError
        When a row differs, is missing or was added.
    """
    one = plan(["--run", "verify"])
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
        said = "these rows are another result from the same data, seed and parameters"
        raise RunError(f"verify: {said}: code or packages changed what is computed")


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
    named = {"suffixes": ("", " of reference"), "indicator": "why"}
    both = left.merge(right, on=[*results.KEYS, "time"], how="outer", **named)
    both["why"] = both["why"].map({"left_only": "added", "right_only": "missing", "both": ""}).astype(object)
    if same:
        numbers = [*results.INTERVAL, "bound", *results.COUNTS]
        one, other = (both[[f"{name}{of}" for name in numbers]].astype(float) for of in ("", " of reference"))
        beyond = ~np.isclose(one, other, rtol=0, atol=0, equal_nan=True).all(axis=1)
    else:
        far = _distances(both)
        spread = min(1.0, np.nanquantile(far, 0.9) / 1.645)
        beyond = far > max(1.0, spread * scipy.stats.norm.isf(0.01 / len(both)))
    both.loc[(both["why"] == "") & beyond, "why"] = "differs" if same else "further than resampling explains"
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
    """Do what a command line says, of this process by default; see ``./run_all.sh --help``.

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
        # The cell's task outlives its kernel, and asyncio would tell that nobody asked how it ended.
        logging.getLogger("asyncio").disabled = True
        said, status = "stopped; the same command goes on where it was", 130
    except (OptionError, RunError) as error:
        said, status = error, 2 if isinstance(error, OptionError) else 1
    except OSError as error:
        said, status = _accident(error), 1
    else:
        return
    print(f"run_all.sh: {said}", file=sys.stderr)
    raise SystemExit(status)


def _command(options):
    if options.command in APART:
        return apart(APART[options.command], OUTPUTS / (options.run or options.command))
    if options.command == "verify":
        return verify()
    try:
        if options.command == "judge":
            return judge(options)
        runs = runs_of(options)
    except (ValueError, FileNotFoundError) as error:  # of a panel, a cohort's options, a YAML file or the registry
        raise OptionError(error) from None
    if len(runs) > 1 or options.sweep:
        return sweep(runs, OUTPUTS / (options.run or f"sweep-{runs[0].profile}"), options.scheduler)
    if options.scheduler:
        raise OptionError("--scheduler spreads several runs, and this is one; leave it out, or ask for several")
    return study(runs[0])


if __name__ == "__main__":
    main()
