"""From files to patients: the forms that people have, and one list of checks that all of them pass.

A form says what stands where, and ends in `Parts`. The checks say who is a patient, what is a gene, and what is
refused; what they decide is kept as notes. No message names a patient: rows and columns are counted.
"""

import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import pathlib
import re
import typing
import unicodedata
import warnings
import zipfile
import zlib

import anndata
import numpy as np
import pandas as pd
import yaml

from genlib import results

BLOCK = 500  # lines read at a time, so that text never takes more memory than the numbers
HIGHEST_LOG2, LOWEST_LOG2 = 40.0, -40.0
csv.field_size_limit(1 << 30)  # a line of many genes, cut at another separator, is one long field
WORDS = yaml.safe_load((pathlib.Path(__file__).parent / "data" / "words.yaml").read_text())  # in lower case
MISSING = tuple(WORDS["missing"])
SPELLED = [spell(word) for word in (*MISSING, "NaN") for spell in (str, str.upper, str.capitalize, str.title)]
COUNTERS = re.compile(r"__\w+|N_(unmapped|multimapping|noFeature|ambiguous)")
BARCODE = re.compile(r"(?P<who>tcga-\w{2}-\w{4}|target-\d\d-\w{6})(-(?P<type>\d\d)[a-z]?(-.*)?)?$")
PRIMARY, NORMAL = (1, 3, 5, 9), (10, 11, 12, 13, 14, 20, 40, 50, 60, 61)
ODD = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the data; run 'git lfs pull' where it came from",
    (b"<!doctype", b"<html"): "it is a web page, not a table; fetch the file itself",
}


def some(names, at_most=5):
    """The first few of many names, and how many more there are.

    Examples
    --------
    >>> some(["a", "b", "c"], at_most=2)
    'a, b and 1 more'
    """
    names = [str(n) for n in names]
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def refuse(path, found, words):
    """Stop where something is found: one line that names the file, what is wrong and the way out."""
    if found.any() if hasattr(found, "any") else found:
        raise ValueError(f"{path}: {words}")


def _columns(table):
    """Names of columns for a message, but for those that seem to be the names of patients."""
    shape = {name: re.sub(r"\d+", "9", str(name)) for name in table}
    count = collections.Counter(shape.values())
    if any(str(name) in set(map(str, table[name])) for name in table):
        return "the first line seems to be a row as any other"
    return some([name for name in table if "9" not in shape[name] or count[shape[name]] == 1], 15) or "none to show"


# --- what the user says ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Options:
    """What may be said of a file beside its name; see `genlib.cohorts.load`."""

    label: str = None
    clinical: str = None
    patient: str = None
    sample: str = None
    site: str = None
    ignore: tuple = ()
    drop_classes: tuple = ()
    min_class_size: int = 10
    missing: tuple = MISSING
    several: typing.Literal["refuse", "first", "mean"] = "refuse"
    unmatched: typing.Literal["refuse", "drop"] = "refuse"
    units: typing.Literal[None, "linear", "ln", "log2"] = None
    layer: str = None
    drop_constant_genes: bool = False
    classes: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Take words, numbers and lists as they are meant, and refuse what may be meant in two ways."""
        self.missing = MISSING if self.missing is None else self.missing
        for field in dataclasses.fields(self):
            name, known = field.name, typing.get_args(field.type)
            like = {} if name == "classes" else field.default
            value = results.meant(like, getattr(self, name), name)
            if field.type is tuple:
                value = tuple(results.meant("", one, name) for one in value if one is not None)
            if known and value not in known:
                raise ValueError(f"{name}='{value}' is not known; choose one of {', '.join(map(str, known))}")
            setattr(self, name, value)
        self.missing = ("", *(word.strip().lower() for word in self.missing))
        if self.min_class_size < 2:
            raise ValueError(f"min_class_size={self.min_class_size} must be at least 2")


def options_of(given):
    """`Options` from keywords; a misspelled one is named with those that there are.

    Examples
    --------
    >>> options_of({"label": "subtype", "drop_classes": 3}).drop_classes
    ('3',)
    """
    known = [field.name for field in dataclasses.fields(Options)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"unknown option '{unknown[0]}' of a cohort; the options are {', '.join(known)}")
    return Options(**given)


# --- one table as it stands in a file -------------------------------------------------------------------------------


@dataclasses.dataclass
class Sheet:
    """A table by position: columns 0, 1, ... of `frame` are float32, or text; `header` has their names."""

    path: pathlib.Path
    header: list
    frame: pd.DataFrame

    @property
    def text(self):
        """Position to words of the columns of text, dict of int to numpy.ndarray."""
        return {i: self.frame[i].to_numpy() for i in np.flatnonzero([kind.kind == "O" for kind in self.frame.dtypes])}


def _refuse_odd_file(path):
    """Nothing, an empty file, a pointer to a file, a page of a website."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    start = path.open("rb").read(64) if path.is_file() else b"folder"
    refuse(path, not start, "it is empty; fetch or save it again")
    for sign, words in ODD.items():
        refuse(path, start.lstrip().lower().startswith(sign), words)


def _unpacked(path):
    """The bytes of a file as a stream, gzip undone whatever its name says; a workbook as text."""
    start = path.open("rb").read(4)
    if start == b"PK\x03\x04":
        cells = pd.read_excel(path, engine="openpyxl", header=None, dtype=str, keep_default_na=False, na_filter=False)
        return io.BytesIO(cells.to_csv(sep="\t", header=False, index=False).encode())
    return (gzip.open if start.startswith(b"\x1f\x8b") else open)(path, "rb")


def _lines(path):
    """Number and text of each line of a file."""
    try:
        with _unpacked(path) as raw:
            encoding = "utf-16" if raw.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            raw.seek(0)
            for number, line in enumerate(io.TextIOWrapper(raw, encoding=encoding), 1):
                refuse(path, "\0" in line, f"line {number} holds a zero byte, so it is no text; save it as UTF-8")
                yield number, line.rstrip("\n")
    except (UnicodeError, OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError) as error:
        words = "it is not UTF-8, is cut short, or must be unpacked; fetch or unpack it, or save it as .csv"
        raise ValueError(f"{path} cannot be read ({error}): {words}") from error


