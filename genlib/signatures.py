"""Published class centroids: a classifier that spends no privacy, and where private training can start from.

What a publication says of each class is public: it was learned from other patients. Here it gives the weights of a
softmax regression (each class's logit is proportional to the correlation with its centroid), weights for rare classes,
and a way to find where the centroids' origin lies in the scale of a cohort.
"""

import dataclasses
import pathlib

import numpy as np
import pandas as pd
import scipy.special

from genlib import features, panels, privacy


@dataclasses.dataclass(frozen=True)
class Signature:
    """Published centroids in the order of a cohort's panel and classes.

    Attributes
    ----------
    centroids : numpy.ndarray
        (k, d), each with mean 0 over the genes.
    prevalence : numpy.ndarray
        (k,) published share of each class, adding up to 1.
    """

    centroids: np.ndarray
    prevalence: np.ndarray


def available(cohort, panel="pam50"):
    """Say whether centroids of a panel were published for all classes of a cohort.

    Examples
    --------
    >>> from genlib import cohorts
    >>> available(cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=5, seed=0))
    False
    """
    path = _path(panel)
    return path.exists() and set(cohort.classes) <= set(_table(path))


def _path(panel):
    return panels.DATA / f"{pathlib.Path(panel).name.lower()}.centroids.tsv"


def _table(path):
    return pd.read_csv(path, sep="\t", comment="#", index_col=0)


def load(cohort, panel="pam50"):
    """Match published centroids with a cohort's genes and classes.

    Parameters
    ----------
    cohort : genlib.cohorts.Cohort
    panel : str
        Name of a panel that has centroids: a file ``PANEL.centroids.tsv`` in ``genlib/data``, one column a class.

    Returns
    -------
    Signature
        Columns in the order of ``features.transform(cohort, panel=panel)``.

    Raises
    ------
    ValueError
        When the panel has no centroids, a class of the cohort is not among them, or genes have none; names them.

    Examples
    --------
    >>> from genlib import cohorts
    >>> cohort = cohorts.load("simulated", n_patients=60, n_genes=100, n_classes=5, seed=0)
    >>> load(cohort)
    Traceback (most recent call last):
    ValueError: no published centroid of pam50 for class class A, class B, ...
    """
    path = _path(panel)
    if not path.exists():
        known = sorted(p.name.split(".")[0] for p in panels.DATA.glob("*.centroids.tsv"))
        raise ValueError(f"panel '{panel}' has no published centroids here; these have: {', '.join(known)}")
    table = _table(path)
    missing = [name for name in cohort.classes if name not in table]
    if missing:
        raise ValueError(
            f"no published centroid of {panel} for class {', '.join(missing)}; there are {', '.join(table)}. Name the "
            "cohort's classes alike, or train without a signature"
        )
    former = panels.former_symbols()
    columns, _ = features.find_panel(cohort, panel)
    symbols = [str(symbol) for symbol in cohort.data.var_names[columns]]
    found = [next((s for s in (symbol, *former.get(symbol, ())) if s in table.index), None) for symbol in symbols]
    if None in found:
        absent = [symbol for symbol, name in zip(symbols, found, strict=True) if name is None]
        raise ValueError(f"no published centroid of {panel} for gene {', '.join(absent)}")
    chosen = table.loc[found, list(cohort.classes)].to_numpy().T
    shares = table.loc["prevalence", list(cohort.classes)].to_numpy(float)
    return Signature(chosen - chosen.mean(axis=1, keepdims=True), shares / shares.sum())


def start(signature, scale=3.0):
    """Weights of the softmax regression that names the class with the most correlated centroid.

    Parameters
    ----------
    signature : Signature
    scale : float
        Length of each class's weights; how sure the classifier is.

    Returns
    -------
    list of numpy.ndarray
        Kernel (d, k) and bias (k,), float32, as `genlib.bank.train` takes for its `start`.

    Examples
    --------
    >>> start(Signature(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0.5, 0.5])), scale=1.0)[0].round(2)
    array([[ 0.71, -0.71],
           [-0.71,  0.71]], dtype=float32)
    """
    lengths = np.linalg.norm(signature.centroids, axis=1, keepdims=True)
    kernel = (scale * signature.centroids / lengths).T.astype(np.float32)
    return [kernel, np.zeros(kernel.shape[1], np.float32)]


def nearest(values, signature):
    """Logits of the classifier that spends nothing: the correlation of each profile with each published centroid.

    Parameters
    ----------
    values : numpy.ndarray
        (n, d) features.
    signature : Signature

    Returns
    -------
    numpy.ndarray
        (n, k) float32, correlations.

    References
    ----------
    Parker et al.: "Supervised risk predictor of breast cancer based on intrinsic subtypes", JCO 27(8), 2009 (there by
    Spearman's correlation after centering the genes; here by Pearson's of normal scores, without centering).

    Examples
    --------
    >>> signature = Signature(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0.5, 0.5]))
    >>> nearest(np.array([[2.0, 0.0]]), signature).round(2)
    array([[ 1., -1.]], dtype=float32)
    """
    centered = values - values.mean(axis=1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    units = signature.centroids / np.linalg.norm(signature.centroids, axis=1, keepdims=True)
    return (centered / lengths @ units.T).astype(np.float32)


def class_weights(signature):
    """Weight of each class's loss, so that rare classes count as much as frequent ones; from published prevalence.

    Examples
    --------
    >>> class_weights(Signature(np.zeros((2, 3)), np.array([0.8, 0.2])))
    (0.625, 2.5)
    """
    return tuple((1 / (len(signature.prevalence) * signature.prevalence)).round(6).tolist())


def center(signature):
    """How to center rank scores of the panel: a noisy mean of the members, moved to the centroids' origin.

    The centroids are differences to a mix of equal parts of the classes, a cohort's mean is not: it leans to its
    frequent classes, by an amount that published prevalence tells. Half of the variance of the profiles is taken to lie
    between the classes.

    Parameters
    ----------
    signature : Signature

    Returns
    -------
    genlib.privacy.Center

    Examples
    --------
    >>> center(Signature(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0.75, 0.25]))).lean
    array([ 0.5, -0.5])
    """
    lean = signature.prevalence @ signature.centroids
    spread = float(signature.prevalence @ ((signature.centroids - lean) ** 2).sum(axis=1))
    n_genes = signature.centroids.shape[1]
    # The norm of normal scores without ties, which no profile exceeds.
    radius = float(np.linalg.norm(scipy.special.ndtri((np.arange(n_genes) + 0.5) / n_genes)))
    return privacy.Center(lean, 0.5 / spread, radius)
