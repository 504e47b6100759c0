"""One trained model of one's own: open its file without running it, and prepare what attacks on it need.

Nothing of a model's file is run: its configuration is read as text, built anew from layers that are known, and given
the numbers of the file.
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile
import zipfile

import h5py
import jinja2
import numpy as np
import pandas as pd
import tensorflow as tf

from genlib import attacks, features, metrics, report, results

K = tf.keras
OUTPUTS = pathlib.Path(__file__).parent.parent / "outputs"
LAYERS = (
    "Activation", "Add", "AlphaDropout", "Average", "AveragePooling1D", "BatchNormalization", "Concatenate", "Conv1D",
    "Dense", "Dropout", "ELU", "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D",
    "GlobalMaxPooling1D", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling1D", "Maximum", "Model",
    "Multiply", "PReLU", "ReLU", "Reshape", "Sequential", "Softmax", "SpatialDropout1D", "Subtract",
)  # fmt: skip
PARTS = (K.initializers, K.regularizers, K.constraints, K.optimizers, K.optimizers.schedules, K.losses)
KNOWN = {*LAYERS, *(name for part in PARTS for name, value in vars(part).items() if isinstance(value, type))}
SAVE = "model.save('model.keras') in tf.keras 2.15"
# The way out for each class of file that is not opened.
REBUILD = f"build the model from Keras' own layers, give it the weights by set_weights, and {SAVE}"
SEEDS = (*range(32), 42, 99, 100, 101, 111, 123, 1234, 12345, 1337, *range(2018, 2027), 3407, 31415)
FOUND = "TPR at FPR 0.01 of shadow models"
FALSE = "FPR at FPR 0.01 of shadow models"
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
    """

    model: K.Model
    genes: list
    classes: list
    scale: pd.DataFrame | None
    name: str
    sha256: str
    promise: str


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
    if len(model.inputs) != 1 or model.input_shape[1:] != (len(genes),):
        raise ValueError(f"{path} takes {model.input_shape[1:]} numbers, genes.txt names {len(genes)}; mend genes.txt")
    if model.output_shape[1:] != (len(classes),) or len(classes) < 2:
        raise ValueError(
            f"{path} gives {model.output_shape[1:]} numbers, classes.txt names {len(classes)} classes; mend "
            "classes.txt, or build a model with one output a class (two for two classes)"
        )
    _compile(model, compiled, path)
    promise = path.with_name("card.md")
    promise = promise.read_text().strip() if promise.exists() else ""
    return Released(model, genes, classes, scale, path.name, results.file_digest(path), promise)


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
                compiled = json.loads(file.attrs.get("training_config", "null"))
                compiled = compiled and {"loss": compiled["loss"], "optimizer": compiled["optimizer_config"]}
                return json.loads(file.attrs["model_config"]), compiled, str(file.attrs["keras_version"])
    except (KeyError, ValueError):
        pass  # weights alone, or an archive of something else
    raise ValueError(f"{path} is no file of a Keras model; give what {SAVE} leaves")


def _refuse_unknown(config, path):
    """Refuse a configuration that names a class or a module which is not Keras' own, at any depth."""
    if isinstance(config, list):
        for one in config:
            _refuse_unknown(one, path)
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module") or "keras"
        if name and str(name).removeprefix("Custom>") not in KNOWN or not str(module).startswith("keras"):
            raise ValueError(
                f"{path}: '{name}' of {module} may run code, or is not known here, so the file is not opened; "
                f"{REBUILD}. Known layers: {', '.join(LAYERS)}"
            )
        _refuse_unknown(list(config.values()), path)


def _compile(model, compiled, path):
    """Compile a model as its file says, by Keras' own optimizers and losses; see that loss and answers agree."""
    name = getattr(getattr(model.layers[-1], "activation", K.activations.linear), "__name__", "another")
    soft = isinstance(model.layers[-1], K.layers.Softmax) or name == "softmax"
    if not soft and name != "linear":
        raise ValueError(
            f"{path} ends in '{name}': its answers must be logits, or probabilities of a softmax; {REBUILD}"
        )
    if not (compiled and compiled.get("optimizer") and compiled.get("loss")):
        return
    _refuse_unknown([compiled["optimizer"], compiled["loss"]], path)
    optimizer, loss = compiled["optimizer"], K.losses.get(compiled["loss"])
    if isinstance(optimizer, dict):
        optimizer = {"class_name": optimizer["class_name"].removeprefix("Custom>"), "config": optimizer["config"]}
    logits = loss.get_config().get("from_logits") if isinstance(loss, K.losses.Loss) else False
    if "crossentropy" in str(compiled["loss"]) and bool(logits) == soft:
        what = "probabilities of a softmax, and its loss takes logits" if soft else "logits, and its loss probabilities"
        raise ValueError(f"{path} gives {what}: compile it with from_logits={not soft}, train it so, and {SAVE}")
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
        When a patient is not in the cohort (no message names one), or all are members, or nearly none.
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
    if min(members.sum(), (~members).sum()) < FEWEST:
        raise ValueError(
            f"{path}: {members.sum()} of {len(ids)} patients are members; {FEWEST} members and {FEWEST} others are "
            "needed: add patients of the same kind who did not train the model"
        )
    return members


