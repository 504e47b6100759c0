"""What training costs, measured: every measurement in a process of its own, so that none warms up another.

Used by notebook ``08_cost`` alone. Patients here are random numbers; time does not depend on who they are.
"""

import json
import os
import resource
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
        Name of a measurement below: ``"bank"``, ``"basis"`` or ``"products"``.
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


def bank(n_models=64, n_genes=20_000, engine="row-space", coordinates=False, n_patients=N_PATIENTS):
    """Seconds that a bank of models takes, after one small bank that warms up; decomposition included.

    With `coordinates` the features are replaced by the patients' coordinates in row space, as the middle step between
    Keras on genes and the engine of this study.

    Examples
    --------
    >>> bank(n_models=2, n_genes=900)["n_models"]
    2
    """
    from genlib import bank as banks
    from genlib import engine as engines
    from genlib import membership
    from genlib.recipes import Recipe

    features, labels = _patients(n_patients, n_genes)
    if coordinates:
        features = engines.basis(features)[0]
    recipe = Recipe("mlp", hidden=(256,), epochs=30, batch_size=32, learning_rate=0.001)
    members = membership.paired_halves(np.zeros(n_patients, int), n_models, seed=0)
    options = {"engine": engine, "progress": False}
    banks.train(features, labels, members[:2], recipe, 1, **options)
    start = time.perf_counter()
    banks.train(features, labels, members, recipe, 0, **options)
    return {"seconds": time.perf_counter() - start, "n_models": n_models}


def basis(n_genes=20_000, n_patients=N_PATIENTS):
    """Seconds that the one-off decomposition takes.

    Examples
    --------
    >>> basis(n_genes=100, n_patients=20)["seconds"] > 0
    True
    """
    from genlib import engine

    features, _ = _patients(n_patients, n_genes)
    start = time.perf_counter()
    engine.prepare(features, in_row_space=True)
    return {"seconds": time.perf_counter() - start}


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


if __name__ == "__main__":
    found = {"bank": bank, "basis": basis, "products": products}[sys.argv[1]](**json.loads(sys.argv[2]))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps(found))
