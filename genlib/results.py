"""Results that survive a kill: atomic writes, arrays with checksums, tidy tables, verdicts, options and the manifest.

Nothing here is ever read half written: every file is written beside its final name and moved there when it is
complete. Tables are CSV, arrays are ``.npz`` without objects; nothing is pickled.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import secrets
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import threadpoolctl
import yaml

from genlib import __version__, metrics

# One meaning each: features are what a model takes in; network and trainer, what was really trained and by which code
# ("" where nothing is); start, from where. defense is a kind, strength its number, epsilon a promise. shared is what is
# handed out: on a row of utility, by this setting; on a row of risk, to this attacker. control says which one, where
# nothing (or a planted fault) is there to be found. bound is proven. NaN or "" is none.
COLUMNS = [
    "notebook", "cohort", "features", "network", "trainer", "defense", "strength", "epsilon", "shared", "attack",
    "attacker", "group", "metric", "estimate", "low", "high", "n_patients", "n_models", "false_positives",
    "false_positive_patients", "control", "start", "bound",
]  # fmt: skip
NUMBERS = ["strength", "epsilon", "estimate", "low", "high", "bound"]
COUNTS = ["n_patients", "n_models", "false_positives", "false_positive_patients"]
KEYS = [name for name in COLUMNS if name not in [*NUMBERS[2:], *COUNTS]]  # what tells two rows apart
SETTING = ["notebook", "cohort", "features", "network", "trainer", "defense", "strength", "epsilon", "start"]
INTERVAL = ["estimate", "low", "high"]
UTILITY, RISK = ([name, f"{name}_low", f"{name}_high"] for name in ("utility", "risk"))
VERDICTS = ["passes", "cannot be told", "fails"]
FOUND = "TPR at FPR 0.01"  # the risk that a tolerance speaks of: members found at 1 false accusation in 100
HERE = pathlib.Path(__file__).parent
PACKAGES = [
    "tensorflow", "tensorflow-privacy", "tensorflow-empirical-privacy", "dp-accounting", "numpy", "pandas", "scipy",
    "scikit-learn", "anndata", "papermill",
]  # fmt: skip


@contextlib.contextmanager
def atomic_path(path):
    """Give a path of its own beside `path`, and move what was written there when the block ends without an error.

    Examples
    --------
    >>> import tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(target) as part:
    ...     _ = part.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            way = "Free some space, or choose another folder (GENLIB_DATA for cohorts)"
            raise OSError(error.errno, f"the disk is full; {path} was not written. {way}") from error
        raise
    finally:
        part.unlink(missing_ok=True)


def digest(*parts):
    """SHA-256 over arrays (with their dtype and shape), bytes, and what `json` can write; the same on every platform.

    Examples
    --------
    >>> digest(np.arange(3)) == digest(np.arange(3.0))
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
        else:
            sha.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def code_digest(*modules):
    """Digest of the source of genlib's modules, of all and their data by default: no cache outlives its code."""
    every = [*HERE.glob("*.py"), *(path for path in (HERE / "data").rglob("*") if path.is_file())]
    return digest(*[path.read_bytes() for path in [HERE / f"{name}.py" for name in modules] or sorted(every)])


def file_digest(path, kind="sha256"):
    """Checksum of one file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def save_arrays(path, **arrays):
    """Write arrays to one ``.npz`` file, atomically, with a checksum of their content."""
    with atomic_path(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays, checksum=_checksum(arrays))


def _checksum(arrays):
    """Digest of names, types, shapes and values: that of a zip archive covers a file's bytes, not how they are read."""
    return digest(*[part for name in sorted(arrays) for part in (name, np.asarray(arrays[name]))])


