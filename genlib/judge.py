"""One trained model of one's own: open its file without running it, and prepare what attacks on it need.

Nothing of a model's file is run: its configuration is read as text, built anew from layers that are known, and given
the numbers of the file.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
import zipfile

import h5py
import numpy as np
import pandas as pd
import tensorflow as tf

from genlib import features, metrics, results

K = tf.keras
OUTPUTS = pathlib.Path(__file__).parent.parent / "outputs"
LAYERS = (
    "Activation", "Add", "AveragePooling1D", "BatchNormalization", "Concatenate", "Conv1D", "Dense", "Dropout", "ELU",
    "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalMaxPooling1D",
    "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling1D", "Model", "PReLU", "ReLU", "Reshape", "Sequential",
    "Softmax",
)  # fmt: skip
PARTS = (K.initializers, K.regularizers, K.constraints, K.optimizers, K.optimizers.schedules, K.losses)
KNOWN = {*LAYERS, *(name for part in PARTS for name, value in vars(part).items() if isinstance(value, type))}
SAVE = "model.save('model.keras') in tf.keras 2.15"
REBUILD = f"build the model from Keras' own layers, give it the weights by set_weights, and {SAVE}"
SEEDS = (*range(11), 42, 99, 100, 123, 1234, 12345, 1337, *range(2020, 2027), 3407)
FOUND = "TPR at the threshold for FPR 0.01"
FALSE = "FPR at the threshold for FPR 0.01"
SIDECARS = {
    "genes.txt": "one gene a line in the order of the model's inputs (mean and sd behind tabs, if scaled)",
    "classes.txt": "one class a line in the order of the model's outputs",
}


@dataclasses.dataclass(frozen=True)
class Released:
    """A model as it would be shared.

    Attributes
    ----------
    model : tf.keras.Model
        Built anew; compiled where the file says how.
    genes : list of str
        In the order of its inputs.
    classes : list of str
        In the order of its outputs.
    scale : pandas.DataFrame or None
        Columns mean and sd by gene, where ``genes.txt`` holds them.
    name, sha256 : str
        Of the file.
    promise : str
        Content of ``card.md`` beside it: its owner's words, which nothing here checks.
    memory : numpy.ndarray or None
        The optimizer's running mean of the first kernel's gradients, if the file holds it (momentum, Adam): a sum of
        members' profiles without the start's noise.
    """

    model: K.Model
    genes: list
    classes: list
    scale: pd.DataFrame | None
    name: str
    sha256: str
    promise: str
    memory: np.ndarray | None


def bundle(folder, model, genes, classes, card):
    """Leave a model with all that another needs to use and to judge it: file, genes, classes and a card's words.

    Parameters
    ----------
    folder : path-like
    model : tf.keras.Model
    genes, classes : sequence of str
        In the order of its inputs and outputs.
    card : str
        What is promised of it, as from `genlib.privacy.release`.

    Examples
    --------
    >>> model = K.Sequential([K.Input((2,)), K.layers.Dense(2)])
    >>> folder = tempfile.mkdtemp()
    >>> bundle(folder, model, ["ESR1", "ERBB2"], ["LumA", "Basal"], "No promise.")
    >>> read(folder).genes
    ['ESR1', 'ERBB2']
    """
    folder = pathlib.Path(folder)
    with results.atomic_path(folder / "model.keras") as part:
        model.save(part)
    for name, lines in {"genes.txt": genes, "classes.txt": classes, "card.md": [card]}.items():
        with results.atomic_path(folder / name) as part:
            part.write_text("\n".join(lines) + "\n")


def read(path):
    """Open a model's file, or a folder from `bundle`, without running anything that it holds.

    Parameters
    ----------
    path : path-like
        ``.keras`` or ``.h5`` of Keras 2, with ``genes.txt`` and ``classes.txt`` beside it; or a folder of the three.

    Returns
    -------
    Released

    Raises
    ------
    ValueError
        When it is no such file, or holds what is not among `LAYERS` and Keras' own parts, as a Lambda layer; names it
        and the way out.

    References
    ----------
    ``safe_mode`` of Keras does not cover ``.h5``, whose Lambda layers run as they are loaded: CVE-2024-3660.

    Examples
    --------
    >>> read(__file__)
    Traceback (most recent call last):
    ValueError: ...judge.py is no file of a Keras model; give what model.save('model.keras') in tf.keras 2.15 leaves
    """
    path = pathlib.Path(path)
    path = path / "model.keras" if (path / "model.keras").exists() else path
    if path.is_dir():
        raise ValueError(f"{path} is a folder without model.keras (a SavedModel runs code of its own): {REBUILD}")
    config, compiled, version = _configuration(path)
    if not version.startswith("2."):
        raise ValueError(
            f"{path} was saved by Keras {version}, whose files Keras 2 cannot read: there, "
            f"np.savez('weights.npz', *model.get_weights()); here, {REBUILD}"
        )
    _refuse_unknown(config, path)
    (genes, scale), (classes, _) = (_sidecar(path.parent / name) for name in SIDECARS)
    try:
        model = K.layers.deserialize(config)
        with tempfile.TemporaryDirectory() as scratch:  # Keras tells the form by the file's name
            form = "keras" if zipfile.is_zipfile(path) else "h5"
            model.load_weights(shutil.copy(path, pathlib.Path(scratch, f"model.{form}")))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be built: {' '.join(str(error).split())[:200]}; {REBUILD}") from None
    if (model.input_shape, model.output_shape) != ((None, len(genes)), (None, len(classes))) or len(classes) < 2:
        raise ValueError(
            f"{path} takes {model.input_shape} and gives {model.output_shape}; genes.txt names {len(genes)}, and "
            f"classes.txt {len(classes)}, at least 2: mend them, or build a model with one output a class"
        )
    _compile(model, compiled, path)
    promise = "".join(card.read_text().strip() for card in path.parent.glob("card.md"))
    memory = _memory(path, model.get_weights()[0].shape)
    return Released(model, genes, classes, scale, path.name, results.file_digest(path), promise, memory)


def _configuration(path):
    """Layers, how the model was compiled, and the version of Keras: text of the file."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                archive.getinfo("model.weights.h5")
                return (
                    config,
                    config.pop("compile_config", None),
                    json.loads(archive.read("metadata.json"))["keras_version"],
                )
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                compiled = json.loads(file.attrs.get("training_config", "null").replace("Custom>", ""))
                compiled = compiled and {"loss": compiled["loss"], "optimizer": compiled["optimizer_config"]}
                return json.loads(file.attrs["model_config"]), compiled, str(file.attrs["keras_version"])
    except (KeyError, ValueError):
        pass  # weights alone, or an archive of something else
    raise ValueError(f"{path} is no file of a Keras model; give what {SAVE} leaves")


