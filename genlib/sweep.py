"""Many runs from one command: cohorts x networks x seeds, several at a time, and then what holds over all of them.

The runs are tasks of Dask: of a local cluster that this command starts and ends, or of one whose scheduler is named.
"""

import contextlib
import itertools
import os
import pathlib
import platform
import time

import distributed
import pandas as pd
import psutil
import yaml

from genlib import results, study

# What one run keeps busy: its notebook's process has a thread a core, and a bank of real patients needs some memory.
CORES_A_RUN = 2
MEMORY_A_RUN = 4e9  # bytes
LISTS = ("cohort", "network", "seed")
PATIENCE = 30  # seconds to wait for a scheduler and its first worker
FILE_OPTIONS = ("cohort", "label", "clinical", "panel", "network", "profile", "seed", "only", "start")

# A worker that was started before a file changed goes on with what it had loaded.
_LOADED = results.code_digest()


class SweepError(RuntimeError):
    """Some runs of a sweep failed, or it cannot be begun."""


def is_wanted(options):
    """Say whether a command line asks for more than one run.

    Examples
    --------
    >>> is_wanted(study._options(["--seed", "0,1"])), is_wanted(study._options([]))
    (True, False)
    """
    return bool(options.sweep) or any(len(_values(options, name)) > 1 for name in LISTS)


def _values(options, name):
    given = getattr(options, name)
    if given is None or pathlib.Path(given).exists():
        return [given]  # a path may hold a comma
    return given.split(",")


def combinations(options):
    """List the runs of a sweep: every cohort with every network and every seed.

    Parameters
    ----------
    options : argparse.Namespace
        With several values, separated by commas, or with `sweep`: a YAML file of the same options with lists of
        values, where a cohort may have options of its own, as ``{cohort: thyroid.csv, label: histology}``.

    Returns
    -------
    list of argparse.Namespace
        Options of each run, one value each.

    Raises
    ------
    SweepError
        When the file cannot be read or has an unknown option; when `label` or `clinical` is given for several cohorts;
        when two runs would write to the same folder. Says the way out.

    Examples
    --------
    >>> [one.seed for one in combinations(study._options(["--seed", "0,1"]))]
    ['0', '1']
    """
    shared = _from_file(options) if options.sweep else _from_words(options)
    runs = []
    for cohort, network, seed in itertools.product(*(shared.pop(name) for name in LISTS)):
        own = cohort if isinstance(cohort, dict) else {"cohort": cohort}
        words = {**vars(options), "run": None, "sweep": None, **shared, **own}
        runs.append(type(options)(**{**words, "network": network, "seed": str(seed)}))
    folders = [study.folder_of(one) for one in runs]
    twice = sorted({folder.name for folder in folders if folders.count(folder) > 1})
    if twice:
        raise SweepError(f"two runs of this sweep would both write to outputs/{twice[0]}; rename one of the cohorts")
    return runs


def _from_words(options):
    several = {name: _values(options, name) for name in LISTS}
    for name in ("label", "clinical"):
        if getattr(options, name) and len(several["cohort"]) > 1:
            raise SweepError(
                f"--{name} with {len(several['cohort'])} cohorts: whose is it? Name each cohort's own in a sweep file "
                "(--sweep FILE)"
            )
    return several


def _from_file(options):
    path = pathlib.Path(options.sweep)
    try:
        asked = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SweepError(f"sweep file {path} cannot be read: {error}") from error
    if not isinstance(asked, dict):
        raise SweepError(f"sweep file {path} must hold options and their values, as 'cohort: [tcga-brca, tcga-lgg]'")
    cohorts = _as_list(asked.get("cohort", options.cohort))
    for part in (asked, *(one for one in cohorts if isinstance(one, dict))):
        unknown = sorted(set(part) - set(FILE_OPTIONS))
        if unknown:
            raise SweepError(f"sweep file {path}: unknown option '{unknown[0]}'; known are {', '.join(FILE_OPTIONS)}")
    missing = [one for one in cohorts if isinstance(one, dict) and "cohort" not in one]
    if missing:
        raise SweepError(f"sweep file {path}: an entry of cohort lacks 'cohort', its name or file: {missing[0]}")
    here = [_located(one, path.parent) for one in cohorts]
    single = {name: value for name, value in asked.items() if name not in LISTS}
    networks, seeds = asked.get("network", options.network), asked.get("seed", options.seed)
    return {"cohort": here, "network": _as_list(networks), "seed": _as_list(seeds), **single}


def _as_list(value):
    return value if isinstance(value, list) else [value]


def _located(entry, folder):
    """Paths in a sweep file count from where the file lies."""
    if not isinstance(entry, dict):
        return str(folder / entry) if entry and (folder / entry).exists() else entry
    paths = {k: str(folder / v) for k, v in entry.items() if k in ("cohort", "clinical") and (folder / v).exists()}
    return {**entry, **paths}


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