def _fields(line, separator):
    """Cells of a line; a quotation mark without its pair is a sign as any other, and left out."""
    if line.count('"') % 2 or '"' not in line:
        return line.replace('"', "").split(separator)
    return next(csv.reader([line], delimiter=separator), [])


def _layout(path, head):
    """Separator, header and its line: told by the width that most lines have."""
    layouts = []
    for separator in "\t;,":
        widths = collections.Counter(len(_fields(line, separator)) for _, line in head)
        width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
        layouts.append(((width > 1) * count, width, separator))
    _, width, separator = max(layouts, key=lambda layout: layout[:2])
    refuse(path, width < 2, "it holds no table of several columns; save it again, with tabs or commas between them")
    for number, line in head:
        header = [name.strip() for name in _fields(line, separator)]
        named = 0 if line.startswith(("#", "!")) else sum(name != "" for name in header)
        if len(header) in (width, width - 1) and 2 * named >= len(header):
            break
        refuse(path, named > 2, f"line {number} has {named} names for {width} columns below; mend the header")
    if len(header) == width - 1:
        # R writes row names without a heading for them; others end every line with a separator.
        trailing = all(_fields(line, separator)[-1] == "" for below, line in head if below > number)
        header = [*header, ""] if trailing else ["", *header]
    return separator, header, number


def _rows(path, lines, separator, width):
    """Number and text of the lines below the header, all of one width."""
    for number, line in lines:
        if line.strip(f"{separator} ") and not re.match("!.*_table_end", line):
            line = line.replace('"', "") if line.count('"') % 2 else line
            found = len(_fields(line, separator)) if '"' in line else line.count(separator) + 1
            refuse(path, found != width, f"line {number} has {found} fields, its header {width}; fetch or mend it")
            yield number, line


def read_sheet(path, named=(), known=(), everything=False):
    """Read a text file or workbook: columns of numbers as float32, others as text.

    Parameters
    ----------
    path : pathlib.Path
        Text of any separator, packed or not, with or without lines before its header, or ``.xlsx``.
    named, known : container of str
        Columns that are text even where they look like numbers, as the first always is; `known` in lower case.
    everything : bool
        All columns are text.

    Returns
    -------
    Sheet

    Raises
    ------
    ValueError
        Naming the file, the line and the way out.
    """
    _refuse_odd_file(path)
    lines = itertools.dropwhile(lambda line: not line[1].strip() or line[1].startswith(("#", "!")), _lines(path))
    head = list(itertools.islice(lines, 40))
    separator, header, start = _layout(path, head)
    text = {i for i, name in enumerate(header) if everything or i == 0 or name in named or name.lower() in known}
    cells = " ".join(line for number, line in head if number > start)
    comma = separator != "," and re.search(r"\d,\d", cells) and not re.search(r"\d\.\d", cells)
    how = {"sep": separator, "header": None, "names": range(len(header)), "index_col": False, "low_memory": False}
    how |= {"decimal": "," if comma else ".", "na_values": SPELLED, "keep_default_na": False}
    below = itertools.chain([(number, line) for number, line in head if number > start], lines)
    rows = _rows(path, below, separator, len(header))
    frames = []
    while block := list(itertools.islice(rows, BLOCK)):
        frame = _frame(block, text, how)
        odd = [i for i, kind in enumerate(frame.dtypes) if i not in text and kind.kind not in "iuf"]
        if odd and frames:
            line = block[_numbers(frame[odd[0]])[1]][0]
            raise ValueError(f"{path}: line {line}, column {odd[0] + 1} holds text, not a number; correct it")
        text.update(odd)
        frame = _frame(block, text, how) if odd else frame
        with np.errstate(over="ignore"):
            plain = frame.drop(columns=list(text)).astype(np.float32)
        frames.append(plain.join(frame[list(text)])[range(len(header))])
    refuse(path, not frames, "it holds only a header; fetch or save it again")
    frame = pd.concat(frames, ignore_index=True)
    # Spreadsheets leave columns without a name and without a cell.
    kept = [i for i, name in enumerate(header) if name or frame[i].replace("", np.nan).notna().any()]
    return Sheet(path, [header[i] for i in kept], frame[kept].set_axis(range(len(kept)), axis=1))


def _frame(block, text, how):
    lines = io.StringIO("\n".join(line for _, line in block))
    return pd.read_csv(lines, converters=dict.fromkeys(text, str.strip), **how)


def _sheet_of(path, header, columns, named):
    """`Sheet` from columns of any type, as a parquet file or a table that was turned has them."""
    frame = {}
    for i, (name, column) in enumerate(zip(header, columns, strict=True)):
        numbers, bad = _numbers(column)
        frame[i] = numbers if bad is None and i > 0 and name not in named else words_of(column).to_numpy()
    return Sheet(path, header, pd.DataFrame(frame))


def _numbers(column):
    """A column as float32, NaN where a value is missing, and the row of its first cell that is no number, or None."""
    bad = np.zeros(len(column), bool)
    with contextlib.suppress(ValueError, TypeError):  # most are numbers throughout, and this is fast
        column = pd.to_numeric(column) if column.dtype.kind == "O" else column
    if column.dtype.kind not in "iuf":
        words = words_of(column)
        missing = words.str.lower().isin(MISSING)
        column = pd.to_numeric(words.mask(missing), errors="coerce")
        bad = (column.isna() & ~missing).to_numpy()
    with np.errstate(over="ignore"):
        return column.to_numpy(np.float32, na_value=np.nan), int(bad.argmax()) if bad.any() else None


def words_of(column):
    """Cells as text: bytes decoded, whole numbers without a point, "" where a value is missing.

    Examples
    --------
    >>> list(words_of(pd.Series([1.0, 2.0, None])))
    ['1', '2', '']
    """
    column = pd.Series(column)
    if column.dtype.kind == "f" and (column.dropna() == column.dropna().round()).all():
        column = column.astype("Int64")
    words = [c.decode(errors="replace") if isinstance(c, bytes) else str(c) for c in column]
    return pd.Series(words, dtype=object).where(column.notna().to_numpy(), "").str.strip()