def _memory(path, shape):
    """First array of an optimizer with this shape and both signs: a mean of gradients."""
    found = []

    def keep(name, one):
        if name.startswith("optimizer") and getattr(one, "shape", None) == shape and (one[()] < 0).any():
            found.append(one[()])

    with contextlib.ExitStack() as stack:
        zipped = zipfile.is_zipfile(path)
        file = stack.enter_context(zipfile.ZipFile(path)).open("model.weights.h5") if zipped else path
        stack.enter_context(h5py.File(file)).visititems(keep)
    return found[0] if found else None


def _refuse_unknown(config, path):
    """Refuse a configuration that names a class or a module which is not Keras' own, at any depth."""
    if isinstance(config, list):
        for one in config:
            _refuse_unknown(one, path)
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module") or "keras"
        if name and name not in KNOWN or not str(module).startswith("keras"):
            raise ValueError(
                f"{path}: '{name}' of {module} may run code, or is not known here, so the file is not opened; "
                f"{REBUILD}. Known layers: {', '.join(LAYERS)}"
            )
        _refuse_unknown(list(config.values()), path)


def _compile(model, compiled, path):
    """Compile a model as its file says, by Keras' own optimizers and losses; see that loss and answers agree."""
    optimizer, given = ((compiled or {}).get(name) for name in ("optimizer", "loss"))
    _refuse_unknown([optimizer, given], path)
    loss = given and K.losses.get(given)
    logits = bool(getattr(loss, "get_config", dict)().get("from_logits"))
    end = getattr(getattr(model.layers[-1], "activation", None), "__name__", "linear")
    end = "softmax" if is_soft(model) else end
    if end not in ("softmax", "linear") or ("crossentropy" in str(given) and logits == is_soft(model)):
        raise ValueError(
            f"{path} ends in '{end}', and its loss has from_logits={logits}: a model gives logits (no last activation, "
            f"from_logits=True) or probabilities (softmax, from_logits=False); train it so, and {SAVE}"
        )
    if optimizer and loss:
        model.compile(K.optimizers.get(optimizer), loss, metrics=["accuracy"])


