"""The models of a bank on the workers of a Dask cluster.

Every model depends on the seed and its own number alone, so it does not matter where it is trained. What is sent is
the features, and what comes back is logits; nothing is written on a worker. Dask sends Python objects and runs code:
use a cluster that is yours, on a network that you trust.
"""

import os

import distributed
import numpy as np

from genlib import results

VARIABLE = "GENLIB_SCHEDULER"  # environment variable with the scheduler's address
CHUNKS_A_WORKER = 4  # a worker that dies costs a quarter of its share at most
PATIENCE = 30  # seconds to wait for a scheduler and its first worker

_compared = set()


def threads():
    """Count the threads that one process may use: a Dask worker's own, or the cores this process may run on.

    Returns
    -------
    int

    Examples
    --------
    >>> threads() >= 1
    True
    """
    try:
        return distributed.get_worker().state.nthreads
    except ValueError:
        return len(os.sched_getaffinity(0))


def connect(address):
    """Reach a scheduler, and see that its workers have this very code.

    Parameters
    ----------
    address : str
        As ``"tcp://10.0.0.7:8786"``.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ConnectionError
        When nobody answers within 30 seconds, or there is no worker.
    RuntimeError
        When a worker has another version of genlib or of TensorFlow.

    Examples
    --------
    >>> connect("tcp://127.0.0.1:9")  # doctest: +SKIP
    """
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
        client.wait_for_workers(1, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler with a worker at {address}: {error}. Start them with 'dask scheduler' and 'dask worker "
            "ADDRESS', in this environment, or leave --scheduler out"
        ) from error
    versions = client.run(_version)
    others = sorted({worker for worker, version in versions.items() if version != _version()})
    if others:
        client.close()
        raise RuntimeError(
            f"{len(others)} of {len(versions)} workers have another genlib or other packages than this machine: "
            f"{', '.join(others[:3])}. Install the same checkout there, and start them anew"
        )
    return client


def _version():
    import tensorflow as tf

    return results.code_digest(), tf.__version__, np.__version__


def chunks(models, n_workers):
    """Split models into pieces of nearly the same size, a few for each worker.

    Examples
    --------
    >>> chunks([0, 1, 2, 3, 4, 5, 6], n_workers=1)
    [[0, 1], [2, 3], [4, 5], [6]]
    """
    pieces = min(len(models), CHUNKS_A_WORKER * n_workers)
    return [list(map(int, piece)) for piece in np.array_split(models, pieces)]


def spread(train, models, address):
    """Train models on a cluster, and give each as it is finished.

    Parameters
    ----------
    train : callable
        Takes a list of model numbers, and gives pairs of a number and a dict of arrays; can be pickled.
    models : list of int
    address : str
        Of the scheduler.

    Yields
    ------
    int, dict of numpy.ndarray
        In the order in which they come. The first model is trained here as well, and how far both are apart is
        printed, once a process: it is nothing where processor and threads are the same.

    Raises
    ------
    ConnectionError, RuntimeError
        As `connect`.

    Examples
    --------
    >>> list(spread(train, [0, 1], "tcp://10.0.0.7:8786"))  # doctest: +SKIP
    """
    with connect(address) as client:
        n_workers = len(client.scheduler_info()["workers"])
        shared = client.scatter(train, broadcast=True)
        # A worker that dies takes its chunk with it, which another then does.
        waiting = client.map(_train_chunk, chunks(models, n_workers), train=shared, pure=False)
        for future in distributed.as_completed(waiting, loop=client.loop):
            for m, answer in future.result():
                if m == models[0] and address not in _compared:
                    _compared.add(address)
                    _compare(answer, dict(train([m]))[m], n_workers)
                yield m, answer
            future.release()


def _train_chunk(chunk, train):
    return list(train(chunk))


def _compare(theirs, ours, n_workers):
    apart = float(np.abs(theirs["logits"] - ours["logits"]).max())
    same = "the same bit for bit" if apart == 0 else f"apart by {apart:.1e} at most"
    print(f"Dask cluster of {n_workers} workers; logits of the first model there and here are {same}", flush=True)
    limit = 1e-4 * max(1.0, float(np.abs(ours["logits"]).max()))
    if apart > limit:
        raise RuntimeError(
            f"the workers' logits are {apart:.1e} from this machine's, more than rounding explains ({limit:.0e}); are "
            "processors or packages of another kind? Train on one kind, or leave --scheduler out"
        )
