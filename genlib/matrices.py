"""Genes x samples, as the field publishes them: cBioPortal study folders, and matrices with a clinical table (Xena).

What is one column in such a file is a sample, not yet a patient, and a row may be a gene twice. Every rule by which
these become patients and genes is written here, and what a rule did is printed and kept in the provenance.
"""

import csv
import gzip
import pathlib
import re

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from genlib import results

GENE_COLUMNS = ("hugo_symbol", "entrez_gene_id", "gene", "gene_id", "gene_symbol", "symbol", "ensembl_id", "sample", "")
ROWS = 500  # genes read at a time, so that text never takes more memory than the numbers
HIGHEST_LOG2 = 40.0
SEVERAL = ("refuse", "first", "mean")


def read_folder(folder, *, label, site=None, several="refuse", units=None):
    """Read a cBioPortal study folder as it was downloaded.

    Parameters
    ----------
    folder : path-like
        With ``data_mrna_seq_v2_rsem.txt`` or one other ``data_mrna_*.txt`` that is not of z-scores,
        ``data_clinical_sample.txt`` and, if there is one, ``data_clinical_patient.txt``.
    label, site : str
        Columns of the clinical tables, as ``CLAUDIN_SUBTYPE``.
    several : {"refuse", "first", "mean"}
        What to do where a patient has several samples.
    units : {"linear", "log2"}, optional
        Of the values; by default linear for RSEM files, whose log2(x + 1) is taken, and log2 else.

    Returns
    -------
    dict
        `values` (n, d) float32 in log2 units, `labels` (n,), `genes`, `entrez_ids`, `sites` or None, `provenance`.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file, the column and value, and the way out.

    Examples
    --------
    >>> read_folder("no such folder", label="SUBTYPE")
    Traceback (most recent call last):
    FileNotFoundError: there is no folder no such folder
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    path = _expression_file(folder)
    clinical = _study_tables(folder)
    sample, patient = "SAMPLE_ID", "PATIENT_ID"
    units = units or ("linear" if "rsem" in path.name else None)
    return _read(path, clinical, folder, sample, patient, label, site, several, units)


def read_matrix(path, *, clinical, label, sample=None, patient=None, site=None, several="refuse", units=None):
    """Read a matrix of genes x samples, or samples x genes, and a clinical table, as UCSC Xena has them.

    Which way round the matrix lies is told by where the samples of the clinical table are named: in its first row or in
    its first column.

    Parameters
    ----------
    path, clinical : path-like
        ``.tsv``, ``.txt`` or ``.csv``, also ``.gz``.
    label, site : str
        Columns of the clinical table.
    sample : str, optional
        Its column that names the samples; the first by default.
    patient : str, optional
        Its column that names the patients; by default every sample is a patient.
    several, units
        As in `read_folder`.

    Returns
    -------
    dict
        As `read_folder`.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file, the column and value, and the way out.

    Examples
    --------
    >>> read_matrix("none.tsv", clinical="none.tsv", label="type")
    Traceback (most recent call last):
    FileNotFoundError: there is no file none.tsv
    """
    path, clinical = pathlib.Path(path), pathlib.Path(clinical)
    for one in (path, clinical):
        if not one.exists():
            raise FileNotFoundError(f"there is no file {one}")
    table = pd.read_csv(clinical, sep=_separator(clinical), dtype=str, encoding="utf-8-sig")
    sample = sample or table.columns[0]
    return _read(path, table, clinical, sample, patient or sample, label, site, several, units)


PRIMARY = ("01", "03")  # sample types of TCGA barcodes: primary solid tumor, primary blood-derived cancer


def read_aliquots(path, clinical, *, label, patient, units=None):
    """Read a matrix of genes x TCGA aliquots, and keep one primary tumor of each patient.

    A column is an aliquot, as ``TCGA-OR-A5J1-01A-11R-A29S-07``: its first three fields name the patient, the fourth
    begins with the sample type. Of several primary aliquots the first by its barcode is kept.

    Parameters
    ----------
    path : path-like
        Genes x aliquots; genes by symbol, or as ``SYMBOL|ENTREZ``.
    clinical : pandas.DataFrame
        One row a patient, columns of text.
    label, patient : str
        Its columns.
    units
        As in `read_folder`.

    Returns
    -------
    dict
        As `read_folder`; `sites` are the tissue source sites, the second field of the barcodes.

    Raises
    ------
    ValueError
        When no column is an aliquot, and as `read_folder`.

    Examples
    --------
    >>> read_aliquots("none.tsv", pd.DataFrame(), label="type", patient="patient")
    Traceback (most recent call last):
    FileNotFoundError: there is no file none.tsv
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    names = sorted(name for name in _header(path)[0] if name.startswith("TCGA-") and name.count("-") >= 3)
    if not names:
        raise ValueError(f"{path}: no column is called by the barcode of an aliquot, as TCGA-XX-XXXX-01A")
    fields = [name.split("-") for name in names]
    aliquots = pd.DataFrame(
        {"aliquot": names, patient: ["-".join(f[:3]) for f in fields], "site": [f[1] for f in fields]}
    )
    primary = aliquots[[f[3][:2] in PRIMARY for f in fields]]
    first = primary.drop_duplicates(patient)
    print(
        f"{path.name}: {len(aliquots) - len(primary)} aliquots of other tissue than a primary tumor are left out, and "
        f"{len(primary) - len(first)} further ones of the same patient"
    )
    wanted = first.merge(clinical[[patient, label]].drop_duplicates(patient), on=patient)
    return _read(path, wanted, path, "aliquot", patient, label, "site", "refuse", units)