# --- the forms ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Parts:
    """What a form found, one row a sample, for `check` to make patients of.

    Attributes
    ----------
    path : pathlib.Path
        Named in errors.
    expression : numpy.ndarray
        (samples, genes) float32, NaN where a value is missing.
    obs : pandas.DataFrame
        Text: label, and where known sample, patient, site, kind and columns that say who the patient may be.
    genes, ids : list of str
        Names as in the file, and Entrez ids.
    axis : {"row", "column"}
        What a sample is in the file; its number is ``obs["place"]``.
    portal, wide : bool
        Gaps and repeated genes are usual there; clinical columns may stand beside the genes.
    words : dict
        Columns beside the genes that hold text: a clause about each.
    promised : set of str
        Classes that the clinical table has.
    hint : str
        Where else in the file values are.
    """

    path: pathlib.Path
    expression: np.ndarray
    obs: pd.DataFrame
    genes: list
    ids: list = None
    axis: str = "row"
    portal: bool = False
    wide: bool = False
    words: dict = dataclasses.field(default_factory=dict)
    promised: set = frozenset()
    hint: str = ""
    notes: list = dataclasses.field(default_factory=list)

    def keep(self, rows):
        """Leave the other samples out."""
        self.expression, self.obs = self.expression[rows], self.obs[rows].reset_index(drop=True)

    def keep_genes(self, columns):
        """Leave the other genes out."""
        columns = np.arange(len(self.genes))[columns]
        self.expression, self.genes = self.expression[:, columns], [self.genes[i] for i in columns]
        self.ids = self.ids and [self.ids[i] for i in columns]

    def note(self, mask, words):
        """Say how many samples or genes are left out, and why."""
        if mask.any():
            self.notes.append(f"{int(mask.sum())} {words}")

    def where(self, rows):
        """Where samples stand, without their names."""
        return f"{self.axis}s {some(self.obs['place'][rows])}"


ROLES = ("label", "sample", "patient", "site")


def _obs(table, options, path, samples=None):
    """What a table of text says of each sample, under the names that the checks know."""
    said = {role: getattr(options, role) for role in ROLES if getattr(options, role) is not None}
    for role, name in said.items():
        if name not in table:
            raise ValueError(f"{path}: no column '{name}' for {role}; columns: {_columns(table)}")
    columns = {role: table[name] for role, name in said.items()} | ({} if samples is None else {"sample": samples})
    others = [c for c in table if c not in (*said.values(), *options.ignore)]
    kind = [c for c in others if re.fullmatch(r"sample[ _.]?type", str(c), re.I)][:1]
    columns |= dict(zip(["kind"], (table[c] for c in kind), strict=False))
    who = [c for c in others if str(c).lower() in WORDS["patients"] and options.patient is None]
    obs = pd.DataFrame(columns | {f"who {c}": table[c] for c in who}).reset_index(drop=True)
    return obs.apply(words_of).assign(place=np.arange(len(obs)) + 1)


def read(path, options):
    """Read a file or folder by its form, and pass it through the checks: checked `Parts`."""
    if path.is_dir() and not any(path.glob("*.parquet")):
        parts, options = read_folder(path, options)
    elif options.clinical:
        parts = read_matrix(path, pathlib.Path(options.clinical), options)
    else:
        parts = (read_h5ad if path.suffix.lower() == ".h5ad" else read_table)(path, options)
    check(parts, options)
    return parts


def read_table(path, options):
    """A table with one row a patient, or one column, and the label in it: text, workbook or parquet."""
    named = {getattr(options, role) for role in ROLES} - {None} | set(options.ignore)
    parquet = path.is_dir() or path.suffix.lower() == ".parquet"
    sheet = _parquet(path, named) if parquet else read_sheet(path, named, WORDS["names"])
    turned = options.label not in sheet.header and options.label in list(sheet.text.get(0, ()))
    if turned:
        # Genes down, patients across, with a row of labels: told by the label's name, never by the shape.
        cells = read_sheet(path, everything=True).frame.to_numpy()  # read again, for words that look like numbers
        columns = [pd.Series(row, dtype=object) for row in (sheet.header[1:], *cells[:, 1:])]
        sheet = _sheet_of(path, ["patient", *cells[:, 0]], columns, named)
    header = sheet.header
    absent = sorted(named - set(header))
    if absent:  # then columns may be called by patients
        text = _columns({header[i]: words for i, words in sheet.text.items()})
        way = "Where genes are rows, labels stand in a row of that name, or in a table of their own (clinical=)"
        raise ValueError(f"{path}: no column '{absent[0]}'; those of text are: {text}. {way}")
    _refuse_repeated(path, header)
    # Numbers of rows, as pandas and R write them, name nobody; the column behind them may.
    start = int(header[0] == "" and _is_running(sheet.text[0]))
    first = header[start] if header[start].lower() in WORDS["names"] and header[start] not in named else None
    options = dataclasses.replace(options, sample=options.sample or first)
    genes, words = _gene_columns(sheet, {*named, first, *header[:start]}, not first and options.patient is None)
    told = {*named, first} - {*options.ignore}
    obs = _obs(pd.DataFrame({name: sheet.frame[i] for i, name in enumerate(header) if name in told}), options, path)
    obs["place"] += turned
    axis, names = "column" if turned else "row", [header[i] for i in genes]
    return Parts(path, sheet.frame[genes].to_numpy(np.float32), obs, names, axis=axis, wide=True, words=words)


def _refuse_repeated(path, names):
    again = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    refuse(path, again, f"{len(again)} names come more than once: {some(again)}; keep one of each")


def _parquet(path, named):
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); write it again") from error
    if not isinstance(frame.index, pd.RangeIndex):
        name = frame.index.name or "patient"
        frame = frame.reset_index(drop=True) if name in frame else frame.reset_index(names=name)
    return _sheet_of(path, [str(name) for name in frame], [frame.iloc[:, i] for i in range(frame.shape[1])], named)


def _gene_columns(sheet, taken, unnamed=False):
    """Positions of the columns of numbers that are not taken, and what is wrong with the columns of text."""
    words = {}
    for i, name in [(i, sheet.header[i]) for i in sheet.text if sheet.header[i] not in taken]:
        numbers, bad = _numbers(sheet.frame[i])
        if bad is None:
            sheet.frame[i] = numbers
        elif unnamed and sheet.frame[i].is_unique:
            words[name] = f"'{name}' may name the patients: patient='{name}'"
        else:  # a cell among numbers is shown; a column of words may name patients
            cell = f": {sheet.frame[i][bad][:40]!r}" if np.isfinite(numbers).mean() > 0.5 else ""
            words[name] = f"'{name}' holds text, first in row {bad + 1}{cell}"
    return [i for i, name in enumerate(sheet.header) if name not in taken and name not in words], words