def load_arrays(path):
    """Read what `save_arrays` wrote; None when there is no such file, or it is damaged (with a warning).

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
    """Keep rows of results (a table, or several) as those of one notebook, replacing what that notebook left before.

    Columns are out of `COLUMNS`; what is missing is left empty, and `context` has columns with one value for all rows.
    A column that is not known, a row without a metric or two with the same `KEYS` are a ValueError. The rows as written
    come back.

    Examples
    --------
    >>> import tempfile
    >>> rows = pd.DataFrame({"metric": ["accuracy"], "estimate": [0.9]})
    >>> record(tempfile.mkdtemp(), "02_target_model", rows, cohort="simulated")[["cohort", "metric", "estimate"]]
          cohort    metric  estimate
    0  simulated  accuracy       0.9
    """
    table = tidy(pd.concat(table) if isinstance(table, list) else table, notebook=notebook, **context)
    wrong = table[table.duplicated(KEYS) | (table["metric"] == "")]
    if len(wrong):
        row = wrong[KEYS].iloc[0].to_dict()
        raise ValueError(f"results of {notebook}: a row is repeated or has no metric: {row}")
    write_csv(pathlib.Path(run_folder) / "parts" / f"{notebook}.csv", table)
    return table


def tidy(table, **context):
    """Give a table all columns of the results, of their types, with one value for all rows where `context` says one.

    Examples
    --------
    >>> tidy(pd.DataFrame({"metric": ["AUC"], "note": ["?"]}), notebook="03_answers")
    Traceback (most recent call last):
    ValueError: results of 03_answers: columns ['note'] are not among ['notebook', ...
    """
    table = table.assign(**context).reset_index(drop=True)
    unknown = sorted(set(table.columns) - set(COLUMNS))
    if unknown:
        where = context.get("notebook", "a notebook")
        raise ValueError(f"results of {where}: columns {unknown} are not among {COLUMNS}; map or drop them")
    kinds = dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNTS, "Int64")
    words = [name for name in COLUMNS if name not in kinds]
    return table.reindex(columns=COLUMNS).fillna(dict.fromkeys(words, "")).astype(kinds | dict.fromkeys(words, str))


def write_csv(path, table):
    """Write a table without its index, atomically."""
    with atomic_path(path) as part:
        table.to_csv(part, index=False)


def load(run_folder, notebook=None):
    """Read the tidy results of a run, of one notebook or of all in their order.

    Examples
    --------
    >>> load("no-such-run", "02_target_model")
    Traceback (most recent call last):
    FileNotFoundError: no results of 02_target_model in no-such-run; run that notebook first ...
    """
    paths = sorted((pathlib.Path(run_folder) / "parts").glob(f"{notebook or '*'}.csv"))
    if not paths:
        raise FileNotFoundError(
            f"no results of {notebook or 'any notebook'} in {run_folder}; run that notebook first "
            f"(./run_all.sh --from {notebook or '01_cohort'})"
        )
    return tidy(pd.concat([read(path) for path in paths]))


def read(path):
    """Read one file of results as it was written."""
    text = dict.fromkeys(set(COLUMNS) - {*NUMBERS, *COUNTS}, str)
    empty = dict.fromkeys(NUMBERS + COUNTS, [""])
    # Only an empty cell is missing: "none" and "NA" are words that a class or a defense may be called.
    return tidy(pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty, float_precision="round_trip"))


def merge(run_folder):
    """Join the parts of all notebooks into ``results.csv``, the one table of the run, and return it."""
    table = load(run_folder)
    write_csv(pathlib.Path(run_folder) / "results.csv", table)
    return table


def one(table, **where):
    """Pick the one row of a results table that fits, as `select`; none, or more than one, is a LookupError.

    Examples
    --------
    >>> table = pd.DataFrame({"metric": ["AUC", "accuracy"], "estimate": [0.6, 0.9]})
    >>> one(table, metric="accuracy").estimate
    0.9
    """
    found = select(table, **where)
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows of the results fit {where}; there must be one")
    return found.iloc[0]


def select(table, **where):
    """Pick the rows of a table whose columns have these values; of a list any one, None where there is no number.

    Examples
    --------
    >>> len(select(pd.DataFrame({"metric": ["AUC", "accuracy"]}), metric=["AUC", "accuracy"]))
    2
    """
    for column, value in where.items():
        wanted = np.nan if value is None else value
        table = table[table[column].isin(wanted if isinstance(wanted, list | tuple) else [wanted])]
    return table


def label(row):
    """Name a setting by what its columns say.

    Examples
    --------
    >>> row = {"defense": "DP-SGD", "strength": np.nan, "epsilon": 4.0, "features": "pam50", "start": "random"}
    >>> label(row)
    'DP-SGD, epsilon 4, pam50'
    """
    named = "no defense" + row["defense"][4:] if row["defense"].startswith("none") else row["defense"]
    words = [named + ("" if np.isnan(row["strength"]) else f" {row['strength']:g}")]
    words += [] if np.isnan(row["epsilon"]) else [f"epsilon {row['epsilon']:g}"]
    words += [row["features"]] if row["features"] != "all genes" else []
    return ", ".join(words + ([f"from {row['start']}"] if row["start"] not in ("", "random") else []))


def risks(table, metric=FOUND):
    """Rows of one metric of every attack that measures something, controls left out."""
    return select(table[table["attack"] != ""], metric=metric, control="")


def settings(table, utility="balanced accuracy", risk=FOUND, group="all"):
    """Put every setting that was attacked into one row: its utility to held-out patients, and its strongest attack.

    `utility` and `risk` are metrics: of classification (more is better), and of an attack (less is better; the attack
    with most counts); `group` is ``"all"`` or a class. Columns setting (its `label`, told apart by network and notebook
    where needed), those of `SETTING`, shared (what the setting hands out), n_patients, utility, utility_low,
    utility_high, attack, attacker, risk, risk_low, risk_high, bound.

    Examples
    --------
    >>> settings(pd.DataFrame(columns=COLUMNS)).empty
    True
    """
    # Models by TF-Privacy are there to be compared with the bank's, and no settings of their own.
    table = table[table["trainer"] != "tf-privacy"]
    useful = select(table, metric=utility, group=group, attack="", control="")
    worst = select(risks(table, risk), group=group)
    worst = worst.sort_values(["estimate", "attack", "attacker"], ascending=[False, True, True])
    useful = useful.rename(columns=dict(zip(INTERVAL, UTILITY, strict=True)))
    worst = worst.rename(columns=dict(zip(INTERVAL, RISK, strict=True)))
    worst = worst.drop_duplicates(SETTING)[[*SETTING, "attack", "attacker", *RISK, "bound"]]
    found = useful[[*SETTING, "shared", "n_patients", *UTILITY]].merge(worst, on=SETTING)
    found.insert(0, "setting", [label(row) for row in found.to_dict("records")])
    for column, same in (("network", ["setting", "notebook"]), ("notebook", ["setting"])):
        twice, words = found.duplicated(same, keep=False), found[column]
        words = "notebook " + words.str[:2] if column == "notebook" else words
        found.loc[twice, "setting"] += " (" + words[twice] + ")"
    return found


def frontier(points):
    """Say which settings no other beats: more utility and less risk, one of both strictly, and no less handed out.

    What hands out answers only does not beat what hands out the model. What could not be measured beats nothing.

    Examples
    --------
    >>> frontier(pd.DataFrame({"utility": [0.9, 0.8], "risk": [0.1, 0.2], "shared": "model"}))
    array([ True, False])
    """
    utility, risk = points["utility"].to_numpy(float), points["risk"].to_numpy(float)
    model = (points["shared"] == "model").to_numpy()
    as_good = (utility[:, None] >= utility) & (risk[:, None] <= risk) & (model[:, None] | ~model)
    equal = (utility[:, None] == utility) & (risk[:, None] == risk)
    return np.isfinite(utility) & np.isfinite(risk) & ~(as_good & ~equal).any(axis=0)


def baselines(table, metric="balanced accuracy", group="all"):
    """Rows of the classifiers that nobody trained: majority class, and published centroids where they exist."""
    found = select(table, trainer="", attack="", control="", group=group, metric=metric)
    return found[found["network"] != ""].drop_duplicates("network")


def verdict(risk, tolerance, n_statements=None):
    """Judge one thing that is handed out by every attack on every group that was measured: verdict and reason.

    It *fails* where the lower end of an interval, corrected for all of them together by Holm's rule (Scandinavian
    Journal of Statistics 6, 1979), is above the tolerance, the largest share of members that may be found; *passes*
    where a proven bound or every upper end is not; and else it *cannot be told*. `risk` are rows of `FOUND`, some of
    `n_statements` where what else is handed out is judged too.

    Examples
    --------
    >>> row = {"attack": "LiRA", "group": "all", "estimate": 0.3, "low": 0.2, "high": 0.4, "bound": np.nan}
    >>> verdict(pd.DataFrame([row | {"n_patients": 90}]), 0.03)
    ('fails', 'LiRA finds 30 % of all members')
    """
    if risk.empty:
        return "cannot be told", "not attacked"
    # Whether Holm's rule rejects any of several is whether Bonferroni's does.
    excess = metrics.bonferroni_low(risk, n_statements or max(1, risk["estimate"].notna().sum())) - tolerance
    if (excess > 0).any():
        worst = risk.iloc[np.nanargmax(excess)]
        return "fails", f"{worst['attack']} finds {100 * worst['estimate']:.0f} % of {worst['group']} members"
    if risk["bound"].max() <= tolerance:
        return "passes", f"proven, in or out: at most {100 * risk['bound'].max():.1f} % by any attack"
    unsure = risk[~(risk["high"] <= tolerance)]
    if unsure.empty:
        return "passes", "every attack that was run stays below"
    fewest = unsure.drop_duplicates("group").sort_values("n_patients", kind="stable", key=lambda n: n.astype(float))
    return "cannot be told", f"too few patients: {', '.join(fewest['group'])}"


def decisions(table, tolerance=0.03, floor=0.5):
    """Say of every setting whether its answers and whether its model may be shared, and why.

    Answers are judged by the attacks on answers, a model by the attacks on answers and on weights together; a defense
    that changes answers only is none of the model. `tolerance` is the largest share of members that may be found, in
    every class and by every attack, at 1 false accusation in 100; `floor` the least balanced accuracy: what is surely
    below fails, what is not surely above cannot be told. What comes back is `settings` with answers, model (of
    `VERDICTS`), and why, for the model where it is handed out; what passes first, and of that the most useful.

    Examples
    --------
    >>> decisions(pd.DataFrame(columns=COLUMNS)).empty
    True
    """
    found = settings(table)
    measured = risks(table).merge(found[SETTING].reset_index(), on=SETTING)  # which takes NaN for equal to NaN
    judged = [_judge(measured[measured["index"] == i], row, tolerance, floor) for i, row in found.iterrows()]
    found[["answers", "model", "why"]] = pd.DataFrame(judged, columns=["answers", "model", "why"], dtype=str)
    ranks = found.assign(**{name: found[name].map(VERDICTS.index) for name in ("answers", "model")})
    order = ranks.sort_values(["model", "answers", "utility", "setting"], ascending=[True, True, False, True]).index
    return found.loc[order].reset_index(drop=True)


def counted(decided):
    """Count models by their verdict, each recipe once though two notebooks measured it: the worse verdict counts.

    Undefended models of as many patients as a student and its teacher are a comparison, and no way of their own.
    """
    once = select(decided[decided["defense"] != "none, as many patients"], shared="model")
    once = once.drop_duplicates([name for name in SETTING if name != "notebook"], keep="last")
    verdicts = once["model"].mask(once["why"].str.startswith("balanced accuracy below"), "useless")
    return verdicts.value_counts().reindex([*VERDICTS, "useless"], fill_value=0).to_dict()


def _judge(risk, row, tolerance, floor):
    """Verdicts on the answers and on the model of one setting, and the reason."""
    if row["utility_high"] < floor:
        return "fails", "fails", f"balanced accuracy below {100 * floor:.0f} %"
    # One family: whoever has the model has its answers, so what fails by them fails as a model.
    answers, why_answers = verdict(select(risk, shared="answers"), tolerance, risk["estimate"].notna().sum())
    model, why = verdict(risk, tolerance)
    if row["shared"] == "answers":
        model, why = "fails", f"{why_answers}; the model behind stays as it is"
    elif model == "passes" and not (risk["bound"].max() <= tolerance) and select(risk, shared="model").empty:
        model, why = "cannot be told", "its weights were not attacked"
    if row["utility_low"] < floor:
        unsure = f"balanced accuracy not surely above {100 * floor:.0f} %"
        why = f"{why}; {unsure}" if model == "fails" else unsure
        answers, model = (said if said == "fails" else "cannot be told" for said in (answers, model))
    return answers, model, why


def load_runs(runs):
    """Read the results of several runs into one table, with columns run (cohort and network) and seed."""
    tables = []
    for folder in map(pathlib.Path, runs):
        table = load(folder)
        chosen = json.loads((folder / "manifest.json").read_text())["run"]["parameters"]
        changed = ", ".join(f"{name} {value}" for name, value in chosen.get("network_options", {}).items())
        named = f"{table['cohort'].iloc[0]}, {chosen['network']}" + f" ({changed})" * bool(changed)
        tables.append(table.assign(run=named, seed=chosen["seed"]))
    return pd.concat(tables, ignore_index=True)


def pooled(table, by):
    """Average estimates and ends of intervals over seeds; an interval is not narrowed, since patients are the same.

    Examples
    --------
    >>> two = pd.DataFrame({"run": "a", "estimate": [0.5, 0.7], "low": [0.4, 0.6], "high": [0.6, 0.8]})
    >>> pooled(two, ["run"])["estimate"].round(3).tolist()
    [0.6]
    """
    numbers = table.astype(dict.fromkeys(INTERVAL, float))
    return numbers.groupby(by, sort=False, dropna=False)[INTERVAL].mean().reset_index()


def rank_correlation(x, y, groups, n_draws=2000, seed=0):
    """Correlate ranks within groups: Spearman's coefficient (-1 to 1), and the p-value of shuffles within groups.

    Groups that differ as a whole make no correlation; the coefficient is NaN where no group has two points that differ.
    The data itself counts among the shuffles, which are as far from 0 or farther.

    Examples
    --------
    >>> x = np.arange(6.0)
    >>> coefficient, p = rank_correlation(x, -x, np.zeros(6))
    >>> round(coefficient, 3), p < 0.05
    (-1.0, True)
    """
    points = pd.DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float), "group": np.asarray(groups)})
    points = points.sort_values("group", kind="stable").groupby("group", sort=False)
    # From -1 to 1 in every group, and 0 where it has one point.
    ranks = ((points.rank() - 1).div(points.transform("size") - 1, axis=0) * 2 - 1).fillna(0)
    if not np.ptp(ranks["x"]) or not np.ptp(ranks["y"]):
        return float("nan"), 1.0
    # Random numbers of 0 to 1 beside the groups' numbers, in order, shuffle each group by itself.
    chance = points.ngroup().to_numpy() + np.random.default_rng(seed).random((n_draws, len(ranks)))
    products = ranks["y"].to_numpy()[chance.argsort(axis=1, kind="stable")] @ ranks["x"].to_numpy()
    as_far = 1 + (np.abs(products) >= abs(ranks["x"] @ ranks["y"]) - 1e-12).sum()
    return float(ranks.corr().iloc[0, 1]), as_far / (n_draws + 1)


def save_json(path, value):
    """Write a JSON file with sorted keys, atomically."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def environment():
    """What a number may depend on beside its parameters: versions, machine, commit and time.

    ``processor`` is its kind, ``processors`` how many, ``blas`` NumPy's with its kind of core and threads;
    ``git_commit`` is None outside a checkout, and ends in ``+changes`` when files differ from it.

    Examples
    --------
    >>> environment()["versions"]["numpy"] == np.__version__
    True
    """
    words = ("internal_api", "version", "architecture", "num_threads")
    blas = [" ".join(str(one[word]) for word in words if word in one) for one in threadpoolctl.threadpool_info()]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "processor": _processor(),
        "blas": sorted(blas),
        "git_commit": _git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor():
    """Kind of processor: NumPy, OpenBLAS and TensorFlow choose their loops by it, and these round otherwise."""
    file = pathlib.Path("/proc/cpuinfo")
    first = file.read_text().partition("\n\n")[0] if file.exists() else ""
    model = re.findall(r"^(?:vendor_id|cpu family|model)\s*: (.*)$", first, re.MULTILINE)
    wide = re.findall(r"\b(?:avx2|fma|avx512f|avx512_bf16|amx_tile)\b", first)
    return " ".join([platform.machine(), *model, *sorted(wide)])


