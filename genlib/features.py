"""From expression to the numbers a model is given: each patient by itself, or by public knowledge.

Nothing here uses one patient's values to change another's, so the preprocessing spends no privacy budget.
"""

import warnings

import numpy as np
import scipy.special
import scipy.stats

from genlib import panels


def transform(cohort, kind="rank", panel=None):
    """Turn a cohort's expression into features, each patient by itself.

    Parameters
    ----------
    cohort : genlib.cohorts.Cohort
    kind : {"rank", "log2", "unit"}
        ``"rank"``: normal scores Phi^-1((rank - 1/2) / d) of the ranks within the patient's own profile, ties at their
        mean rank. ``"log2"``: the values as they are. ``"unit"``: each profile divided by its Euclidean norm.
    panel : str or sequence of str, optional
        A published panel by name (``"pam50"``) or a list of gene symbols; all genes of the study by default. Ranks and
        norms are then taken within the panel.

    Returns
    -------
    numpy.ndarray
        (n patients, d genes) float32.

    Raises
    ------
    ValueError
        When `kind` is unknown, or the panel is (see `find_panel`).

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
        return rank_scores(values)
    if kind == "unit":
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return (values / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return values.astype(np.float32)


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
    ranks = scipy.stats.rankdata(values, axis=1)
    return scipy.special.ndtri((ranks - 0.5) / ranks.shape[1]).astype(np.float32)


def find_panel(cohort, panel):
    """Find the genes of a published panel in a cohort, by symbol or by a former symbol.

    Looks among all genes of the cohort, also those outside the all-genes study: a panel chosen elsewhere costs no
    privacy budget.

    Parameters
    ----------
    cohort : genlib.cohorts.Cohort
    panel : str or sequence of str
        Name of a panel in ``genlib/data``, or gene symbols.

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
    found = [next((place[s] for s in (gene, *former.get(gene, ())) if s in place), None) for gene in genes]
    missing = [gene for gene, column in zip(genes, found, strict=True) if column is None]
    if not genes or len(missing) > len(genes) / 2:
        raise ValueError(
            f"panel {name}: {len(genes) - len(missing)} of {len(genes)} genes are in {cohort.name}, at least half are "
            f"needed; missing: {', '.join(missing[:10])}. Are the genes named by symbol, as ESR1?"
        )
    return np.array([column for column in found if column is not None]), missing