def _sidecar(path):
    """Names, one a line, and mean and sd where they stand behind."""
    if not path.exists():
        raise ValueError(f"there is no {path}; write it: {SIDECARS[path.name]}")
    table = pd.DataFrame([line.split("\t") for line in path.read_text().splitlines() if line.strip()])
    table = table.set_index(0).rename_axis(None)
    if table.index.duplicated().any() or table.isna().any(axis=None):
        raise ValueError(f"{path}: a name stands twice, or lines differ in length; mend it: {SIDECARS[path.name]}")
    scale = table.iloc[:, :2].set_axis(["mean", "sd"], axis=1).astype(float) if table.shape[1] > 1 else None
    return list(table.index), scale


def match(released, cohort, kind):
    """Features of a cohort's patients in the order of the model's genes, and their classes in that of its answers.

    Parameters
    ----------
    released : Released
    cohort : genlib.cohorts.Cohort
    kind : str
        What the model takes in, as in `genlib.features.transform`.

    Returns
    -------
    x, labels : numpy.ndarray
        (n, d) float32; (n,) int.

    Raises
    ------
    ValueError
        When the cohort lacks a gene, or has a class that the model does not know.
    """
    _, missing = features.find_panel(cohort, released.genes)
    if missing:
        raise ValueError(
            f"{len(missing)} genes of the model are not in {cohort.name}: {', '.join(missing[:5])}; give the table "
            "that trained it, and name genes in genes.txt as there"
        )
    unknown = [name for name in cohort.classes if name not in released.classes]
    if unknown:
        raise ValueError(
            f"{cohort.name} has classes {unknown}, the model knows {released.classes}; name them in classes.txt as in "
            "the cohort, in the order of the model's outputs, or leave patients out by --drop-classes"
        )
    place = np.array([released.classes.index(name) for name in cohort.classes])
    return features.transform(cohort, kind, released.genes, released.scale), place[cohort.labels]


def read_members(path, cohort):
    """Who trained the model, from a file with one patient a line.

    Parameters
    ----------
    path : path-like
        Patients named as in the cohort's own file; in a cohort that is known by name, by number, from 0.
    cohort : genlib.cohorts.Cohort
        Loaded with ``keep_ids=True``.

    Returns
    -------
    numpy.ndarray
        (n,) bool.

    Raises
    ------
    ValueError
        When a patient is not in the cohort (no message names one), or all or none are members.
    """
    path, ids = pathlib.Path(path), cohort.ids
    lines = [line.strip() for line in path.read_text().splitlines()]
    unknown = [number for number, line in enumerate(lines, start=1) if line and line not in set(ids)]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(lines)} lines name no patient of {cohort.name}, the first is line "
            f"{unknown[0]}; write one patient a line as the cohort's file does, or its row from 0 for a known cohort, "
            "and leave no patient out that trained the model"
        )
    members = np.isin(ids, lines)
    if members.all() or not members.any():
        raise ValueError(
            f"{path}: {members.sum()} of {len(ids)} patients are members; a cohort needs others to compare with"
        )
    return members


def answers(model, x):
    """Logits (1, n, k) of a model: its outputs, or the logarithms of its probabilities."""
    given = model.predict(x, verbose=0)
    return (np.log(np.maximum(given, np.finfo(given.dtype).tiny)) if is_soft(model) else given)[None]


def is_soft(model):
    """Whether a model gives the probabilities of a softmax."""
    last = model.layers[-1]
    return isinstance(last, K.layers.Softmax) or getattr(last, "activation", None) is K.activations.softmax


def refuse_mismatch(logits, labels, members, stated=None):
    """Refuse a model that cannot be the one that its owner means: genes, classes or preprocessing must be others.

    Parameters
    ----------
    logits : numpy.ndarray
        (1, n, k).
    labels : numpy.ndarray
        (n,)
    members : numpy.ndarray
        (n,) bool.
    stated : float, optional
        Its accuracy on patients who did not train it, as its owner knows it; without it, it must be right about more
        members than whoever names the commonest class.

    Raises
    ------
    ValueError
        With what was found, and where to look.
    """
    right, who = logits[0].argmax(axis=1) == labels, members if stated is None else ~members
    low, high = metrics.clopper_pearson(right[who].sum(), who.sum(), tail=0.005)
    commonest = np.bincount(labels[members]).max() / members.sum()
    if not low <= stated <= high if stated is not None else low <= commonest:
        wanted = f"the commonest class has {100 * commonest:.0f} % of members"
        wanted = wanted if stated is None else f"its owner says {100 * stated:.0f} %"
        raise ValueError(
            f"the model is right about {100 * right[who].mean():.0f} % of {who.sum()} patients, and {wanted}: "
            "genes.txt or classes.txt are in another order, or --kind is not what it takes in (genes.txt may also hold "
            "mean and sd of each gene); if it is so, give its accuracy on other patients by --accuracy"
        )


