"""Results that survive a kill: atomic writes, a content-addressed cache, tidy tables and the manifest.

Nothing here is ever read half written: every file is written beside its final name and moved there when it is
complete. Tables are CSV, arrays are ``.npz`` without objects; nothing is pickled.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import threadpoolctl
import yaml

COLUMNS = [
    "notebook", "cohort", "features", "network", "defense", "epsilon", "threat_model", "attack", "set",
    "group", "metric", "estimate", "low", "high", "n_patients", "n_models", "false_positives",
    "false_positive_patients", "note",
]  # fmt: skip
NUMBERS = ["epsilon", "estimate", "low", "high"]
COUNTS = ["n_patients", "n_models", "false_positives", "false_positive_patients"]


@contextlib.contextmanager
def atomic_path(path):
    """Give a temporary path beside `path`, and move it there when the block ends without an error.

    Parameters
    ----------
    path : path-like
        Final file. Its folder is made when it is missing.

    Yields
    ------
    pathlib.Path
        A file of its own in the same folder; removed when the block fails, so nothing half written is left.

    Raises
    ------
    OSError
        When the disk is full (named, with the way out) or the folder cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> target = pathlib.Path(folder.name) / "a.txt"
    >>> with atomic_path(target) as part:
    ...     _ = part.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = pathlib.Path(name)
    try:
        yield part
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"the disk is full; {path} was not written and nothing half written is left. Free some space, or "
                "choose another folder (GENLIB_DATA for cohorts, --run for results)",
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _umask():
    value = os.umask(0)
    os.umask(value)
    return value


def digest(*parts):
    """SHA-256 over arrays, strings and JSON-able values, the same on every run and platform.

    Parameters
    ----------
    *parts : numpy.ndarray, bytes, str, or anything that `json` can write
        What to digest, in order. Arrays count with their dtype and shape.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> digest(np.arange(3)) == digest(np.arange(3))
    True
    >>> digest(np.arange(3)) == digest(np.arange(3.0))
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, bytes):
            sha.update(part)
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def code_digest(*modules):
    """Digest of the source of genlib modules, so that cached results never outlive the code that made them.

    Parameters
    ----------
    *modules : str
        Module names without the package, as ``"bank"``; none means every module of genlib.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> code_digest("results") == code_digest("results")
    True
    """
    folder = pathlib.Path(__file__).parent
    names = [f"{name}.py" for name in modules] or sorted(p.name for p in folder.glob("*.py"))
    return digest(*[(folder / name).read_bytes() for name in names])


def file_digest(path):
    """SHA-256 of one file, read in pieces.

    Examples
    --------
    >>> len(file_digest(__file__))
    64
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_arrays(path, **arrays):
    """Write arrays to one ``.npz`` file, atomically, with a checksum of their content.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
    >>> save_arrays(path, logits=np.zeros((2, 3)))
    >>> load_arrays(path)["logits"].shape
    (2, 3)
    """
    with atomic_path(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays, checksum=_checksum(arrays))


def _checksum(arrays):
    """Digest of names, types, shapes and values: that of a zip archive covers a file's bytes, not how they are read."""
    return digest(*[part for name in sorted(arrays) for part in (name, np.asarray(arrays[name]))])