def _git_commit():
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

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
    """Read a YAML file of options, as `parse_yaml`."""
    try:
        return parse_yaml(pathlib.Path(path).read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def parse_yaml(text, where):
    r"""Read options as they are meant: 1e-5 is a number, no is a word, 01 keeps its zero; `where` names them in errors.

    Examples
    --------
    >>> parse_yaml("delta: 1e-5\nonly: 01\nclass: no", "profile")
    {'delta': 1e-05, 'only': '01', 'class': 'no'}
    """
    try:
        return yaml.load(text, _Words)  # a SafeLoader
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if getattr(error, "problem_mark", None) else ""
        raise ValueError(f"{where} is no YAML: {line}{getattr(error, 'problem', error)}") from error


def meant(like, value, where):
    """Take a value for what is meant, where there is no doubt: for one of the kind of another (None: for a word).

    Raises
    ------
    ValueError
        Begins with `where`, and says how to write it.

    Examples
    --------
    >>> meant(1, "1e1", "n_models"), meant([], "LumB", "drop_classes"), meant("", 3, "label")
    (10, ['LumB'], '3')
    """
    kind, way = type(like), f"like {like!r}"
    if kind is dict:
        if value is None or isinstance(value, dict):
            return value or {}
    elif kind in (list, tuple):
        if not isinstance(value, dict):
            alone = isinstance(value, str) or not hasattr(value, "__iter__")
            return kind(() if value is None else (value,) if alone else value)
    elif like is None or kind is str:
        way = "in quotes, as YAML reads no and 1e1"
        if value is None or isinstance(value, str | int | os.PathLike) and not isinstance(value, bool):
            return value if value is None else str(value)
    elif kind is bool:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
    elif not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = kind(float(value))
            if number == float(value):
                return number
    raise ValueError(f"{where}: {value!r} cannot be; write it {way}")


def update_manifest(run_folder, section, value):
    """Set one section of the run's ``manifest.json``, as a notebook's name or ``"environment"``; keep the others."""
    path = pathlib.Path(run_folder) / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(".manifest.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # notebooks that run at the same time wait for each other here
        manifest = json.loads(path.read_text()) if path.exists() else {}
        save_json(path, manifest | {section: value})
    return manifest | {section: value}


def banner(seed, *packages):
    """Print seed and versions, the first thing that every notebook says; refuse the repository's root as its folder.

    Examples
    --------
    >>> banner(0, "numpy")  # doctest: +SKIP
    seed 0 · Python 3.11... · genlib ... · numpy ...
    """
    if "ipykernel" in sys.modules and pathlib.Path.cwd() == HERE.parent:
        raise RuntimeError(
            "run from here, results would go beside the repository: cd notebooks, or papermill --cwd notebooks"
        )
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(" · ".join([f"seed {seed}", f"Python {platform.python_version()}", f"genlib {__version__}", *versions]))
