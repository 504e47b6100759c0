"""Which patient trains which model. Looks at labels and counts, never at expression.

Model ``2j + 1`` is the complement twin of model ``2j``: who is a member of one is a non-member of the other. Everywhere
`labels` (n,) int is the class of each patient, `n_models` an even number M (else ValueError), `reserved` (n,) bool who
is in no model, `seed` an int; members are (M, n) bool.
"""

import numpy as np


def reserve(labels, share, seed):
    """Keep a share (0 to below 1) of each class, rounded down, out of every model and every evaluation: (n,) bool.

    They serve for early stopping, tuning, distillation or as reference for a defense.

    Examples
    --------
    >>> reserve(np.array([0, 0, 0, 0, 1, 1, 1, 1]), share=0.25, seed=0).sum()
    2
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share}: the part of the patients to reserve must be at least 0 and below 1")
    rng = np.random.default_rng([seed, 1])
    reserved = np.zeros(len(labels), bool)
    for patients in _by_class(labels, np.ones(len(labels), bool)):
        reserved[rng.permutation(patients)[: int(share * len(patients))]] = True
    return reserved


def target_split(labels, seed, reserved=None):
    """Split patients into members and non-members of one target model, stratified by class: (n,) bool each.

    Every class is halved (one of a single patient is a ValueError); where a class is odd, the patients left over go to
    either side by turns, so that the two sides differ by one patient at most. Each patient is a member with probability
    1/2 over seeds.

    Examples
    --------
    >>> members, nonmembers = target_split(np.array([0, 0, 0, 1, 1, 1]), seed=0)
    >>> members.sum(), nonmembers.sum(), (members & nonmembers).any()
    (3, 3, False)
    """
    eligible = np.ones(len(labels), bool) if reserved is None else ~np.asarray(reserved)
    rng = np.random.default_rng(seed)
    members = np.zeros(len(labels), bool)
    extra_to_members = bool(rng.integers(2))
    for patients in _by_class(labels, eligible):
        if len(patients) < 2:
            name = labels[patients[0]] if len(patients) else "none"
            raise ValueError(f"class {name} has {len(patients)} patients to split; at least 2 are needed")
        half = len(patients) // 2
        if len(patients) % 2:
            half += extra_to_members
            extra_to_members = not extra_to_members
        members[rng.permutation(patients)[:half]] = True
    return members, eligible & ~members


def _by_class(labels, eligible):
    return [np.flatnonzero((labels == k) & eligible) for k in np.unique(labels)]


def paired_halves(labels, n_models, seed, reserved=None):
    """Split the patients in half, stratified by class, for many models in pairs of complement twins.

    Halves have a fixed size: with them, "member" against "non-member" replaces one patient by another. They serve
    attacks without a claim about epsilon; for those use `bernoulli`.

    Examples
    --------
    >>> members = paired_halves(np.array([0, 0, 1, 1]), n_models=4, seed=0)
    >>> (members[0] == ~members[1]).all(), members.sum(axis=1)
    (True, array([2, 2, 2, 2]))
    """
    pairs = [target_split(labels, (seed, 2, j), reserved) for j in range(_n_pairs(n_models))]
    return np.array([side for pair in pairs for side in pair])


def bernoulli(n, n_models, seed, reserved=None):
    """Draw membership of each of `n` patients by itself with probability 1/2, in pairs of complement twins.

    This is the draw that add-or-remove neighbors call for: one patient in or out, all others as they were.

    Examples
    --------
    >>> members = bernoulli(1000, n_models=2, seed=0)
    >>> members.sum(axis=0).min(), 400 < members[0].sum() < 600
    (1, True)
    """
    eligible = np.ones(n, bool) if reserved is None else ~np.asarray(reserved)
    first = np.random.default_rng([seed, 3]).random((_n_pairs(n_models), n)) < 0.5
    return np.stack([first & eligible, ~first & eligible], axis=1).reshape(n_models, n)


def shadow_sets(n_members, n, n_models, seed):
    """Draw who trains each shadow model: as many of `n` as trained the target, and nothing else of its split.

    Patients are put in a circle at random, and each model of the circle leaves out the next ones; so all are left out
    about equally often. More than `n_models` are drawn where each patient would be in, or out of, too few.

    Examples
    --------
    >>> known = shadow_sets(80, 100, n_models=10, seed=0)
    >>> known.shape, known.sum(axis=1).min(), (~known).sum(axis=0).min()
    ((30, 100), 80, 6)
    """
    each = -(-n // min(n_members, n - n_members))
    rng, rows = np.random.default_rng([seed, 40]), []
    for _ in range(max(6, -(-n_models // each))):
        order = rng.permutation(n)
        rows += [np.isin(np.arange(n), np.roll(order, -(j * n // each))[:n_members]) for j in range(each)]
    return np.array(rows)


def canaries(n_fixed, n_canaries, n_models, seed):
    """Members of an audit: the first `n_fixed` rows are in all models, the canaries behind come and go by themselves.

    Each is in each model with probability 1/2, independent of all else; no twins, since an audit takes the models as
    independent.

    Examples
    --------
    >>> canaries(2, 1, n_models=4, seed=0)[:, :2].all()
    True
    """
    drawn = np.random.default_rng([seed, 16]).random((n_models, n_canaries)) < 0.5
    return np.hstack([np.ones((n_models, n_fixed), bool), drawn])


def by_site(sites, n_models, seed):
    """Split the hospitals, `sites` (n,) int, in half for many models, in pairs of complement twins.

    Non-members come from other hospitals: these are taken in random order until half of the patients are members. With
    fewer than two it is a ValueError.

    Examples
    --------
    >>> by_site(np.array([0, 0, 1, 1]), n_models=2, seed=0).sum(axis=1)
    array([2, 2])
    """
    names, counts = np.unique(sites, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"a split by hospital needs at least 2 sites; there is {len(names)}")
    rows = []
    for j in range(_n_pairs(n_models)):
        order = np.random.default_rng([seed, 13, j]).permutation(len(names))
        before = np.cumsum(counts[order]) - counts[order]
        # The site that crosses the half goes where it leaves the halves more equal; neither side stays empty.
        chosen = order[before + counts[order] / 2 < len(sites) / 2]
        chosen = chosen if len(chosen) else order[:1]
        first = np.isin(sites, names[chosen])
        rows += [first, ~first]
    return np.array(rows)


def outsider_split(labels, seed):
    """Split patients into the target's pool and an outsider's, disjoint and stratified by class: (n,) bool each.

    The outsider trains shadow models on patients of its own: none of the pool is in any of them.

    Examples
    --------
    >>> pool, outsiders = outsider_split(np.array([0, 0, 1, 1]), seed=0)
    >>> pool.sum(), (pool & outsiders).any()
    (2, False)
    """
    return target_split(labels, (seed, 12))


def check(labels, members, n_classes):
    """Refuse labels that are not whole numbers from 0 to `n_classes` - 1, and members that are not True or False.

    A ValueError names the argument, what it holds and the way out.

    Examples
    --------
    >>> check(np.array([1, 2]), np.array([[True, False]]), n_classes=2)
    Traceback (most recent call last):
    ValueError: labels run from 1 to 2, and there are 2 classes: number them from 0 to 1, ...
    """
    labels, members = np.asarray(labels), np.asarray(members)
    way_out = "as np.unique(labels, return_inverse=True)[1] does where every class has patients"
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are of type {labels.dtype} (the first is {labels.flat[0]!r}): number the classes by whole numbers "
            f"from 0 to {n_classes - 1}, {way_out}"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, and there are {n_classes} classes: number them from 0 "
            f"to {n_classes - 1}, {way_out}"
        )
    if members.dtype != bool:
        raise ValueError(
            f"members are of type {members.dtype}, where ~members would be no non-members: give True and False, as "
            "members.astype(bool)"
        )


def _n_pairs(n_models):
    if n_models < 2 or n_models % 2:
        raise ValueError(f"n_models={n_models}: models come in complement twins, so give an even number of at least 2")
    return n_models // 2