def read_h5ad(path, options):
    """An AnnData file: patients in ``obs``, genes in ``var``."""
    _refuse_odd_file(path)
    try:
        with warnings.catch_warnings():  # repeated names are refused below, with a way out
            warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
            data = anndata.read_h5ad(path)
    except Exception as error:  # the reader lets through whatever its file format's library trips over
        raise ValueError(f"{path} cannot be read as an AnnData file ({error}); write it again") from error
    if options.label not in data.obs and options.label in data.var:
        data = data.T  # genes in obs and patients in var: told by where the label is
    layers = [*(["raw"] if data.raw is not None else []), *data.layers]
    there, layer = some(layers) or "none", options.layer
    refuse(path, layer not in (None, *layers), f"no layer '{layer}'; there are: {there}")
    whole = data.raw.to_adata() if layer == "raw" else data
    values = whole.X if layer in (None, "raw") else data.layers[layer]
    refuse(path, values is None, f"X is empty; write the log2 values there, or pass layer= ({there})")
    values = np.asarray(values if isinstance(values, np.ndarray) else values.toarray(), np.float32)
    unknown = sorted(set(options.ignore) - set(whole.var_names) - set(data.obs))
    refuse(path, unknown, f"no column {some(unknown, 1)} for ignore; obs has {some(data.obs.columns, 20)}")
    samples = None if options.sample else data.obs_names.to_numpy(object)
    genes, notes = _var_names(whole.var)
    parts = Parts(path, values, _obs(data.obs.astype(object), options, path, samples), genes, notes=notes)
    parts.keep_genes(~whole.var_names.isin(options.ignore))
    parts.hint = f", as layer='{layers[0]}'" if layers else ""
    return parts


def _var_names(var):
    """Symbols of the genes of an AnnData file: its own names, or a column of symbols where those are ids."""
    names = pd.Series(var.index.astype(str), dtype=object)
    column = next((c for word in WORDS["symbols"] for c in var if str(c).lower() == word), None)
    if column is None or names.str.fullmatch(r"ENS\w*\d{6,}(\.\d+)?|\d+").mean() <= 0.5:
        return list(names), []
    symbols = words_of(var[column].astype(object))
    symbols = symbols.mask(symbols.str.lower().isin(MISSING) | symbols.duplicated(keep=False), names)
    return list(symbols), [f"genes are called by var['{column}'], as {some(symbols, 3)}"]


def read_folder(folder, options):
    """A cBioPortal study folder as it was downloaded, also under the names of older ones."""
    scores = set()
    for meta in folder.glob("meta_*.txt"):
        said = dict(re.findall(r"^(\w+)\s*:\s*(.+?)\s*$", meta.read_text(errors="replace"), re.M))
        scores |= {said.get("data_filename")} if "z-score" in said.get("datatype", "").lower() else set()
    names = sorted(p.name for p in folder.iterdir() if re.fullmatch(r"data_(mrna|rna|expression).*\.txt", p.name, re.I))
    found = [name for name in names if "zscore" not in name.lower() and name not in scores]
    found = [n for n in found if n in ("data_mrna_seq_v2_rsem.txt", "data_RNA_Seq_v2_expression_median.txt")] or found
    words = f"there must be one expression file data_mrna_*.txt that is not of z-scores, found: {some(found) or 'none'}"
    refuse(folder, len(found) != 1, f"{words}. Copy the one that you want, with the clinical files, to one of its own")
    units = options.units or ("linear" if re.search("rsem|rna_seq_v2", found[0], re.I) else None)
    ids = {"sample": options.sample or "SAMPLE_ID", "patient": options.patient or "PATIENT_ID"}
    options = dataclasses.replace(options, units=units, **ids)
    clinical = _study_table(folder, options)
    return read_matrix(folder / found[0], folder / "data_clinical_sample.txt", options, clinical), options


def _study_table(folder, options):
    """Sample table of a study with the columns of its patient table beside."""
    paths = [folder / f"data_clinical_{name}.txt" for name in ("sample", "patient")]
    tables = [read_clinical(path, options) for path in paths if path.exists() or path is paths[0]]
    for path, table in zip(paths, tables, strict=False):
        lacking = {"PATIENT_ID", *(["SAMPLE_ID"] if path is paths[0] else [])} - set(table)
        refuse(path, lacking, f"no column {some(sorted(lacking))}; columns: {_columns(table)}")
    if len(tables) == 1:
        return tables[0]
    patients = _one_row_each(tables[1], "PATIENT_ID", [options.label, options.site], path)
    both = tables[0].merge(patients, "left", "PATIENT_ID", suffixes=("", " of the patient")).fillna("")
    for name in {options.label, options.site} & set(tables[0]) & set(patients):
        beside = both[f"{name} of the patient"]
        rows = np.flatnonzero((beside != both[name]) & (beside != "")) + 1
        words = f"'{name}' says another thing than in {paths[0].name}, in {len(rows)} rows: {some(rows)} there"
        refuse(path, len(rows) > 0, f"{words}; take the column out of one of the two")
    return both[[c for c in both if not c.endswith(" of the patient")]]


def read_clinical(path, options):
    """A clinical table, all text; a column that is used comes once."""
    sheet = read_sheet(path, everything=True)
    twice = [getattr(options, role) for role in ROLES if sheet.header.count(getattr(options, role)) > 1]
    refuse(path, twice, f"column '{some(twice, 1)}' comes more than once; keep one of them")
    return pd.DataFrame({name: sheet.text[i] for i, name in enumerate(sheet.header)})


# --- a matrix and the clinical table beside it ----------------------------------------------------------------------


def _key(name):
    """A name without what programs change in it: case, - . _ and blanks, and the X that R puts before a digit."""
    return re.sub(r"[-._ ]+", "-", re.sub(r"^X(?=\d)", "", name).casefold())


def _in_barcode(name, *parts):
    """Parts of a barcode of TCGA or TARGET, also of one that R wrote with dots; any other name as it is."""
    found = BARCODE.match(_key(name))
    return "-".join(found[part] or "" for part in parts) if found else name