def load_arrays(path):
    """Read what `save_arrays` wrote, or None when there is no such file or it is damaged (with a warning).

    Returns
    -------
    dict of str to numpy.ndarray, or None

    Examples
    --------
    >>> load_arrays("no-such-file.npz") is None
    True
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
        if str(found.pop("checksum", "")) != _checksum(found):
            raise ValueError("its content has another checksum")
        return found
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes may ask a reader for anything, as for a password
        warnings.warn(f"cached file {path} is damaged ({error}); it is computed again", stacklevel=2)
        return None


def record(run_folder, notebook, table, **context):
    """Keep a table of results as the tidy rows of one notebook, replacing what that notebook left before.

    Parameters
    ----------
    run_folder : path-like
        Folder of the run, ``outputs/RUN``.
    notebook : str
        Name of the notebook, as ``"03_answers"``.
    table : pandas.DataFrame or list of pandas.DataFrame
        Rows with columns out of `COLUMNS`; what is missing there is left empty.
    **context
        Columns with one value for all rows, as ``cohort="tcga-brca"``.

    Returns
    -------
    pandas.DataFrame
        The tidy rows as written.

    Raises
    ------
    ValueError
        When the table has a column that is not in `COLUMNS`, a missing `metric`, or a repeated row.

    Examples
    --------
    >>> import tempfile
    >>> rows = pd.DataFrame({"metric": ["accuracy"], "estimate": [0.9]})
    >>> record(tempfile.mkdtemp(), "02_target_model", rows, cohort="simulated")[["cohort", "metric", "estimate"]]
          cohort    metric  estimate
    0  simulated  accuracy       0.9
    """
    table = pd.concat(table) if isinstance(table, list) else table
    table = table.assign(notebook=notebook, **context)
    unknown = sorted(set(table.columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"results of {notebook}: columns {unknown} are not among {COLUMNS}")
    table = _tidy(table.reindex(columns=COLUMNS))
    keys = [c for c in COLUMNS if c not in [*NUMBERS[1:], *COUNTS, "note"]]
    repeated = table.duplicated(keys)
    if repeated.any() or (table["metric"] == "").any():
        row = table[repeated | (table["metric"] == "")].iloc[0]
        raise ValueError(f"results of {notebook}: a row is repeated or has no metric: {row[keys].to_dict()}")
    _write_csv(pathlib.Path(run_folder) / "parts" / f"{notebook}.csv", table)
    return table


def _tidy(table):
    table = table.reset_index(drop=True)
    for column in COLUMNS:
        if column in NUMBERS:
            table[column] = table[column].astype(float)
        elif column in COUNTS:
            table[column] = table[column].astype("Int64")
        else:
            table[column] = table[column].fillna("").astype(str)
    return table


def _write_csv(path, table):
    with atomic_path(path) as part:
        table.to_csv(part, index=False)


def load(run_folder, notebook=None):
    """Read the tidy results of a run, of one notebook or of all in their order.

    Returns
    -------
    pandas.DataFrame
        Columns as in `COLUMNS`.

    Raises
    ------
    FileNotFoundError
        When the notebook has left no results in this run; says which command makes them.

    Examples
    --------
    >>> load("no-such-run", "02_target_model")
    Traceback (most recent call last):
    FileNotFoundError: no results of 02_target_model in no-such-run; run that notebook first ...
    """
    folder = pathlib.Path(run_folder) / "parts"
    paths = [folder / f"{notebook}.csv"] if notebook else sorted(folder.glob("*.csv"))
    missing = [p for p in paths if not p.exists()]
    if missing or not paths:
        raise FileNotFoundError(
            f"no results of {notebook or 'any notebook'} in {run_folder}; run that notebook first "
            f"(./run_all.sh --from {notebook or '01_cohort'})"
        )
    return _tidy(pd.concat([read(p) for p in paths]))


def read(path):
    """Read one file of results as it was written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = record(folder, "02_target_model", pd.DataFrame({"metric": ["accuracy"], "estimate": [0.1 + 0.2]}))
    >>> read(pathlib.Path(folder) / "parts" / "02_target_model.csv")["estimate"][0] == 0.1 + 0.2
    True
    """
    text = {c: str for c in COLUMNS if c not in NUMBERS and c not in COUNTS}
    empty = {c: [""] for c in NUMBERS + COUNTS}
    # Only an empty cell is missing: "none" and "NA" are words that a class or a defense may be called.
    return _tidy(pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty, float_precision="round_trip"))


def merge(run_folder):
    """Join the parts of all notebooks into ``results.csv``, the one table of the run.

    Returns
    -------
    pandas.DataFrame

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = record(folder, "02_target_model", pd.DataFrame({"metric": ["accuracy"], "estimate": [0.9]}))
    >>> len(merge(folder))
    1
    """
    table = load(run_folder)
    _write_csv(pathlib.Path(run_folder) / "results.csv", table)
    return table


def save_json(path, value):
    """Write a JSON file with sorted keys, atomically.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.json"
    >>> save_json(path, {"b": 1, "a": 2})
    >>> path.read_text().split()
    ['{', '"a":', '2,', '"b":', '1', '}']
    """
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def environment():
    """What a number may depend on beside its parameters: versions, machine, commit and time.

    Returns
    -------
    dict
        ``versions`` of Python and the packages, ``platform``, ``processors`` (how many), ``processor`` (of what kind),
        ``blas`` (NumPy's, with its kind of core and threads), ``git_commit`` (None outside a checkout; ends in
        ``+changes`` when files differ from it) and ``time``.

    Examples
    --------
    >>> environment()["versions"]["numpy"] == np.__version__
    True
    """
    packages = [
        "tensorflow", "tensorflow-privacy", "tensorflow-empirical-privacy", "dp-accounting", "numpy", "pandas",
        "scipy", "scikit-learn", "anndata", "papermill",
    ]  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "processor": _processor(),
        "blas": _blas(),
        "git_commit": _git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor():
    """Kind of processor: NumPy, OpenBLAS and TensorFlow choose their loops by it, and these round otherwise."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wide = [
        name for name in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile") if name in found.get("flags", "").split()
    ]
    words = [found[name] for name in ("vendor_id", "cpu family", "model") if name in found]
    return " ".join([platform.machine(), *words, *wide])