def _expression_file(folder):
    found = sorted(p for p in folder.glob("data_mrna_*.txt") if "zscores" not in p.name.lower())
    preferred = [p for p in found if p.name == "data_mrna_seq_v2_rsem.txt"]
    if len(preferred or found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise ValueError(
            f"{folder}: there must be one expression file data_mrna_*.txt that is not of z-scores, found: {names}. Copy"
            " the one that you want, with the clinical files, to a folder of its own"
        )
    return (preferred or found)[0]


def _study_tables(folder):
    """Sample table of a study with the columns of its patient table beside."""
    tables = {}
    for name in ("sample", "patient"):
        path = folder / f"data_clinical_{name}.txt"
        if path.exists():
            tables[name] = pd.read_csv(path, sep="\t", comment="#", dtype=str, encoding="utf-8-sig")
            if "PATIENT_ID" not in tables[name]:
                raise ValueError(f"{path}: no column PATIENT_ID; columns: {_some(tables[name].columns, 10)}")
    if "sample" not in tables or "SAMPLE_ID" not in tables["sample"]:
        raise ValueError(f"{folder}: data_clinical_sample.txt with a column SAMPLE_ID must be there")
    if "patient" not in tables:
        return tables["sample"]
    added = [c for c in tables["patient"] if c not in tables["sample"] or c == "PATIENT_ID"]
    return tables["sample"].merge(tables["patient"][added].drop_duplicates("PATIENT_ID"), on="PATIENT_ID", how="left")


def _read(path, clinical, told_by, sample, patient, label, site, several, units):
    """The road from files to patients: join, one sample a patient, log2, genes."""
    if several not in SEVERAL:
        raise ValueError(f"several='{several}' is not known; choose one of {', '.join(SEVERAL)}")
    for role, column in (("sample", sample), ("patient", patient), ("label", label), ("site", site)):
        if column is not None and column not in clinical:
            raise ValueError(f"{told_by}: no column '{column}' for {role}; columns: {_some(clinical.columns, 15)}")
    clinical = clinical[clinical[label].notna()].drop_duplicates(sample).set_index(sample, drop=False)
    names, symbols, entrez, values = _matrix(path, set(clinical.index))
    columns = np.flatnonzero([name in clinical.index for name in names])
    if not len(columns):
        raise ValueError(
            f"{path}: none of its {len(names)} samples is in column '{sample}' of {told_by} with a '{label}'; do they "
            "name samples alike?"
        )
    chosen = clinical.loc[[names[c] for c in columns]]
    done = [f"{len(columns)} of {len(names)} samples have a '{label}'"]
    values, chosen = _patients(path, values[:, columns].T, chosen, patient, label, several, done)
    values = to_log2(path, values, units, done)
    values, genes, entrez = _genes(path, values, symbols, entrez, done)
    for words in done:
        print(f"{path.name}: {words}")
    provenance = {
        "source": path.name, "sha256": results.file_digest(path), "license": "the owner's", "rules": "; ".join(done),
    }  # fmt: skip
    sites = None if site is None else chosen[site].fillna("not known").to_numpy()
    return {
        "values": values, "labels": chosen[label].reset_index(drop=True), "genes": genes, "entrez_ids": entrez,
        "sites": sites, "provenance": provenance,
    }  # fmt: skip


def _refuse_other_suffix(path, samples, known):
    def cut(names):
        return {str(name).rsplit("-", 1)[0] for name in names}

    if cut(known) & set(samples) or cut(samples) & known:
        raise ValueError(
            f"{path}: its samples and those of the clinical table differ by a suffix, as -01 for the kind of sample; "
            "write both alike"
        )


def _separator(path):
    return "," if ".csv" in path.name else "\t"


def _some(names, at_most=5):
    names = [str(n) for n in names]
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def _header(path):
    """Names of the columns, and how many lines of remarks stand before them."""
    opener = gzip.open if path.suffix == ".gz" else open
    line, skipped = "", 0
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        for line in file:
            if not line.startswith("#"):
                break
            skipped += 1
    return next(csv.reader([line], delimiter=_separator(path)), []), skipped


def _matrix(path, known):
    """Samples, gene symbols, Entrez ids and values (genes, samples), read a few genes at a time."""
    header, skipped = _header(path)
    about_genes = [name for name in header if name.lower() in GENE_COLUMNS] or header[:1]
    samples = [name for name in header if name not in about_genes]
    repeated = sorted({name for name in samples if samples.count(name) > 1}) if len(set(samples)) < len(samples) else []
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} samples have more than one column; keep one of each")
    if not known & set(samples):
        _refuse_other_suffix(path, samples, known)
        return _turned(path, header, skipped, known)
    # With the names as they stand: pandas would give a nameless first column, as R and pandas write it, one of its own.
    options = {"sep": _separator(path), "skiprows": skipped, "chunksize": ROWS, "encoding": "utf-8-sig"}
    options |= {"names": header, "header": 0}
    parts, gene_parts = [], []
    types = {**dict.fromkeys(samples, np.float32), **dict.fromkeys(about_genes, str)}
    try:
        for chunk in tqdm(
            pd.read_csv(path, dtype=types, **options), desc=f"reading {path.name}", unit=f"x{ROWS} genes"
        ):
            gene_parts.append(chunk[about_genes])
            parts.append(chunk[samples].to_numpy(np.float32))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: a value is not a number, or the file is cut short: {error}") from error
    if not sum(len(part) for part in parts):
        raise ValueError(f"{path} holds no genes")
    named = pd.concat(gene_parts, ignore_index=True)
    entrez_column = next((c for c in about_genes if c.lower() == "entrez_gene_id"), None)
    symbol_column = next((c for c in about_genes if c != entrez_column), None)
    empty = pd.Series([""] * len(named))
    symbols = named[symbol_column].fillna("") if symbol_column is not None else empty
    entrez = named[entrez_column].fillna("") if entrez_column is not None else empty
    symbols, entrez = split_names(symbols, [e.removesuffix(".0") for e in entrez])
    return samples, symbols, entrez, np.concatenate(parts)