WAYS = {
    "": str,
    ", whose names differ in case, in - . _ or by a leading X": _key,
    ", by the last part of a path, up to its first dot": lambda name: _key(re.split(r"[/\\]", name)[-1].split(".")[0]),
    ", by the sample in their barcodes": lambda name: _in_barcode(name, "who", "type"),
    ", by the patient in their barcodes": lambda name: _in_barcode(name, "who"),
}


def _matched(names, known):
    """The name of the clinical table that each name means, by the first way that finds most of them."""
    best, told = {}, ""
    for way, cut in WAYS.items():
        meant = {cut(name): name for name in known}
        found = {name: meant[cut(name)] for name in names if cut(name) in meant}
        if len(meant) == len(known) and len(set(found.values())) > len(set(best.values())):
            best, told = found, way
    return best, told


def _orient(sheet, clinical, told_by, options):
    """Clinical column, position of the sheet's column of samples (None: its header), which names match, and how."""
    columns = [options.sample] if options.sample is not None else list(clinical)
    for column in columns:
        known = {name for name in clinical[column] if name.lower() not in MISSING}
        sides = {i: _matched(dict.fromkeys(words), known) for i, words in sheet.text.items()}
        down = max(sides, key=lambda i: len(sides[i][0]))
        sides[None] = _matched(dict.fromkeys(sheet.header), known)
        across, rows = len(sides[None][0]), len(sides[down][0])
        words = f"its first row and its column {down + 1} name {across} samples of {told_by} each"
        refuse(sheet.path, 0 < across == rows, f"{words}, so it cannot be told which are the samples; rename those")
        side = None if across > rows else down
        if sides[side][0]:
            return column, side, *sides[side]
    words = f"none of its {len(sheet.header) - 1} columns or {len(sheet.frame)} rows is a sample of {told_by}"
    way = "do they differ by a suffix, as -01, or by zeros? Write them alike, or say sample= for their column"
    raise ValueError(f"{sheet.path}: {words}; {way}")


def read_matrix(path, told_by, options, clinical=None):
    """A matrix of genes x samples, or samples x genes, and its clinical table, as UCSC Xena and GEO have them.

    Which way round the matrix lies is told by where more samples of the clinical table are named.
    """
    clinical = read_clinical(told_by, options) if clinical is None else clinical
    _obs(clinical, options, told_by)
    named = {name for name in (options.sample, *options.ignore) if name is not None}
    known = [word for kind in ("symbols", "entrez", "annotation", "patients") for word in WORDS[kind]]
    sheet = read_sheet(path, named, known)
    column, side, found, way = _orient(sheet, clinical, told_by, options)
    parts = _across(sheet, found, options) if side is None else _down(sheet, side, clinical, options)
    absent = ~parts.obs["sample"].isin(list(found)).to_numpy()
    words = f"{absent.sum()} of {len(absent)} samples, its {parts.where(absent)}, are not in '{column}' of {told_by}"
    many = absent.mean() > 0.1 and options.unmatched == "refuse"
    refuse(path, many, f"{words}; write them alike, or pass unmatched='drop' to leave them out")
    parts.keep(~absent)
    clinical = clinical[~clinical[column].str.lower().isin(MISSING)]
    parts.promised = set(_tidy(clinical[options.label], options))
    rows = _one_row_each(clinical, column, [options.label, options.patient, options.site], told_by)
    meant = parts.obs["sample"].map(found)
    rows = rows.set_index(column, drop=False).loc[meant]
    parts.obs = _obs(rows, options, told_by, parts.obs["sample"].to_numpy()).assign(place=parts.obs["place"])
    if meant.duplicated().any() and not any(c.startswith(("patient", "who ")) for c in parts.obs):  # as aliquots
        parts.obs["patient"] = meant
    parts.notes.append(f"{(~absent).sum()} of {len(absent)} samples are in {pathlib.Path(told_by).name}{way}")
    return parts


def _across(sheet, found, options):
    """Genes down, samples across."""
    path, text, header = sheet.path, sheet.text, [name.lower() for name in sheet.header]
    for i in [i for i in text if sheet.header[i] in found]:
        row = _numbers(sheet.frame[i])[1] or 0
        words = f"first for gene {text[0][row]}: {text[i][row][:40]!r}"
        raise ValueError(f"{path}: column {i + 1} holds a value that is not a number, {words}; correct it")
    samples = [i for i in range(len(header)) if i not in text]
    entrez = next((header.index(name) for name in WORDS["entrez"] if name in header), None)
    symbols = [name for name in WORDS["symbols"] if name in header and (name != "description" or header[0] == "name")]
    name = header.index(symbols[0]) if symbols else next((i for i in text if i != entrez), entrez)
    obs = pd.DataFrame({"sample": [sheet.header[i] for i in samples], "place": np.array(samples, int) + 1})
    ids = None if entrez in (None, name) else list(text[entrez])
    values, genes = sheet.frame[samples].to_numpy(np.float32).T, list(text[name])
    parts = Parts(path, values, obs, genes, ids, axis="column", portal=True)
    parts.keep_genes(~np.isin(parts.genes, options.ignore))
    known = {*WORDS["annotation"], *WORDS["symbols"]}
    about = [i for i in text if i not in (name, entrez)]
    about = some([sheet.header[i] if header[i] in known else f"number {i + 1}" for i in about])
    if about:
        parts.notes.append(f"genes are called by column {name + 1}; columns about genes are left out: {about}")
    return parts


def _down(sheet, side, clinical, options):
    """Samples down, genes across; text that the clinical table has too is left out."""
    genes, words = _gene_columns(sheet, {sheet.header[side], "", *options.ignore})
    words = {name: clause for name, clause in words.items() if name not in clinical}
    obs = pd.DataFrame({"sample": sheet.text[side], "place": np.arange(len(sheet.frame)) + 1})
    names = [sheet.header[i] for i in genes]
    return Parts(sheet.path, sheet.frame[genes].to_numpy(np.float32), obs, names, portal=True, wide=True, words=words)


def _one_row_each(table, column, used, path):
    """One row for each name; rows of one name that say different things are refused."""
    for name in {name for name in used if name in table and name != column}:
        differ = table.groupby(column)[name].transform("nunique").to_numpy() > 1
        rows = some(np.flatnonzero(differ) + 1)
        refuse(path, differ, f"rows {rows} name one '{column}' each and differ in '{name}'; keep the right one")
    return table.drop_duplicates(column)


# --- the checks -----------------------------------------------------------------------------------------------------


