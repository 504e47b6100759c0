"""From expression to the numbers a model is given: each patient by itself, or by public knowledge.

Nothing here uses one patient's values to change another's, so the preprocessing spends no privacy budget. What was
published is public: gene panels, and centroids of classes, which give weights to start a private training from.
"""

import dataclasses
import pathlib
import re
import warnings

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats

DATA = pathlib.Path(__file__).parent / "data"
PATIENTS = 256  # patients whose ranks are computed at a time


def transform(cohort, kind="rank", panel=None):
    """Turn a cohort's expression into features, each patient by itself.

    Parameters
    ----------
    cohort : genlib.cohorts.Cohort
    kind : {"rank", "log2", "unit"}
        Normal scores of the ranks within the patient's own profile; the values as they are; or profiles of norm 1.
    panel : str or sequence of str, optional
        A panel as `read_panel` takes it, or gene symbols; ranks and norms are then taken within it. Else all genes.

    Returns
    -------
    numpy.ndarray
        (n patients, d genes) float32.

    Examples
    --------
    >>> from genlib import cohorts
    >>> cohort = cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=0)
    >>> transform(cohort).shape, transform(cohort, panel="pam50").shape
    ((60, 100), (60, 50))
    """
    if kind not in ("rank", "log2", "unit"):
        raise ValueError(f"kind='{kind}' is not known; choose 'rank', 'log2' or 'unit'")
    if panel is None:
        values = cohort.expression
    else:
        columns, missing = find_panel(cohort, panel)
        if missing:
            warnings.warn(f"{len(missing)} genes of the panel are not in {cohort.name}: {missing}", stacklevel=2)
        values = np.asarray(cohort.data.X[:, columns])
    if kind == "rank":
        values = rank_scores(values)
    if kind == "unit":
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        values = values / np.maximum(norms, np.finfo(np.float32).tiny)
    return values.astype(np.float32)


def rank_scores(values):
    """Replace every value by the normal score Phi^-1((rank - 1/2) / d) of its rank in its row, ties at their mean rank.

    Examples
    --------
    >>> rank_scores(np.array([[5.0, 1.0, 3.0]])).round(2)
    array([[ 0.97, -0.97,  0.  ]], dtype=float32)
    """
    scores = np.empty(np.shape(values), np.float32)
    # A few patients at a time: ranks of a large cohort take four times the memory of its values.
    for start in range(0, len(scores), PATIENTS):
        ranks = scipy.stats.rankdata(values[start : start + PATIENTS], axis=1)
        scores[start : start + PATIENTS] = scipy.special.ndtri((ranks - 0.5) / ranks.shape[1])
    return scores


def find_panel(cohort, panel):
    """Find the genes of a published panel in a cohort, by symbol, former symbol, Entrez or Ensembl id.

    Looks among all genes of the cohort, also those outside the all-genes study: a panel chosen elsewhere costs no
    privacy budget. An unknown panel, or one of which fewer than half of the genes are there, is a ValueError.

    Returns
    -------
    columns : numpy.ndarray
        (found,) positions in ``cohort.data.var_names``, in the panel's order.
    missing : list of str
        Symbols that the cohort does not have.

    Examples
    --------
    >>> from genlib import cohorts
    >>> cohort = cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=0)
    >>> find_panel(cohort, ["ESR1", "ERBB2", "NOT-A-GENE"])
    (array([16, 15]), ['NOT-A-GENE'])
    """
    name = panel if isinstance(panel, str) else "given by you"
    genes = list(dict.fromkeys(read_panel(panel) if isinstance(panel, str) else panel))
    former = former_symbols()
    place = {re.sub(r"^(ENSG\d+)\.\d+", r"\1", name): column for column, name in enumerate(cohort.data.var_names)}
    if "entrez_id" in cohort.data.var:
        numbered = enumerate(cohort.data.var["entrez_id"])
        place |= {f"entrez:{number}": column for column, number in numbered if number}
    ids = gene_ids()
    known = {gene: ids.get(gene, (gene, gene)) for gene in genes}
    names = {gene: (gene, *former.get(gene, ()), f"entrez:{known[gene][0]}", known[gene][1]) for gene in genes}
    found = [next((place[name] for name in names[gene] if name in place), None) for gene in genes]
    missing = [gene for gene, column in zip(genes, found, strict=True) if column is None]
    if not genes or len(missing) > len(genes) / 2:
        words = f"{len(genes) - len(missing)} of {len(genes)} genes are in {cohort.name}, at least half are needed"
        words += f"; missing: {', '.join(missing[:10])}. Its genes are called {', '.join(cohort.genes[:3])}"
        way = "they must be named by symbol, as ESR1, Entrez or Ensembl id. Or give another, or none (--panel none)"
        raise ValueError(f"panel {name}: {words}; {way}")
    return np.array([column for column in found if column is not None]), missing