def weights(model, x):
    """What `genlib.attacks.on_weights` takes of a network of dense layers with one activation; None of another.

    Returns
    -------
    inside, further, activation
        Products (1, n, h) with the first kernel; the weights behind; activation of all layers but the last.
    """
    kinds = []
    for layer in model.layers:
        if isinstance(layer, K.layers.Dense) and layer.use_bias:
            kinds.append(layer.activation)
        elif isinstance(layer, K.layers.Activation) and kinds:
            kinds[-1] = layer.activation
        elif not isinstance(layer, K.layers.InputLayer | K.layers.Dropout | K.layers.Softmax):
            return None
    if len(set(kinds[:-1])) > 1 or not kinds:
        return None
    kernel, *further = model.get_weights()
    return (x @ kernel)[None], [part[None] for part in further], (kinds[:-1] or ["linear"])[0]


def known_start(model, seeds=SEEDS):
    """Try common seeds, and those in the file: the one that gives the start of these weights, and that start.

    A kernel after training still looks like its start. One of another seed does not: their correlation is normal with a
    variance of one over the number of weights.

    Returns
    -------
    seed : int or None
    start : list of numpy.ndarray or None

    Examples
    --------
    >>> K.utils.set_random_seed(42)
    >>> known_start(K.Sequential([K.Input((30,)), K.layers.Dense(9)]))[0]
    42
    """
    config, weights = model.to_json(), model.get_weights()
    place = next(i for i, part in enumerate(weights) if part.ndim > 1)
    for seed in seeds:
        K.utils.set_random_seed(seed)
        start = K.models.model_from_json(config).get_weights()
        alike = np.corrcoef(start[place].ravel(), weights[place].ravel())[0, 1] * weights[place].size ** 0.5
        if alike > 6:
            return seed, start
    return None, None


def found(scores, members, labels, classes, reference=()):
    """Members found at one threshold, in all and by class, with exact intervals over patients.

    One target has too few other patients to tell well what 1 in 100 of them is. So the threshold is the score that 1 in
    100 of them exceeds, or, if it is higher, the one that 1 in 100 of `reference` exceeds; how many others were accused
    stands beside.

    Parameters
    ----------
    scores, members : numpy.ndarray
        (n,), of the target.
    labels : numpy.ndarray
        (n,)
    classes : sequence of str
    reference : numpy.ndarray, optional
        Scores of shadow models, in the target's place by turns, for patients whom they do not know.

    Returns
    -------
    pandas.DataFrame
        As of `genlib.metrics.attack_table`, metrics `FOUND` and `FALSE`.

    Examples
    --------
    >>> scores, members = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    >>> found(scores, members, np.zeros(4, int), ["A"])["estimate"].tolist()[:2]
    [0.5, 0.0]
    """
    others = np.sort(scores[~members])
    limits = [others[-1 - len(others) // 100]] + ([np.nanquantile(reference, 0.99)] if len(reference) else [])
    groups = {"all": labels >= 0} | {name: labels == k for k, name in enumerate(classes)}
    rows = []
    for group, chosen in groups.items():
        for metric, side in {FOUND: members, FALSE: ~members}.items():
            accused = scores[chosen & side] > max(limits)
            low, high = metrics.clopper_pearson(accused.sum(), max(1, len(accused)), tail=0.025)
            row = {"group": group, "metric": metric, "estimate": accused.sum() / max(1, len(accused))}
            rows.append(row | {"low": float(low), "high": float(high), "n_patients": len(accused), "n_models": 1})
    return pd.DataFrame(rows)


def private_path(path):
    """Path of a file that may name patients: the one place where names leave.

    Raises
    ------
    ValueError
        When it would lie in ``outputs/``, which is meant to be shown to others.

    Examples
    --------
    >>> private_path(OUTPUTS / "who.csv")
    Traceback (most recent call last):
    ValueError: who.csv would name patients in outputs/, which is shown to others; choose another path
    """
    path = pathlib.Path(path).resolve()
    if OUTPUTS in path.parents:
        raise ValueError(f"{path.name} would name patients in outputs/, which is shown to others; choose another path")
    return path