def check(parts, options):
    """Pass what a form found through all checks, in their order; what they decide is in ``parts.notes``."""
    for one in (_samples, _genes, _labels, _values, _units, _lost):
        _shape(parts)
        one(parts, options)
    _shape(parts)


def _shape(parts):
    n, d = parts.expression.shape
    why = [f"{words}: are numbers written as 1234.5?" for words in parts.words.values()][:1] or parts.notes[-1:]
    refuse(parts.path, n * d == 0, f"{n} patients and {d} genes are left; {some(why) or 'is it the right file?'}")


def _samples(parts, options):
    """Identity of samples: each has a name, nobody is in twice, and each is a tumor, by the stated rule."""
    path, obs = parts.path, parts.obs
    if "sample" not in obs and "patient" not in obs:
        return
    given, names = "patient" in obs, obs["sample" if "sample" in obs else "patient"]
    blank = names.str.lower().isin(MISSING) | (obs["patient"].str.lower().isin(MISSING) if given else False)
    refuse(path, blank, f"patients without a name at {parts.where(blank)}; name them or remove them")
    if "sample" in obs:
        _refuse_twice(parts, names, "sample" if given else "patient")
    codes = [BARCODE.match(_key(name)) for name in names]
    coded, donors = all(codes), names.str.extract(r"^(GTEX-\w+)-", expand=False)
    if coded and "site" not in obs and names.str.lower().str.startswith("tcga").all():
        obs["site"] = names.str[5:7]
    if not given and (coded or donors.notna().all()):
        obs["patient"] = [code["who"] for code in codes] if coded else donors
    if given and not coded:  # types behind the patients' own ids, as -01 and -11
        pairs = zip(obs["patient"], names, strict=True)
        codes = [re.match(rf"{re.escape(who)}-(?P<type>\d\d)[A-Z]?(-|$)", name) for who, name in pairs]
    obs["name"], obs["type"] = names, [int(code["type"] or 0) for code in codes] if all(codes) else 0
    for column in [c for c in obs if c.startswith("who ") and "patient" not in obs]:
        who, patients = column[4:], obs[column][obs[column] != ""]
        words = f"column '{who}' names {patients.nunique()} patients for {len(patients)} samples"
        way = f"Pass patient='{who}', or ignore=['{who}'] where it names no patients"
        refuse(path, patients.duplicated(), f"{words}. {way}")
    obs["patient"] = obs["patient"] if "patient" in obs else names
    if "kind" in obs:
        normal = obs["kind"].str.contains("normal", case=False)
        obs["type"] = obs["type"].where((obs["type"] > 0) | ~normal, min(NORMAL))
    rank, normal = obs["type"].where(~obs["type"].isin(PRIMARY), 0), obs["type"].isin(NORMAL)
    further = ~normal & (rank > rank.where(~normal).groupby(obs["patient"]).transform("min"))
    parts.note(normal, "samples of normal tissue or controls are left out, by the type in their names or table")
    parts.note(further, "samples of other tumors of patients with a primary are left out, by the same type")
    parts.keep((~normal & ~further).to_numpy())
    _one_a_patient(parts, options, coded and "sample" in obs)


def _refuse_twice(parts, names, kind):
    """Names that come twice, or differ only by what programs change."""
    exact, alike = names.duplicated(), names.map(_key).duplicated()
    words, path = f"{kind} names come more than once at {parts.where(exact)}; keep one of each", parts.path
    refuse(path, exact, f"{exact.sum()} {words}")
    words = f"{alike.sum()} {kind} names are those of others but for case or - . _"
    refuse(path, alike, f"{words}, at {parts.where(alike)}; keep one of each, or name them otherwise")


def _one_a_patient(parts, options, aliquots):
    """Of several samples of a patient the first, their mean, or a refusal."""
    obs, several = parts.obs, options.several
    again = obs["patient"].duplicated()
    if not again.any():
        _refuse_twice(parts, obs["patient"], "patient")
        return
    words = f"{again.sum()} samples are second ones of a patient, at {parts.where(again)}"
    way = "keep one of each, as with several='first', or average them: several='mean'"
    refuse(parts.path, several == "refuse" and not aliquots, f"{words}; {way}")
    if several == "mean":
        differ = obs.groupby("patient")["label"].agg(lambda labels: len(set(labels)) > 1)
        words = f"samples of {differ.sum()} patients differ in '{options.label}', so they cannot be averaged"
        refuse(parts.path, differ, f"{words}; pass several='first'")
        parts.notes.append(f"samples of the same patient are averaged ({again.sum()} merged)")
        grouped = pd.DataFrame(parts.expression).groupby(obs["patient"].to_numpy())
        parts.expression = grouped.transform("mean").to_numpy(np.float32)
    else:
        again = (obs.sort_values("name", kind="stable") if aliquots else obs)["patient"].duplicated().sort_index()
        words = " by its barcode" if aliquots else ""
        parts.notes.append(f"of patients with several samples the first{words} is kept ({again.sum()} left out)")
    parts.keep(~again.to_numpy())


def _genes(parts, options):
    """Identity of genes: no counters, no dates, no clinical columns; symbols and Entrez ids."""
    counters = np.array([bool(COUNTERS.fullmatch(name)) for name in parts.genes])
    parts.note(counters, "rows that count reads of no gene are left out")
    parts.keep_genes(~counters)
    dates, bare = [name for name in parts.genes if _is_date(name)], [name for name in parts.genes if name.isdigit()]
    # Serial numbers of the years 2000 to 2030, among other names.
    serial = 2 * len(bare) < len(parts.genes) and all(36526 <= int(name) <= 47848 for name in bare)
    dates += bare if serial else []
    words = f"{len(dates)} genes are called by dates, as {some(dates)}, which a spreadsheet makes of SEPTIN1"
    refuse(parts.path, dates, f"{words}; mend them, or leave them out: ignore={[*dict.fromkeys(dates)][:20]}")
    _refuse_clinical(parts)
    if not parts.portal:
        _refuse_repeated(parts.path, parts.genes)
    symbols, parts.ids = split_names(parts.genes, parts.ids or [""] * len(parts.genes))
    symbols = ["" if name.lower() in (*MISSING, "---", "null", "#name?", "#ref!") else name for name in symbols]
    counts = collections.Counter(symbols) if parts.wide else {}
    pairs = zip(symbols, parts.ids, strict=True)
    parts.genes = [f"entrez:{e}" if e and (not g or counts.get(g, 1) > 1) else g for g, e in pairs]