def split_names(symbols, entrez):
    """Split gene names as ``ESR1|2099`` or ``ESR1_2099`` into symbol and Entrez id, and take a bare number for an id.

    This is a form that a whole file has: where fewer than half of the names have it, ``HLA_1`` is a name as
    any other.

    Parameters
    ----------
    symbols, entrez : sequence of str
        Names, and the Entrez ids that are known already; ``""`` where none is.

    Returns
    -------
    symbols, entrez : list of str
        A symbol is ``""`` where the name was an id alone, or ``?``.

    Examples
    --------
    >>> split_names(["ESR1|2099", "?|100130426", "NKX2-1", "672"], ["", "", "7080", ""])
    (['ESR1', '', 'NKX2-1', ''], ['2099', '100130426', '7080', '672'])
    """
    found = [None if known else JOINED.fullmatch(symbol) for symbol, known in zip(symbols, entrez, strict=True)]
    if 2 * sum(one is not None for one in found) < max(1, sum(not known for known in entrez)):
        return list(symbols), list(entrez)
    names = [one[1] or "" if one else symbol for one, symbol in zip(found, symbols, strict=True)]
    numbers = [one[2] if one else known for one, known in zip(found, entrez, strict=True)]
    return ["" if name == "?" else name for name in names], numbers


JOINED = re.compile(r"(?:(.+)[|_])?(\d+)")


def _turned(path, header, skipped, known):
    """The same for a matrix with one row a sample."""
    types = {**dict.fromkeys(header[1:], np.float32), header[0]: str}
    try:
        table = pd.read_csv(
            path, sep=_separator(path), skiprows=skipped, dtype=types, encoding="utf-8-sig", names=header, header=0
        )
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: its first row names no sample of the clinical table, so its first column must, and all else must "
            f"be numbers: {error}"
        ) from error
    values = table[header[1:]].to_numpy(np.float32).T
    return list(table[header[0]]), header[1:], [""] * (len(header) - 1), values