FEWEST = 20  # on each side


def answers(model, x):
    """Logits (1, n, k) of a model: its outputs, or the logarithms of its probabilities."""
    given = model.predict(x, verbose=0)
    last = model.layers[-1]
    if isinstance(last, K.layers.Softmax) or last.activation is K.activations.softmax:
        given = np.log(np.maximum(given, np.finfo(given.dtype).tiny))
    return given[None]


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
        group = "members" if stated is None else "other patients"
        wanted = f"the commonest class is {100 * commonest:.0f} % of them"
        wanted = wanted if stated is None else f"its owner says {100 * stated:.0f} %"
        raise ValueError(
            f"the model is right about {100 * right[who].mean():.0f} % of {who.sum()} {group}, and {wanted}: genes.txt "
            "or classes.txt are in another order, or --features is not what it takes in (genes.txt may also hold mean "
            "and sd of each gene); if it is so, give its accuracy on other patients by --accuracy"
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


def shadow_sets(n_members, n, n_models, seed):
    """Draw who trains each shadow model: as many as trained the target, and nothing else of its split.

    Patients are put in a circle at random, and each model of the circle leaves out the next ones; so all are left out
    about equally often.

    Parameters
    ----------
    n_members, n : int
        Of the target, and patients in all.
    n_models : int
        At least; more are drawn where each patient would be in, or out of, too few.
    seed : int

    Returns
    -------
    numpy.ndarray
        (models, n) bool.

    Examples
    --------
    >>> known = shadow_sets(80, 100, n_models=10, seed=0)
    >>> known.shape, known.sum(axis=1).min(), (~known).sum(axis=0).min()
    ((30, 100), 80, 6)
    """
    each = -(-n // min(n_members, n - n_members))
    rng, rows = np.random.default_rng([seed, 40]), []
    for _ in range(max(attacks.FEWEST_SHADOWS + 2, -(-n_models // each))):
        order = rng.permutation(n)
        rows += [np.isin(np.arange(n), np.roll(order, -(j * n // each))[:n_members]) for j in range(each)]
    return np.array(rows)


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


def found(scores, members, shadow_scores, known, labels, classes):
    """Members found at one threshold, the stricter of two, in all and by class, with exact intervals over patients.

    One target has too few other patients to tell what 1 in 100 of them is. So the threshold is the score that 1 in 100
    exceeds of those whom the shadow models do not know, or, if higher, of those whom the target does not know.

    Parameters
    ----------
    scores, members : numpy.ndarray
        (n,), of the target.
    shadow_scores, known : numpy.ndarray
        (S, n), of shadow models that take the target's place by turns, and who trained them.
    labels : numpy.ndarray
        (n,)
    classes : sequence of str

    Returns
    -------
    pandas.DataFrame
        As of `genlib.metrics.attack_table`, metrics `FOUND` and `FALSE`.
    """
    others = np.sort(scores[~members])
    limit = max(np.nanquantile(shadow_scores[~known], 0.99), others[-1 - len(others) // 100])
    groups = {"all": labels >= 0} | {name: labels == k for k, name in enumerate(classes)}
    rows = []
    for group, chosen in groups.items():
        for metric, side in {FOUND: members, FALSE: ~members}.items():
            accused = scores[chosen & side] > limit
            low, high = metrics.clopper_pearson(accused.sum(), max(1, len(accused)), tail=0.025)
            row = {"group": group, "metric": metric, "estimate": accused.sum() / max(1, len(accused))}
            rows.append(row | {"low": float(low), "high": float(high), "n_patients": len(accused), "n_models": 1})
    return pd.DataFrame(rows)


def name_patients(path, cohort, table):
    """Write scores with the patients' own names, most exposed first; the one place where names leave.

    Parameters
    ----------
    path : path-like
        A file of the user's own, outside of ``outputs/``.
    cohort : genlib.cohorts.Cohort
        Loaded with ``keep_ids=True``.
    table : pandas.DataFrame
        One row a patient of the cohort; its last column says how exposed one is.

    Raises
    ------
    ValueError
        When the file would lie in ``outputs/``, which is meant to be shown to others.
    """
    path = pathlib.Path(path).resolve()
    if OUTPUTS in path.parents:
        raise ValueError(
            f"{path.name} would name patients in outputs/, which is meant to be shown; name a path elsewhere"
        )
    with results.atomic_path(path) as part:
        named = table.assign(patient=cohort.ids).set_index("patient")
        named.sort_values(table.columns[-1], ascending=False).to_csv(part)


def write_card(folder, card):
    """Write what was found of one model as ``model_card.json`` and ``model_card.md``."""
    template = jinja2.Template((features.DATA / "model_card.md").read_text(), trim_blocks=True)
    card = {"schema": "genlib model card, version 1", **card, "made": results.environment()}
    results.save_json(pathlib.Path(folder, "model_card.json"), card)
    with results.atomic_path(pathlib.Path(folder, "model_card.md")) as part:
        part.write_text(template.render(card, percent=report.percent, plain=report.plain) + "\n")