def _is_date(name):
    """Say whether a spreadsheet made a date of a gene's name, in any of its languages.

    Examples
    --------
    >>> [_is_date(name) for name in ("1-Mar", "02. Sep", "Mrz-1", "3/1/2021", "MARCHF1", "HLA-A")]
    [True, True, True, True, False, False]
    """
    word, gap = r"([^\W\d_]{3,9})\.?", r"[-. /]+"
    found = re.fullmatch(rf"\d{{1,4}}{gap}{word}({gap}\d{{2,4}})?|{word}{gap}\d{{1,4}}", name)
    if found:
        return (found[1] or found[3]).casefold()[:3] in WORDS["months"]
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\d([ T][\d:.]+)?|\d{1,2}[./]\d{1,2}[./](\d\d){1,2}", name))


def _refuse_clinical(parts):
    """Columns beside genes that hold text, are called as clinical data, follow the class or alone are whole numbers."""
    if not parts.wide:
        return
    names = [re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower() for name in parts.genes]
    odd = np.array([bool(set(re.split(r"[\W_]+", name)).intersection(WORDS["clinical"])) for name in names], bool)
    values = np.where(np.isfinite(parts.expression), parts.expression, np.nan)
    moving = np.nanmin(values, axis=0, initial=np.inf) < np.nanmax(values, axis=0, initial=-np.inf)
    classes = pd.factorize(parts.obs["label"])[0]
    follows = moving & (classes.max() < len(classes) / 2)
    for k in range(classes.max() + 1 if follows.any() else 0):
        follows &= values[classes == k].min(axis=0) == values[classes == k].max(axis=0)
    whole = moving & (np.nan_to_num(values) % 1 == 0).all(axis=0)
    # Low counts on a log scale are whole numbers too, but then there are many of them.
    columns = np.flatnonzero(odd | follows | (whole & (whole.sum() <= max(3, 0.05 * len(whole)))))
    names = [*parts.words, *(parts.genes[i] for i in columns)]
    why = sorted(parts.words.values(), key=lambda words: "may name" not in words)[:1]
    why = "; ".join([*why, "they are clinical by name, follow the class, or are whole numbers"][: 1 + len(columns)])
    words = f"{len(names)} columns seem to hold no expression: {some(names)} ({why}). Correct values, or leave out"
    refuse(parts.path, names, f"{words} what is no gene with ignore={names[:20]}; patient= and site= name others")


def _is_running(words):
    """Say whether words are whole numbers that follow each other."""
    numbers = sorted(int(word) if word.isdigit() else -1 for word in words)
    return len(numbers) > 1 and numbers == list(range(max(0, numbers[0]), numbers[0] + len(numbers)))


JOINED = re.compile(r"(?:(.+?) ?[|_(])?(\d+)\)?")