def _patients(path, values, chosen, patient, label, several, done):
    """One row a patient, by the stated rule."""
    who = chosen[patient].to_numpy()
    order, first, inverse = np.unique(who, return_index=True, return_inverse=True)
    extra = len(who) - len(order)
    if not extra:
        return values, chosen
    if several == "refuse":
        raise ValueError(
            f"{path}: {extra} samples are second ones of the same patient. A patient in twice would be member and "
            "non-member at once: pass several='first' to keep the first, or several='mean' to average them"
        )
    if several == "first":
        done.append(f"of patients with several samples the first is kept ({extra} left out)")
        keep = np.sort(first)
        return values[keep], chosen.iloc[keep]
    differ = chosen.groupby(who)[label].nunique()
    if (differ > 1).any():
        raise ValueError(
            f"{path}: samples of {int((differ > 1).sum())} patients differ in '{label}', so they cannot be averaged; "
            "pass several='first'"
        )
    done.append(f"samples of the same patient are averaged ({extra} merged)")
    place = np.argsort(
        np.argsort(first, kind="stable"), kind="stable"
    )  # patients stay in the order of their first samples
    mean = np.zeros((len(order), values.shape[1]), np.float64)
    np.add.at(mean, place[inverse], values)
    return (mean / np.bincount(place[inverse])[:, None]).astype(np.float32), chosen.iloc[np.sort(first)]


def to_log2(path, values, units, done):
    """Values in log2 units, by what they are said to be; what contradicts that is refused.

    Parameters
    ----------
    path : path-like
        Named in errors.
    values : numpy.ndarray
        Any shape.
    units : {"linear", "log2"} or None
        None takes them for log2.
    done : list of str
        Words on what was done are added to it.

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    ValueError
        When `units` is not known, or the values cannot be what they are said to be.

    Examples
    --------
    >>> to_log2("a.csv", np.array([0.0, 1023.0]), "linear", [])
    array([ 0., 10.])
    """
    if units not in (None, "linear", "log2"):
        raise ValueError(f"units='{units}' is not known; choose 'linear' or 'log2'")
    top = np.nanmax(values) if np.isfinite(values).any() else np.nan
    if units == "linear":
        if top <= HIGHEST_LOG2:
            raise ValueError(
                f"{path}: values reach only {top:.1f}, so they seem to be logarithms already; pass units='log2'"
            )
        below = values < 0
        if below.any():
            done.append(f"{int(below.sum())} values below 0 are taken as 0")
        done.append("log2(x + 1) of linear values")
        return np.log2(np.maximum(values, 0) + 1)
    if top > HIGHEST_LOG2:
        raise ValueError(
            f"{path}: values reach {top:.0f}, which no log2 expression does; pass units='linear' to take log2(x + 1)"
        )
    return values


def _genes(path, values, symbols, entrez, done):
    """Genes with a name of their own and a value in every patient."""
    names = pd.Series([s or (f"entrez:{e}" if e else "") for s, e in zip(symbols, entrez, strict=True)])
    kept = (names != "").to_numpy()
    if not kept.all():
        done.append(f"{int((~kept).sum())} rows without symbol and Entrez id are left out")
    finite = np.isfinite(values).all(axis=0)
    if not finite[kept].all():
        done.append(f"{int((kept & ~finite).sum())} genes with missing values are left out")
    kept &= finite
    moving = np.zeros(len(kept), bool)
    moving[kept] = values[:, kept].min(axis=0) < values[:, kept].max(axis=0)
    if not moving[kept].all():
        done.append(f"{int((kept & ~moving).sum())} genes with one value in all patients are left out")
    kept &= moving
    # Of rows with one name the one that is expressed most stays.
    columns = np.flatnonzero(kept)
    columns = columns[np.argsort(-values[:, columns].mean(axis=0), kind="stable")]
    columns = np.sort(columns[~names.iloc[columns].duplicated().to_numpy()])
    if len(columns) < kept.sum():
        done.append(f"of {int(kept.sum()) - len(columns)} further rows of a gene the most expressed one is kept")
    if not len(columns):
        raise ValueError(f"{path}: no gene has a name, a value in every patient, and more than one value")
    return np.ascontiguousarray(values[:, columns]), list(names.iloc[columns]), [entrez[c] for c in columns]
