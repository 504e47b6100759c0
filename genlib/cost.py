"""What training costs, measured: every measurement in a process of its own, so that none warms up another.

Used by notebook ``11_cost`` alone. Patients here are random numbers; time does not depend on who they are.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

# The comparison that the study quotes: hidden 256, 384 members, 30 epochs, batches of 32.
N_PATIENTS, N_CLASSES = 769, 5


def measure(what, threads=None, **options):
    """Run one measurement in a fresh process.

    Parameters
    ----------
    what : str
        Name of a measurement below: ``"bank"``, ``"keras"``, ``"private_bank"``, ``"steps"``,
        ``"inner_products"``, ``"attack"`` or ``"products"``.
    threads : int, optional
        Threads that TensorFlow may use for one operation; its own choice (all cores) by default.
    **options
        Arguments of the measurement.

    Returns
    -------
    dict
        What the measurement found, and ``peak_mb``, the largest memory of its process in 10^6 bytes.

    Raises
    ------
    RuntimeError
        When the measurement fails; holds what it said.

    Examples
    --------
    >>> measure("products", size=64)["gflops"] > 0
    True
    """
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(threads or os.cpu_count())}
    command = [sys.executable, "-W", "ignore", "-m", "genlib.cost", what, json.dumps(options)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise RuntimeError(f"measurement {what} {options} failed: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def _patients(n_patients, n_genes):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n_patients, n_genes), dtype=np.float32), rng.integers(0, N_CLASSES, n_patients)


def bank(n_models=64, n_genes=20_000, n_patients=N_PATIENTS, network="mlp", options=None, training=None):
    """Seconds that a bank of models takes in a fresh process, compilation and inner products included.

    `options` and `training` are what `genlib.networks` and `genlib.bank.train` take, of the usual network by default.

    Examples
    --------
    >>> bank(n_models=2, n_genes=900)["n_models"]
    2
    """
    from genlib import bank as banks
    from genlib import membership, networks

    features, labels = _patients(n_patients, n_genes)
    model = networks.build(network, n_genes, N_CLASSES, **(options or {"learning_rate": 0.001}))
    members = membership.paired_halves(np.zeros(n_patients, int), n_models, seed=0)
    training = training or {"epochs": 30, "batch_size": 32}
    start = time.perf_counter()
    banks.train(model, features, labels, members, seed=0, progress=False, **training)
    seconds = {"seconds": time.perf_counter() - start, "n_models": n_models}
    start = time.perf_counter()
    banks.train(model, features, labels, members, seed=1, progress=False, **training)
    return seconds | {"seconds_again": time.perf_counter() - start}


def keras(n_models=4, n_genes=20_000, n_patients=N_PATIENTS, network="mlp", options=None, training=None):
    """Seconds that Keras' own `fit` takes, one model after the other, as a reader would write it.

    Examples
    --------
    >>> keras(n_models=1, n_genes=90)["n_models"]
    1
    """
    from genlib import membership, networks

    features, labels = _patients(n_patients, n_genes)
    members = membership.paired_halves(np.zeros(n_patients, int), 2 * n_models, seed=0)
    training = {"epochs": 30, "batch_size": 32} | (training or {})
    training = {"epochs": training["epochs"], "batch_size": training["batch_size"] or n_patients, "verbose": 0}
    start = time.perf_counter()
    for m in range(n_models):
        model = networks.build(network, n_genes, N_CLASSES, **(options or {"learning_rate": 0.001}))
        model.fit(features[members[m]], labels[members[m]], **training)
        model(features)
    return {"seconds": time.perf_counter() - start, "n_models": n_models}


def inner_products(n_genes=20_000, n_patients=N_PATIENTS):
    """Seconds of what looks at genes, once a cohort: inner products of all patients, and a Cholesky factor of them.

    Examples
    --------
    >>> inner_products(n_genes=100, n_patients=20)["seconds"] > 0
    True
    """
    from genlib import bank as banks

    features, _ = _patients(n_patients, n_genes)
    start = time.perf_counter()
    banks.factor(features @ features.T)
    return {"seconds": time.perf_counter() - start}


def private_bank(kind="private", n_models=32, n_genes=20_000, batch_size=None, steps=60, n_patients=N_PATIENTS):
    """Seconds that a bank of privately trained models takes, with compilation, and what of it is clipping and noise.

    Parameters
    ----------
    kind : {"plain", "same form", "clipped", "private"}
        Without privacy, as notebook 03 trains; in the form of private training, but without clipping and noise; with
        clipping but no noise; with both.
    n_models, n_genes, steps, n_patients : int
    batch_size : int, optional
        Mean size of Poisson batches; full batches by default.

    Examples
    --------
    >>> private_bank(n_models=2, n_genes=900, steps=2)["n_models"]
    2
    """
    from genlib import bank as banks
    from genlib import membership, networks
    from genlib.privacy import Privacy

    features, labels = _patients(n_patients, n_genes)
    nominal = n_patients // 2
    epochs = steps if batch_size is None else max(1, steps * batch_size // nominal)
    model = networks.mlp(n_genes, N_CLASSES, learning_rate=0.001, momentum=0.9)
    members = membership.paired_halves(np.zeros(n_patients, int), n_models, seed=0)
    options = {"epochs": epochs, "batch_size": batch_size, "progress": False}
    if kind != "plain":
        left_out = {"same form": "no clipping, no noise", "clipped": "no noise", "private": None}
        options |= {"privacy": Privacy(1.0), "n": nominal, "fault": left_out[kind]}
    start = time.perf_counter()
    banks.train(model, features, labels, members, seed=0, **options)
    seconds = {"seconds": time.perf_counter() - start, "n_models": n_models}
    start = time.perf_counter()
    banks.train(model, features, labels, members, seed=1, **options)
    return seconds | {"seconds_again": time.perf_counter() - start}


def steps(path, n_genes=20_000, batch_size=64, n_steps=5):
    """Seconds of a few training steps of one model on genes, by a library's own way of clipping each patient.

    Parameters
    ----------
    path : {"keras", "fast", "slow", "vectorized", "opacus ghost", "opacus per sample"}
        Keras without privacy; TF-Privacy's fast clipping, its slow path, its vectorized optimizer; Opacus' ghost
        clipping and its gradients patient by patient, where Opacus is installed.
    n_genes, batch_size, n_steps : int

    Examples
    --------
    >>> steps("keras", n_genes=50, n_steps=1)["seconds"] > 0
    True
    """
    features, labels = _patients(batch_size, n_genes)
    opacus = path.startswith("opacus")
    step = _opacus_step(path, n_genes, batch_size) if opacus else _tensorflow_step(path, n_genes)
    step(features, labels)
    start = time.perf_counter()
    for _ in range(n_steps):
        step(features, labels)
    return {"seconds": time.perf_counter() - start, "n_models": 1, "n_steps": n_steps}


def _tensorflow_step(path, n_genes):
    import tensorflow as tf
    from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
    from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel
    from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized as vectorized

    from genlib import networks

    private = {"l2_norm_clip": 1.0, "noise_multiplier": 1.0}
    tf.random.set_seed(0)
    optimizer, reduction, options = tf.keras.optimizers.SGD(0.001), "sum", dict(private)
    if path == "keras":
        options = {}
    elif path == "fast":
        options["layer_registry"] = layer_registry.make_default_layer_registry()
    elif path == "slow":
        reduction = "none"
    else:
        optimizer, reduction = vectorized.VectorizedDPKerasSGDOptimizer(**private, learning_rate=0.001), "none"
        options = {}
    model = networks.mlp(n_genes, N_CLASSES)
    model = DPModel(inputs=model.inputs, outputs=model.outputs, **options) if options else model
    model.compile(optimizer, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction))
    return model.train_on_batch


def _opacus_step(path, n_genes, batch_size):
    import opacus
    import torch

    private = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": batch_size}
    network = torch.nn.Sequential(torch.nn.Linear(n_genes, 256), torch.nn.ReLU(), torch.nn.Linear(256, N_CLASSES))
    optimizer, loss = torch.optim.SGD(network.parameters(), lr=0.001), torch.nn.CrossEntropyLoss()
    if path == "opacus per sample":
        network = opacus.GradSampleModule(network)
        optimizer = opacus.optimizers.DPOptimizer(optimizer, **private)
    else:
        network = opacus.grad_sample.GradSampleModuleFastGradientClipping(
            network, max_grad_norm=1.0, use_ghost_clipping=True
        )
        optimizer = opacus.optimizers.DPOptimizerFastGradientClipping(optimizer, **private)
        loss = opacus.utils.fast_gradient_clipping_utils.DPLossFastGradientClipping(network, optimizer, loss, "mean")

    def step(features, labels):
        loss(network(torch.from_numpy(features)), torch.from_numpy(labels)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def attack(name, n_models=64, n_patients=N_PATIENTS):
    """Seconds that an attack on all models of a bank takes, or the intervals of its measures.

    Parameters
    ----------
    name : {"LiRA", "RMIA", "intervals"}
        The last: `genlib.metrics.attack_table` with its bootstrap, by class.
    n_models, n_patients : int

    Examples
    --------
    >>> attack("LiRA", n_models=12, n_patients=50)["seconds"] > 0
    True
    """
    from genlib import attacks, membership, metrics

    rng = np.random.default_rng(0)
    labels = rng.integers(0, N_CLASSES, n_patients)
    members = membership.paired_halves(np.zeros(n_patients, int), n_models, seed=0)
    logits = rng.standard_normal((n_models, n_patients, N_CLASSES), dtype=np.float32)
    start = time.perf_counter()
    if name == "intervals":
        metrics.attack_table(attacks.signal(logits, labels), members, groups=labels)
    else:
        {"LiRA": attacks.lira, "RMIA": attacks.rmia}[name](logits, labels, members)
    return {"seconds": time.perf_counter() - start}


def with_slopes(table):
    """Name each column by how it grows at the right end: the slope of its last two points on logarithmic axes.

    Parameters
    ----------
    table : pandas.DataFrame
        Seconds; the index is what grows.

    Returns
    -------
    pandas.DataFrame
        The same numbers; 1.0 stands for "twice as many take twice as long".

    Examples
    --------
    >>> import pandas as pd
    >>> list(with_slopes(pd.DataFrame({"sorting": [1.0, 8.0]}, index=[10, 20])))
    ['sorting (slope 3.0)']
    """
    growth = np.log(table.iloc[-1] / table.iloc[-2]) / np.log(table.index[-1] / table.index[-2])
    return table.rename(columns={name: f"{name} (slope {slope:.1f})" for name, slope in growth.items()})


def products(size=2048, repeats=5):
    """Rate of this machine's own single-precision matrix product, in 10^9 operations a second.

    Examples
    --------
    >>> products(size=64, repeats=2)["gflops"] > 0
    True
    """
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    a @ a
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return {"gflops": 2 * size**3 / min(seconds) / 1e9}


def operations(n_models, n_members=384, n_rows=N_PATIENTS, hidden=256, epochs=30):
    """Multiplications and additions of a bank's matrix products in row space.

    Examples
    --------
    >>> operations(64) / 1e9 > 100
    True
    """
    start = 2 * n_rows * n_rows * hidden
    steps = 2 * epochs * n_members * n_members * hidden
    rest = 3 * 2 * epochs * n_members * hidden * N_CLASSES
    answers = 2 * n_rows * n_members * hidden
    return n_models * (start + steps + rest + answers)


def _peak_mb():
    # Not resource.getrusage: what it gives a fresh process is never below the memory of the one that started it.
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    measurements = {one.__name__: one for one in (bank, keras, private_bank, steps, inner_products, attack, products)}
    found = measurements[sys.argv[1]](**json.loads(sys.argv[2]))
    found["peak_mb"] = _peak_mb()
    print(json.dumps(found))
