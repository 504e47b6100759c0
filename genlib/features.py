"""From expression to the numbers a model is given: each patient by itself, or by public knowledge.

Nothing here uses one patient's values to change another's, so the preprocessing spends no privacy budget.
"""

import warnings

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats

from genlib import panels

PATIENTS = 256  # patients whose ranks are computed at a time


def transform(cohort, kind="rank", panel=None, reference=None):
    """Turn a cohort's expression into features, each patient by itself or by a reference that is public.

    Parameters
    ----------
    cohort : genlib.cohorts.Cohort
    kind : {"rank", "log2", "unit"}
        ``"rank"``: normal scores Phi^-1((rank - 1/2) / d) of the ranks within the patient's own profile, ties at their
        mean rank. ``"log2"``: the values as they are. ``"unit"``: each profile divided by its Euclidean norm.
    panel : str or sequence of str, optional
        A published panel by name (``"pam50"``), a gene set of a GMT file (see `genlib.panels.read`) or a list of gene
        symbols; all genes of the study by default. Ranks and norms are then taken within the panel.
    reference : pandas.DataFrame, optional
        Columns mean and sd, one row a gene symbol, from a publication or from another cohort (see `reference_of`):
        every gene is centered and scaled by it instead of by the patients' own values.

    Returns
    -------
    numpy.ndarray
        (n patients, d genes) float32.

    Raises
    ------
    ValueError
        When `kind` is unknown, or the panel is (see `find_panel`), or the reference lacks a gene.

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
        values, symbols = cohort.expression, cohort.genes
    else:
        columns, missing = find_panel(cohort, panel)
        if missing:
            warnings.warn(f"{len(missing)} genes of the panel are not in {cohort.name}: {missing}", stacklevel=2)
        values, symbols = np.asarray(cohort.data.X[:, columns]), cohort.data.var_names[columns]
    if kind == "rank":
        values = rank_scores(values)
    if kind == "unit":
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        values = values / np.maximum(norms, np.finfo(np.float32).tiny)
    return _by_reference(values.astype(np.float32), list(symbols), reference)


def _by_reference(values, symbols, reference):
    if reference is None:
        return values
    former = panels.former_symbols()
    found = [next((s for s in (gene, *former.get(gene, ())) if s in reference.index), None) for gene in symbols]
    if None in found:
        missing = [gene for gene, name in zip(symbols, found, strict=True) if name is None]
        raise ValueError(
            f"{len(missing)} of {len(symbols)} genes are not in the reference: {', '.join(missing[:10])}; choose a "
            "panel that it covers"
        )
    mean, sd = (reference.loc[found, column].to_numpy(np.float32) for column in ("mean", "sd"))
    if not (np.isfinite(mean).all() and np.isfinite(sd).all() and (sd > 0).all()):
        raise ValueError("the reference holds missing values, or an sd that is not above 0")
    return (values - mean) / sd


def reference_of(cohort, kind="rank", panel=None):
    """Mean and standard deviation of every gene in a cohort, to center and scale *another* cohort by.

    Taken from the very cohort that trains, it lets patients change each other's features, which no guarantee covers.

    Parameters
    ----------
    cohort, kind, panel
        As in `transform`.

    Returns
    -------
    pandas.DataFrame
        Columns mean and sd, one row a gene symbol.

    Examples
    --------
    >>> from genlib import cohorts
    >>> cohort = cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=0)
    >>> other = cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=1)
    >>> transform(cohort, panel="pam50", reference=reference_of(other, panel="pam50")).shape
    (60, 50)
    """
    values = transform(cohort, kind, panel)
    symbols = cohort.genes if panel is None else cohort.data.var_names[find_panel(cohort, panel)[0]]
    sd = np.maximum(values.std(axis=0), np.finfo(np.float32).tiny)
    return pd.DataFrame({"mean": values.mean(axis=0), "sd": sd}, index=list(symbols))


def rank_scores(values):
    """Replace every value by the normal score of its rank within its own row.

    Parameters
    ----------
    values : numpy.ndarray
        (n, d), any scale.

    Returns
    -------
    numpy.ndarray
        (n, d) float32, Phi^-1((rank - 1/2) / d), ties at their mean rank.

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
    """Find the genes of a published panel in a cohort, by symbol, by a former symbol or by Entrez id.

    Looks among all genes of the cohort, also those outside the all-genes study: a panel chosen elsewhere costs no
    privacy budget.

    Parameters
    ----------
    cohort : genlib.cohorts.Cohort
    panel : str or sequence of str
        Name of a panel in ``genlib/data``, or gene symbols or Entrez ids.

    Returns
    -------
    columns : numpy.ndarray
        (found,) positions in ``cohort.data.var_names``, in the panel's order.
    missing : list of str
        Symbols that the cohort does not have.

    Raises
    ------
    ValueError
        When the panel is unknown or empty, or fewer than half of its genes are in the cohort.

    Examples
    --------
    >>> from genlib import cohorts
    >>> cohort = cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=2, seed=0)
    >>> columns, missing = find_panel(cohort, ["ESR1", "ERBB2", "NOT-A-GENE"])
    >>> len(columns), missing
    (2, ['NOT-A-GENE'])
    """
    name = panel if isinstance(panel, str) else "given by you"
    genes = list(dict.fromkeys(panels.read(panel) if isinstance(panel, str) else panel))
    former = panels.former_symbols()
    place = {symbol: column for column, symbol in enumerate(cohort.data.var_names)}
    if "entrez_id" in cohort.data.var:
        numbered = enumerate(cohort.data.var["entrez_id"])
        place |= {f"entrez:{number}": column for column, number in numbered if number}
    known = panels.entrez_ids()
    names = {gene: (gene, *former.get(gene, ()), f"entrez:{known.get(gene, gene)}") for gene in genes}
    found = [next((place[name] for name in names[gene] if name in place), None) for gene in genes]
    missing = [gene for gene, column in zip(genes, found, strict=True) if column is None]
    if not genes or len(missing) > len(genes) / 2:
        raise ValueError(
            f"panel {name}: {len(genes) - len(missing)} of {len(genes)} genes are in {cohort.name}, at least half are "
            f"needed; missing: {', '.join(missing[:10])}. Are the genes named by symbol, as ESR1, or by "
            "Entrez id? Or give another panel, or none (--panel none)"
        )
    return np.array([column for column in found if column is not None]), missing