# --- published panels -----------------------------------------------------------------------------------------------


def read_panel(name):
    """Gene symbols of a panel: one that comes with genlib, or a gene set in a GMT file of one's own, list of str.

    ``"pam50"``, or a path as ``"hallmark.gmt"``; with several sets in it, the wanted one follows a ``#``:
    ``"hallmark.gmt#HALLMARK_ESTROGEN_RESPONSE_EARLY"``. Without such a panel, file or set: ValueError.

    Examples
    --------
    >>> len(read_panel("pam50"))
    50
    """
    path, wanted = _panel_file(name)
    if not path.exists():
        known = sorted(p.stem for p in DATA.glob("*.gmt"))
        words = f"unknown panel '{name}': there is no file {path}; known panels: {', '.join(known)}"
        raise ValueError(f"{words}; or give a GMT file (FILE.gmt#SET) or a list of gene symbols")
    sets = _gene_sets(path)
    if wanted not in sets and (wanted or len(sets) > 1):
        shown = ", ".join(list(sets)[:10])
        words = f"choose one of the {len(sets)} gene sets of {path.name} as FILE.gmt#SET"
        raise ValueError(f"panel '{name}': {words}: {shown}")
    return sets[wanted] if wanted else next(iter(sets.values()))


def _panel_file(name):
    """GMT file and set of a panel; those of genlib are known by name."""
    file, _, wanted = name.partition("#")
    return (pathlib.Path(file), wanted) if ".gmt" in name.lower() else (DATA / f"{name.lower()}.gmt", "")


def panel_name(panel):
    """Name a panel as results and figures show it: without folders, which say nothing of genes and much of a machine.

    Examples
    --------
    >>> panel_name("pam50"), panel_name("../mine/thyroid.gmt"), panel_name("hallmark.gmt#ESTROGEN"), panel_name(None)
    ('pam50', 'thyroid', 'ESTROGEN', None)
    """
    if panel is None:
        return None
    path, wanted = _panel_file(panel)
    return wanted or path.stem