def run(options):
    """Run a sweep, say how each run ended, and then run ``10_across_cohorts`` over those that are complete.

    Parameters
    ----------
    options : argparse.Namespace
        As `combinations`; `scheduler` names a Dask scheduler whose workers take the runs, one each at a time, and see
        this same folder.

    Raises
    ------
    SweepError
        When no worker is reached (`connect`); at the end, when runs failed: names each with its notebook, cell and
        error.
    """
    runs = combinations(options)
    for one in runs:
        study._chosen(one)  # a wrong option is said now, not after an hour
    folder = study.ROOT / "outputs" / (options.run or f"sweep-{runs[0].profile}")
    folder.mkdir(parents=True, exist_ok=True)
    ended = []
    with _client(options.scheduler, len(runs)) as client:
        n_workers = len(client.scheduler_info()["workers"])
        print(f"{len(runs)} runs, {n_workers} at a time; their words are in outputs/RUN/log.txt", flush=True)
        tasks = {client.submit(run_one, vars(one), version(), pure=False): one for one in runs}
        for task in distributed.as_completed(tasks, loop=client.loop):
            ended.append(_ended(task, tasks[task]))
            print(f"[{len(ended)}/{len(runs)}] {ended[-1]['run']}: {ended[-1]['outcome']}", flush=True)
    table = pd.DataFrame(ended).sort_values("run", kind="stable")
    with results.atomic_path(folder / "sweep.csv") as part:
        table.to_csv(part, index=False)
    failed = table[~table["finished"]]
    problems = [f"- {row['run']}: {row['outcome']}" for _, row in failed.iterrows()]
    try:
        _across([study.ROOT / "outputs" / name for name in table.loc[table["finished"], "run"]], folder)
    except study.NotebookError as error:
        problems.append(f"- {folder.name}: {error}")
    if problems:
        said = f"{len(failed)} of {len(table)} runs failed; the same command does only what failed again:"
        raise SweepError("\n".join(["", said, *problems]))


@contextlib.contextmanager
def _client(scheduler, n_runs):
    if scheduler:
        with connect(scheduler) as client:
            yield client
        return
    n_workers = side_by_side(n_runs)
    # A run's own process is not a worker's, so the workers' memory says nothing and is not watched.
    with distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, memory_limit=None, dashboard_address=":0", silence_logs=50
    ) as local:
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
    SweepError
        When nobody answers within 30 seconds, or there is no worker; when a worker has another genlib or other
        packages.

    Examples
    --------
    >>> connect("tcp://127.0.0.1:9")  # doctest: +SKIP
    """
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise SweepError(_nobody(address, error)) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
        # A worker whose genlib is too old to know the question answers with an error, which is another version too.
        versions = client.run(version, on_error="return")
    except (OSError, TimeoutError, ValueError) as error:
        client.close()
        raise SweepError(_nobody(address, error)) from error
    others = sorted(worker for worker, found in versions.items() if found != version())
    if others:
        client.close()
        raise SweepError(
            f"{len(others)} of {len(versions)} workers have another genlib or other packages than this machine: "
            f"{', '.join(others[:3])}. Install the same checkout there, and start them anew"
        )
    return client


def _nobody(address, error):
    return (
        f"no Dask scheduler with a worker at {address}: {error}. Start them with 'dask scheduler' and 'dask worker "
        "ADDRESS', in this environment, or leave --scheduler out"
    )


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


def run_one(options, wanted):
    """Do one run in this process, its words in ``log.txt`` of its folder.

    Parameters
    ----------
    options : dict
        The command line's options, one value each.
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
    os.chdir(study.ROOT)
    one = study.argparse.Namespace(**options)
    folder = study.folder_of(one)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log, _all_words_to(log):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), flush=True)
        try:
            study.run(one)
        except study.NotebookError as error:
            print(error, flush=True)
            return str(error)
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


def _ended(task, options):
    """How a run ended: a line of ``sweep.csv``."""
    folder = study.folder_of(options)
    try:
        problem = task.result()
    except Exception as error:  # one run's accident, as a worker that died three times, must not end the others
        problem = f"{type(error).__name__}: {error}"
    if not problem and not (folder / "results.csv").exists():
        problem = "it finished, but not in this folder; workers on other machines must share it"
    return {
        "run": folder.name, "cohort": options.cohort, "network": options.network, "seed": options.seed,
        "finished": not problem, "outcome": problem or "finished",
    }  # fmt: skip


def _across(folders, folder):
    """Run ``10_across_cohorts`` over the runs that have what it reads."""
    complete = [one for one in folders if (one / "parts" / "03_answers.csv").exists()]
    if not complete:
        print("10_across_cohorts is left out: no run has the results of 01 to 03.")
        return
    runs = [os.path.relpath(one, study.NOTEBOOKS) for one in complete]
    chosen = {"runs": runs, "run_folder": os.path.relpath(folder, study.NOTEBOOKS)}
    read = [results.file_digest(one / "results.csv") for one in complete]
    notebook = (study.NOTEBOOKS / "10_across_cohorts.ipynb").read_bytes()
    print("10_across_cohorts", flush=True)
    results.update_manifest(folder, "environment", results.environment())
    seconds = study.execute("10_across_cohorts", chosen, folder, results.digest(notebook, read, results.code_digest()))
    print(f"      {'finished before, unchanged' if seconds is None else f'{seconds:.0f} s'}")
    print(f"\nWhat holds over the cohorts is in {os.path.relpath(folder)}")