def _blas():
    words = ("internal_api", "version", "architecture", "num_threads")
    found = [[str(one[word]) for word in words if word in one] for one in threadpoolctl.threadpool_info()]
    return sorted(" ".join(one) for one in found)


def _git_commit():
    here = pathlib.Path(__file__).parent

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class _Words(yaml.SafeLoader):
    """YAML's words as version 1.2 has them, in which ``no`` is text; 010, which keeps its zero, is text as well."""

    yaml_implicit_resolvers = {}


for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?=\.?[0-9])(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Words.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path):
    """Read a YAML file of options as it is meant: 1e-5 is a number, no is a word, 01 keeps its zero.

    Raises
    ------
    ValueError
        When the file cannot be read or is no YAML; says where.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.yaml"
    >>> _ = path.write_text("delta: 1e-5\\nonly: 01\\nclass: no")
    >>> read_yaml(path)
    {'delta': 1e-05, 'only': '01', 'class': 'no'}
    """
    try:
        return parse_yaml(pathlib.Path(path).read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def parse_yaml(text, where):
    """Read options written as YAML; `where` names them when they are none.

    Examples
    --------
    >>> parse_yaml("{learning_rate: 2e-2}", "--network-options")
    {'learning_rate': 0.02}
    """
    try:
        return yaml.load(text, _Words)  # a SafeLoader
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if getattr(error, "problem_mark", None) else ""
        raise ValueError(f"{where} is no YAML: {line}{getattr(error, 'problem', error)}") from error


def update_manifest(run_folder, section, value):
    """Set one section of the run's ``manifest.json`` and keep the others.

    Parameters
    ----------
    run_folder : path-like
    section : str
        As a notebook's name, or ``"environment"``.
    value : JSON-able

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = update_manifest(folder, "02_target_model", {"seed": 0})
    >>> update_manifest(folder, "01_cohort", {"seed": 0})["02_target_model"]
    {'seed': 0}
    """
    path = pathlib.Path(run_folder) / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest[section] = value
    save_json(path, manifest)
    return manifest


def banner(seed, *packages):
    """Print seed and versions, the first thing that every notebook says; refuse the repository's root as its folder.

    Examples
    --------
    >>> banner(0, "numpy")
    seed 0 · Python 3.11... · genlib ... · numpy ...
    """
    from genlib import __version__

    if "ipykernel" in sys.modules and pathlib.Path.cwd() == pathlib.Path(__file__).parent.parent:
        raise RuntimeError(
            "run from here, results would go beside the repository: cd notebooks, or papermill --cwd notebooks"
        )
    versions = [f"Python {sys.version.split()[0]}", f"genlib {__version__}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(f"seed {seed} · " + " · ".join(versions))