def split_names(symbols, entrez):
    """Split gene names as ``ESR1|2099``, ``ESR1_2099`` or ``ESR1 (2099)`` into symbol and Entrez id.

    This is a form that a whole file has: where fewer than half of the names have it, ``HLA_1`` is a name as any other.
    So is ``gene_1`` where the part before the number is that of many names, and a number where all count from 0 or 1.

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
    entrez = [number.removesuffix(".0") for number in entrez]
    found = [None if known else JOINED.fullmatch(symbol) for symbol, known in zip(symbols, entrez, strict=True)]
    fits = [one for one in found if one]
    before = [one[1] for one in fits if one[1] and one[1] != "?"]
    counting = _is_running([one[2] for one in fits if not one[1]])
    alike = before and 2 * len(set(before)) <= len(before)
    if 2 * len(fits) < max(1, entrez.count("")) or alike or counting:
        return list(symbols), entrez
    names = [one[1] or "" if one else symbol for one, symbol in zip(found, symbols, strict=True)]
    numbers = [one[2] if one else known for one, known in zip(found, entrez, strict=True)]
    return ["" if name == "?" else name for name in names], numbers


def _tidy(words, options):
    """Classes as they are compared: accents composed, bytes unwrapped, "" for what is missing."""
    words = pd.Series(list(words), dtype=object).map(lambda word: unicodedata.normalize("NFC", word))
    words = words.str.replace("[\u200b-\u200d\u2060\ufeff]", "", regex=True).str.split().str.join(" ")
    for whole, kept in ((r"b'.*'", slice(2, -1)), (r"\d+\.0", slice(-2))):
        words = words.str[kept] if len(words) and words.str.fullmatch(whole).all() else words
    words = words.replace({str(word): str(name) for word, name in (options.classes or {}).items()})
    return words.where(~words.str.lower().isin(options.missing), "")


def _labels(parts, options):
    """Classes: none missing, no identifier, no measurement, none spelled in two ways."""
    path, label, text = parts.path, f"label '{options.label}'", _tidy(parts.obs["label"], options)
    gone = text == ""
    words = some(sorted({word or "blank" for word in parts.obs["label"][gone]}))
    said = f"{label} is missing for {gone.sum()} patients, at {parts.where(gone)} ({words})"
    way = "give them one, or remove them: drop_classes=['missing']; where these words are classes, pass missing=[]"
    refuse(path, gone & (not parts.portal and "missing" not in options.drop_classes), f"{said}; {way}")
    parts.note(gone, f"samples whose '{options.label}' is missing ({words}) are left out")
    parts.keep(~gone.to_numpy())
    text = text[~gone].reset_index(drop=True)
    said = f"{label} has {text.nunique()} values for {len(text)} patients; choose the column that holds the class"
    refuse(path, text.nunique() > len(text) / 2, said)
    alike = text.groupby(text.str.casefold().str.replace(r"[-._ ]+", "-", regex=True)).unique()
    differ = [" and ".join(map(repr, names)) for names in alike if len(names) > 1]
    refuse(path, differ, f"{label} holds {some(differ, 1)}, which differ in case or - . _ only; spell them alike")
    numbers = pd.to_numeric(text, errors="coerce")
    odd = numbers.isna()
    names = list(text[odd].unique()[:5])
    said = f"{label} is numeric but for {odd.sum()} patients: {some(names)}, at {parts.where(odd)}"
    refuse(path, 0.5 < 1 - odd.mean() < 1, f"{said}; use numbers or names throughout, or pass missing={names}")
    measured = not odd.any() and (numbers % 1 > 0).any()
    refuse(path, measured, f"{label} holds measurements, not classes; choose another, or cut it in classes")
    if (text == "all").any():
        parts.notes.append("class 'all' is called 'class all': results call everybody so")
    parts.obs["label"] = text.replace("all", "class all")


def _values(parts, options):
    """Values: no sample without them, no code for a missing one, no profile twice, none scaled over the patients."""
    path, values, names = parts.path, parts.expression, np.array(parts.genes, object)
    finite = np.isfinite(values)
    empty = finite.mean(axis=1) < 0.5
    refuse(path, empty, f"{empty.sum()} patients have hardly any value, at {parts.where(empty)}; remove them")
    genes = list(names[~finite.all(axis=0)])
    words, first = f"{(~finite).sum()} missing or infinite values", parts.where(~finite.all(axis=1))
    words = f"{words} in {len(genes)} genes: {some(genes)}; at {first}. Impute them or remove those genes or patients"
    refuse(path, genes and not parts.portal, f"{words}, as ignore={genes[:20]}")
    codes = np.isin(values, (-99, -999, -9999, -99999))
    genes, codes = list(names[codes.any(axis=0)]), some(np.unique(values[codes]).astype(int))
    words = f"values as {codes} in {some(genes)} are a code for missing, not expression; write them as empty cells"
    refuse(path, genes, f"{words}, or leave the genes out with ignore={genes[:20]}")
    again = pd.Series([row.tobytes() for row in np.where(finite, values, 0)]).duplicated(keep=False)
    few = values[:, finite.all(axis=0)][:, :: max(1, values.shape[1] // 2000)]
    if few.shape[1] >= 50:  # with fewer, patients may be alike by chance; no two of TCGA correlate above 0.93
        again |= (np.corrcoef(few - few.mean(axis=0)) > 0.98).sum(axis=1) > 1
    words = f"{again.sum()} patients have the values of others, at {parts.where(again)} or nearly; keep one of each"
    refuse(path, again, words)
    scaled = _scaling(values[:, finite.any(axis=0)][:, :: max(1, values.shape[1] // 2000)])  # of some genes
    words = f"nearly every gene has {scaled} over the patients, as z-scores have, so every value holds the others"
    refuse(path, scaled, f"{words}, which no epsilon covers; give the values before that step{parts.hint}")


def _scaling(values):
    """What each gene has in common by having been scaled over the patients, in words, or ""."""
    mean, sd, low, high = (one(values, axis=0) for one in (np.nanmean, np.nanstd, np.nanmin, np.nanmax))
    center = np.minimum(np.abs(mean), np.abs(np.nanmedian(values, axis=0)))
    ends = np.stack([low - np.median(low), high - np.median(high)])
    found = {
        "mean 0 and standard deviation 1": (np.abs(mean) < 0.3) & (np.abs(sd - 1) < 0.3),
        "its center at 0": (center < 1e-3 * sd) & (low < 0),
        "the same lowest and highest value": (np.abs(ends) < 1e-4).all(axis=0),
    }
    moving = sd > 0
    return next((words for words, mask in found.items() if moving.sum() > 1 and mask[moving].mean() > 0.9), "")


def _units(parts, options):
    """Values in log2 units, by what they are said to be; what contradicts that is refused."""
    if options.units == "ln":  # natural logarithms
        parts.expression = parts.expression / np.log(2)
    path, values = parts.path, np.where(np.isfinite(parts.expression), parts.expression, np.nan)
    top, low, d = np.nanmax(values), np.nanmin(values), values.shape[1]
    if options.units == "linear":
        refuse(path, top <= HIGHEST_LOG2, f"values up to {top:.1f} seem to be logarithms already; pass units='log2'")
        parts.note(values < 0, "values below 0 are taken as 0")
        parts.notes.append("log2(x + 1) of linear values")
        parts.expression = np.log2(np.maximum(parts.expression, 0) + 1)
        return
    high = [parts.genes[i] for i in np.flatnonzero((values > HIGHEST_LOG2).any(axis=0))]
    few = 0 < len(high) <= max(1, 0.02 * d) < d and options.units is None
    words = f"{len(high)} of {d} columns reach more than {HIGHEST_LOG2:g}, as no log2 expression does: {some(high)}"
    refuse(path, few, f"{words}. Leave out what is no gene with ignore={high[:20]}")
    refuse(path, high, f"values up to {top:.0f} are no logarithms; pass units='linear' to take log2(x + 1)")
    words = f"values down to {low:.0f} are no logarithms; write missing ones as empty cells"
    refuse(path, low < LOWEST_LOG2, words)


def _lost(parts, options):
    """Genes with a name of their own, a value in every patient and more than one; and no class without patients."""
    path, values, names = parts.path, parts.expression, pd.Series(parts.genes, dtype=object)
    named, finite = (names != "").to_numpy(), np.isfinite(values).all(axis=0)
    moving = values.min(axis=0) < values.max(axis=0)
    constant = names[finite & ~moving]
    words = f"{len(constant)} genes have the same value in all patients, as {some(constant)}"
    refused = len(constant) > 0 and not parts.portal and not options.drop_constant_genes
    refuse(path, refused, f"{words}; remove them, or pass drop_constant_genes=True")
    parts.note(~named, "rows without symbol and Entrez id are left out")
    parts.note(named & ~finite, "genes with missing values are left out")
    parts.note(named & finite & ~moving, "genes with one value in all patients are left out")
    # Of rows with one name the one that is expressed most stays.
    columns = np.flatnonzero(named & finite & moving)
    order = columns[np.argsort(-values[:, columns].mean(axis=0), kind="stable")]
    kept = np.sort(order[~names[order].duplicated().to_numpy()])
    if len(kept) < len(columns):
        parts.notes.append(f"of {len(columns) - len(kept)} further rows of a gene the most expressed one is kept")
    parts.keep_genes(kept)
    gone = sorted(parts.promised - {*parts.obs["label"], "", "all", *options.drop_classes})
    words = f"no patient of class {some(gone)} of '{options.label}' is left of the clinical table's; are its samples"
    refuse(path, gone, f"{words} called otherwise there? Else pass drop_classes={[*options.drop_classes, *gone]}")