def _gene_sets(path):
    """GMT: one line a gene set, tab-separated: name, source, genes."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    broken = [number for number, fields in enumerate(lines, 1) if len(fields) < 3]
    if broken or not lines:
        where = f"line {broken[0]} has" if broken else "it is empty, so there are"
        raise ValueError(f"{path}: {where} fewer than three tab-separated fields; GMT lines are name, source, genes")
    return {fields[0]: [gene.strip() for gene in fields[2:] if gene.strip()] for fields in lines}


def former_symbols():
    """Other names that a gene goes by: current symbol to former ones, and the reverse."""
    pairs = [line.split("\t") for line in (DATA / "aliases.tsv").read_text().splitlines()]
    return {symbol: tuple(former) for symbol, *former in pairs} | {old: (new,) for new, *rest in pairs for old in rest}


def gene_ids():
    """Entrez and Ensembl id of the genes of the panels that come with genlib, by symbol: dict of str to (str, str)."""
    rows = (line.split("\t") for line in (DATA / "gene_ids.tsv").read_text().splitlines())
    return {symbol: (entrez, ensembl) for symbol, entrez, ensembl in rows}


# --- published centroids --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Signature:
    """Published centroids of classes in the order of a cohort's panel and classes: a classifier that spends no privacy.

    `centroids` is (k, d), each with mean 0 over the genes; `prevalence` (k,) the published share of each class.
    """

    centroids: np.ndarray
    prevalence: np.ndarray

    def start(self, scale=3.0):
        """Kernel and bias of the softmax regression that names the class with the most correlated centroid.

        `scale` is the length of each class's weights: how sure the classifier is.
        """
        lengths = np.linalg.norm(self.centroids, axis=1, keepdims=True)
        kernel = (scale * self.centroids / lengths).T.astype(np.float32)
        return [kernel, np.zeros(kernel.shape[1], np.float32)]

    def nearest(self, values):
        """Logits of the classifier that spends nothing, (n, k) float32: correlations of profiles with centroids.

        Parker et al., JCO 27(8), 2009: Spearman's, after centering the genes; here Pearson's of normal scores.
        """
        centered = values - values.mean(axis=1, keepdims=True)
        lengths = np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        units = self.centroids / np.linalg.norm(self.centroids, axis=1, keepdims=True)
        return (centered / lengths @ units.T).astype(np.float32)

    @property
    def class_weights(self):
        """Weight of each class's loss, so that rare classes count as frequent ones do; from published prevalence."""
        return tuple((1 / (len(self.prevalence) * self.prevalence)).round(6).tolist())

    def center(self):
        """How to center rank scores of the panel: a noisy mean of the members, moved to the centroids' origin.

        Centroids are differences to equal parts of the classes; a cohort's mean leans to its frequent ones, which
        published prevalence tells. Half of the variance of the profiles is taken to lie between the classes.
        """
        from genlib import privacy  # brings TensorFlow, which takes seconds to load

        lean = self.prevalence @ self.centroids
        spread = float(self.prevalence @ ((self.centroids - lean) ** 2).sum(axis=1))
        n_genes = self.centroids.shape[1]
        # The norm of normal scores without ties, which no profile exceeds.
        radius = float(np.linalg.norm(scipy.special.ndtri((np.arange(n_genes) + 0.5) / n_genes)))
        return privacy.Center(lean, 0.5 / spread, radius)


def has_signature(cohort, panel="pam50"):
    """Say whether centroids of a panel were published for all classes of a cohort."""
    path = _centroids(panel)
    return path.exists() and set(cohort.classes) <= set(_table(path))


def _centroids(panel):
    """Centroids lie beside their panel: pam50.centroids.tsv, or thyroid.centroids.tsv beside thyroid.gmt."""
    return _panel_file(panel)[0].with_suffix(".centroids.tsv")


def _table(path):
    return pd.read_csv(path, sep="\t", comment="#", index_col=0)


def signature(cohort, panel="pam50"):
    """Match published centroids with a cohort's genes and classes, in the order of ``transform(cohort, panel=panel)``.

    They stand in ``PANEL.centroids.tsv`` in ``genlib/data``, or beside a GMT file of one's own: one column a class, one
    row a gene, and a row prevalence. A class or gene without a centroid is a ValueError that names it.

    Returns
    -------
    Signature

    Examples
    --------
    >>> from genlib import cohorts
    >>> signature(cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=5, seed=0))
    Traceback (most recent call last):
    ValueError: no published centroid of pam50 for class class A, class B, ...
    """
    path = _centroids(panel)
    if not path.exists():
        raise ValueError(f"panel '{panel}' has no published centroids: there is no file {path}; put them there")
    table = _table(path)
    missing = [name for name in cohort.classes if name not in table]
    if missing:
        words = f"no published centroid of {panel} for class {', '.join(missing)}; there are {', '.join(table)}"
        raise ValueError(f"{words}. Name the cohort's classes alike, or train without a signature")
    missing = find_panel(cohort, panel)[1]
    symbols = [gene for gene in dict.fromkeys(read_panel(panel)) if gene not in missing]
    names = {gene: [one for one in (gene, *former_symbols().get(gene, ())) if one in table.index] for gene in symbols}
    missing = [gene for gene, found in names.items() if not found]
    if missing:
        words = f"{', '.join(missing[:10])} ({len(missing)} of {len(names)}); add them to {path}"
        raise ValueError(f"no published centroid of {panel} for gene {words}")
    chosen = table.loc[[found[0] for found in names.values()], list(cohort.classes)].to_numpy().T
    shares = table.loc["prevalence", list(cohort.classes)].to_numpy(float)
    return Signature(chosen - chosen.mean(axis=1, keepdims=True), shares / shares.sum())
