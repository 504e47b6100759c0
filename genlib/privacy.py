"""The guarantee: how much noise a wanted epsilon needs, what it bounds, what it says in words, and its release."""

import dataclasses
import functools
import math
import pathlib

import dp_accounting
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
import tensorflow as tf
from dp_accounting import pld
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

from genlib import bank
from genlib.networks import refuse

K = tf.keras
# Privacy losses are rounded up to a grid: coarser than the library's own, ten times faster, and never optimistic.
GRID = {"value_discretization_interval": 1e-3}
ACCOUNTANT = functools.partial(pld.PLDAccountant, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, **GRID)
STATEMENT = pathlib.Path(__file__).parent / "data" / "privacy_statement.txt"


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What DP-SGD does to gradients, in plain numbers.

    Attributes
    ----------
    clip_norm : float
        Bound C on each patient's gradient; infinite for no clipping.
    noise : float
        Standard deviation of the noise on each coordinate of the sum, noise multiplier times clip norm.
    rate : float
        Chance q with which each patient is in a step's batch, by itself; 1 for full batches.
    steps : int
    divisor : float
        What the noisy sum is divided by: the constant q n, with the nominal n.
    mean_noise : float
        Noise multiplier of one more release, the members' mean features, which centers them; 0 for none.
    same_mask : bool
        False plants a fault: norms are taken without dropout, as TF-Privacy's fast clipping does.
    fresh_batches : bool
        False plants a fault: the batch of the first step serves in all steps.
    """

    clip_norm: float
    noise: float
    rate: float
    steps: int
    divisor: float
    mean_noise: float = 0.0
    same_mask: bool = True
    fresh_batches: bool = True

    @property
    def noise_multiplier(self):
        """Standard deviation of the noise over the clip norm."""
        return self.noise / self.clip_norm

    @property
    def releases(self):
        """Noisy sums that are taken from the patients: one a step, and one for a noisy mean."""
        return self.steps + bool(self.mean_noise)


@dataclasses.dataclass(frozen=True)
class Privacy:
    """A wanted privacy guarantee for one training run, for neighbors that differ by adding or removing one patient.

    Parameters
    ----------
    epsilon : float
        Budget, above 0; smaller is more private.
    delta : float
        Chance with which the epsilon may fail, above 0 and below 1/n (checked once n is known).
    clip_norm : float
        Bound C on the Euclidean norm of each patient's gradient.
    noisy_mean : bool
        Spend one release, like one step, on the mean of the members' features, to center them.

    Examples
    --------
    >>> Privacy(epsilon=0)
    Traceback (most recent call last):
    ValueError: epsilon=0: must be a finite number above 0; ...
    """

    epsilon: float
    delta: float = 1e-5
    clip_norm: float = 1.0
    noisy_mean: bool = False

    def __post_init__(self):
        way_out = "leave privacy out (None) to train without"
        refuse(not 0 < self.epsilon < math.inf, f"epsilon={self.epsilon}: must be a finite number above 0; {way_out}")
        refuse(not 0 < self.delta < 1, f"delta={self.delta}: must be above 0 and below 1/n, as 1e-5")
        refuse(
            not 0 < self.clip_norm < math.inf, f"clip_norm={self.clip_norm}: must be a finite number above 0, as 1.0"
        )

    def mechanism(self, n, epochs, batch_size=None, fault=None):
        """Noise, sampling rate and steps that keep this guarantee: a `Mechanism`.

        Its noise multiplier is the smallest whose epsilon is at most this one's, to three parts in a thousand.

        Parameters
        ----------
        n : int
            Nominal number of members; delta must be below 1/n.
        epochs : int
        batch_size : int, optional
            Expected size of a Poisson batch; by default full batches, which a noisy mean needs.
        fault : callable, optional
            Breaks the mechanism on purpose; see `genlib.audit.FAULTS`.

        Examples
        --------
        >>> plan = Privacy(3.0, clip_norm=2.0).mechanism(n=384, epochs=30, batch_size=32)
        >>> plan.steps, plan.divisor, 2.97 < accountant_epsilon(plan.noise_multiplier, 360, 1e-5, 1 / 12) <= 3.0
        (360, 32.0, True)
        """
        batches, most = f"batch_size={batch_size}", 1 / n
        refuse(self.delta >= most, f"delta={self.delta}: must be below 1/n = {most:.2g} for n={n} patients, as 1e-5")
        refuse((batch_size or 0) > n, f"{batches} for n={n} patients: set batch_size=None for full batches")
        refuse(batch_size and self.noisy_mean, f"{batches} with noisy_mean: set batch_size=None for full batches")
        rate = 1.0 if batch_size is None else batch_size / n
        steps = epochs * math.ceil(1 / rate - 1e-9)
        sigma = _calibrated(self.epsilon, self.delta, steps + self.noisy_mean, rate)
        plan = Mechanism(self.clip_norm, sigma * self.clip_norm, rate, steps, rate * n, sigma * self.noisy_mean)
        return fault(plan) if fault else plan


@dataclasses.dataclass(frozen=True)
class Center:
    """Where features are centered: at a noisy mean of the members, moved by what is public.

    Attributes
    ----------
    lean : numpy.ndarray
        (d,) public direction from the wanted origin to the mean of a cohort.
    share : float
        How far along it, squared: times the features' variance it gives the squared factor of `lean`.
    radius : float
        Bound R on the features' norms; longer ones are cut to it.
    """

    lean: np.ndarray
    share: float
    radius: float

    def offset(self, members, plan, rng):
        """Spend one release on the mean of the members' (m, d) features, and say what to subtract from all: (d,).

        Examples
        --------
        >>> center = Center(np.array([1.0, 0.0]), share=0.0, radius=2.0)
        >>> plan = Mechanism(1.0, 0.0, 1.0, steps=1, divisor=2)
        >>> center.offset(np.array([[3.0, 0.0], [1.0, 0.0]]), plan, np.random.default_rng(0))
        array([1.5, 0. ])
        """
        n = plan.divisor / plan.rate
        norms = np.linalg.norm(members, axis=1, keepdims=True)
        cut = members * np.minimum(1, self.radius / np.maximum(norms, np.finfo(np.float32).tiny))
        noise = plan.mean_noise * self.radius / n
        mean = cut.sum(axis=0) / n + noise * rng.standard_normal(members.shape[1])
        # All profiles have the same norm, so their variance follows from the mean's; what the noise adds is taken off.
        variance = max(self.radius**2 - mean @ mean + len(mean) * noise**2, 1.0)
        return mean - np.sqrt(self.share * variance) * self.lean


def accountant_epsilon(noise_multiplier, steps, delta, rate=1.0):
    """Epsilon of DP-SGD by the accountant for privacy loss distributions, add-or-remove neighbors.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the clip norm, above 0.
    steps : int
    delta : float
    rate : float
        Chance with which each patient is in a step's batch (Poisson sampling); 1 for full batches.

    References
    ----------
    Koskela, Jälkö, Honkela: "Computing tight differential privacy guarantees using FFT", AISTATS 2020; the code is
    `dp_accounting.pld`.

    Examples
    --------
    >>> round(accountant_epsilon(10.0, steps=30, delta=1e-5), 2)
    2.21
    >>> round(accountant_epsilon(3.0, steps=360, delta=1e-5, rate=1 / 12), 2)
    2.25
    """
    found = f"noise_multiplier={noise_multiplier}, steps={steps}, rate={rate}"
    wrong = noise_multiplier <= 0 or steps < 1 or not 0 < rate <= 1
    refuse(wrong, f"{found}: the first two must be above 0, the rate above 0 and at most 1")
    return ACCOUNTANT().compose(_event(noise_multiplier, steps, rate)).get_epsilon(delta)


def _event(noise_multiplier, steps, rate):
    step = dp_accounting.GaussianDpEvent(noise_multiplier)
    sampled = step if rate >= 1 else dp_accounting.PoissonSampledDpEvent(rate, step)
    return dp_accounting.SelfComposedDpEvent(sampled, steps)


@functools.lru_cache(maxsize=256)
def _calibrated(epsilon, delta, steps, rate):
    event = functools.partial(_event, steps=steps, rate=rate)
    return dp_accounting.calibrate_dp_mechanism(ACCOUNTANT, event, epsilon, delta, tol=1e-3)


def trade_off(fpr, noise_multiplier, steps):
    """Largest true positive rate that any membership attack can have against full-batch DP-SGD with this noise.

    It is Phi(Phi^-1(fpr) + sqrt(steps) / noise_multiplier), and exact: all steps together are one Gaussian mechanism.
    With Poisson batches, which only hide more, it holds too. `fpr`, in [0, 1], may be an array.

    References
    ----------
    Dong, Roth, Su: "Gaussian differential privacy", JRSS B 84(1), 2022, equation 6 and corollary 3.3.

    Examples
    --------
    >>> trade_off(0.1, noise_multiplier=10.0, steps=30).round(3)
    0.232
    """
    return scipy.stats.norm.cdf(scipy.stats.norm.ppf(fpr) + np.sqrt(steps) / noise_multiplier)


def gaussian_delta(mu, epsilon):
    """Smallest delta for which N(0, 1) and N(mu, 1) are (epsilon, delta)-indistinguishable (Balle, Wang, ICML 2018)."""
    far = scipy.special.log_ndtr(-mu / 2 - epsilon / mu)
    return scipy.special.ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + far)


def calibrate(tpr, fpr=0.01, delta=1e-5, **options):
    """Least promise, for full batches, under which no attack finds more than a tolerated share of the members.

    One (epsilon, delta) alone bounds attacks poorly; the whole trade-off curve of Gaussian noise asks for less of it.

    Parameters
    ----------
    tpr, fpr : float
        Tolerated share of members found, where this share of non-members is accused; 0 < fpr < tpr < 1.
    delta : float
    **options
        Of `Privacy`, which is returned, as ``clip_norm``.

    References
    ----------
    Kulynych et al.: "Attack-aware noise calibration for differential privacy", NeurIPS 2024, arXiv 2407.02191.

    Examples
    --------
    >>> promise = calibrate(0.03, 0.01)
    >>> round(promise.epsilon, 2), trade_off(0.01, promise.mechanism(384, 60).noise_multiplier, 60).round(3)
    (1.75, 0.03)
    """
    refuse(not 0 < fpr < tpr < 1, f"tpr={tpr}, fpr={fpr}: give 0 < fpr < tpr < 1, as 0.03 and 0.01")
    mu = scipy.stats.norm.ppf(tpr) - scipy.stats.norm.ppf(fpr)
    epsilon = scipy.optimize.brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0, mu**2 / 2 + 40 * mu)
    return Privacy(epsilon, delta, **options)


def statement(privacy, plan, panel=None, released=False):
    """Say in words what a guarantee is and what it does not cover.

    Parameters
    ----------
    privacy : Privacy or None
    plan : Mechanism or None
        From `privacy.mechanism`.
    panel : str, optional
        Name of the published gene panel that was used.
    released : bool
        True for a model from `release`; else a study run, whose noise follows from its seed.

    Examples
    --------
    >>> print(statement(None, None))
    No privacy guarantee: the model was trained without differential privacy.
    """
    if privacy is None:
        return "No privacy guarantee: the model was trained without differential privacy."
    sigma, rate = plan.noise_multiplier, plan.rate
    words = {
        "epsilon": accountant_epsilon(sigma, plan.releases, privacy.delta, rate),
        "mean": " and one noisy mean of the features" if privacy.noisy_mean else "",
        "genes": f"the published {panel} panel" if panel else "all genes that were given",
        "batches": "full batches" if rate == 1 else f"Poisson batches, sampling rate {rate:.4g}",
    }
    # The guarantee, then how the noise came about in a study run and in a release.
    text, studied, unseeded = STATEMENT.read_text(encoding="utf-8").split("\n\n")
    text = text.format(privacy=privacy, plan=plan, n=plan.divisor / rate, **words)
    return " ".join(f"{text} {unseeded if released else studied}".split())


def release(model, x, labels, privacy, n, epochs, batch_size=None, **options):
    """Train one private model on all patients, with noise that nobody can repeat, and return it with its statement.

    Start, batches, masks and noise come from the operating system's entropy; no seed is written and nothing is kept on
    disk. Where the model was trained in its patients' span, its weights get the noise that training on features would
    have left outside of it: without it, they would show who spans it.

    Parameters
    ----------
    model, x, labels, epochs, batch_size
        As in `genlib.bank.train`; all patients train.
    privacy : Privacy
    n : int
        Nominal number of patients: a public, round figure rather than the exact count.
    **options
        ``start``, ``center``, ``class_weight`` and ``average`` of `genlib.bank.train`.

    Examples
    --------
    >>> from genlib import networks
    >>> x = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    >>> model, words = release(networks.softmax(60, 2), x, np.arange(40) % 2, Privacy(3.0), n=40, epochs=5)
    >>> model.output_shape, words[:25]
    ((None, 2), '(epsilon, delta) = (3.00,')
    """
    refuse(privacy is None, "privacy=None: a release needs a guarantee; give Privacy(epsilon)")
    plan, everybody = privacy.mechanism(n, epochs, batch_size), np.ones((1, len(labels)), bool)
    options |= {"epochs": epochs, "batch_size": batch_size, "privacy": privacy, "n": n}
    return bank.fit(model, x, labels, everybody, seed=None, **options), statement(privacy, plan, released=True)


# TF-Privacy's own DP-SGD. Only full batches: its `fit` shuffles, where accounting for smaller ones assumes Poisson.

# Layers for which its fast clipping takes the norm of the very gradient that it applies. A list of what is allowed, not
# of what is refused: a layer that nobody thought of is refused.
CLIPPED_LAYERS = (K.layers.InputLayer, K.layers.Dense, K.layers.ReLU)
CLIPPED_ACTIVATIONS = tuple(getattr(K.activations, name) for name in ("linear", "relu", "sigmoid", "tanh", "elu"))


def refuse_unclipped(model):
    """Refuse, by name, a layer for which TF-Privacy's fast clipping would not clip every patient's gradient.

    Its norms are taken in another forward pass than its gradients, so a layer that draws random numbers makes the two
    differ; a layer used twice has a gradient that is longer than its two parts; batch statistics mix patients.

    Examples
    --------
    >>> from genlib import networks
    >>> refuse_unclipped(networks.mlp(20, 3))
    >>> refuse_unclipped(networks.mlp(20, 3, dropout=0.2))
    Traceback (most recent call last):
    ValueError: layer 'dropout...' (Dropout): fast clipping does not bound its gradients with ...
    """
    for layer in model.layers:
        parts = [getattr(layer, f"{part}_regularizer", None) for part in ("kernel", "bias", "activity")]
        clipped = (
            type(layer) in CLIPPED_LAYERS
            and getattr(layer, "activation", None) in (None, *CLIPPED_ACTIVATIONS)
            and parts == [None] * 3
            and len(layer.inbound_nodes) < 2
        )
        named = f"layer '{layer.name}' ({type(layer).__name__})"
        unbounded = "fast clipping does not bound its gradients with the activation, regularizers and uses that it has"
        refuse(not clipped, f"{named}: {unbounded}; leave it out, or train with genlib.bank, which clips it")


def tf_privacy_model(model, plan, seed):
    """The same network as TF-Privacy's `DPModel`; its `fit` on full batches, a step an epoch, is what is accounted for.

    The clipped gradients are summed, given noise and divided by the nominal number of members. Start and noise follow
    from the seed: this is a study run, not for release. Whatever would train otherwise is refused.
    """
    optimizer, loss = model.optimizer, model.loss
    shuffled = "TF-Privacy's fit shuffles where the accountant assumes Poisson sampling"
    refuse(plan.rate < 1, f"{shuffled}: set batch_size=None")
    usual = type(optimizer) is K.optimizers.SGD and type(loss) is K.losses.SparseCategoricalCrossentropy
    refuse(not usual, "TF-Privacy trains here with SGD and SparseCategoricalCrossentropy alone; compile the model so")
    refuse_unclipped(model)
    clone, registry = bank.clone(model, seed), layer_registry.make_default_layer_registry()
    options = {"l2_norm_clip": plan.clip_norm, "noise_multiplier": plan.noise_multiplier, "layer_registry": registry}
    private = DPModel(inputs=clone.inputs, outputs=clone.outputs, use_xla=False, **options)
    slow = not private._enable_fast_peg_computation
    refuse(slow, "TF-Privacy took its slow path, which divides by the drawn number of members")
    config = optimizer.get_config() | {"learning_rate": float(optimizer.learning_rate) / plan.divisor}
    # The fast path adds its noise to the sum of a reduced loss.
    summed = type(loss)(loss.get_config()["from_logits"], reduction="sum")
    private.compile(K.optimizers.SGD.from_config(config), summed)
    return private


def tf_privacy(model, x, labels, members, privacy, n, epochs, seed):
    """Train one model for each row of `members` by TF-Privacy's own DP-SGD, full batches: logits (M, n, k) float32.

    One `DPModel` is started anew for every model, since a new one would be traced again. Its noise goes on where that
    of the former model ended, so a model depends on those before it.

    Parameters
    ----------
    model, x, labels, members, seed
        As in `genlib.bank.train`; what `refuse_unclipped` refuses is not trained.
    privacy : Privacy
    n : int
        Nominal number of members.
    epochs : int
        Each is one step.

    Examples
    --------
    >>> from genlib import networks
    >>> x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    >>> members = np.arange(40) % 4 > np.array([[0], [1]])
    >>> tf_privacy(networks.softmax(8, 2), x, np.arange(40) % 2, members, Privacy(3.0), n=20, epochs=2, seed=0).shape
    (2, 40, 2)
    """
    plan, logits = privacy.mechanism(n, epochs), np.empty((*members.shape, model.output_shape[-1]), np.float32)
    seeds = [int(state) >> 1 for state in np.random.SeedSequence([seed, 30]).generate_state(1 + len(members))]
    starts = [bank.clone(model, one).get_weights() for one in seeds[1:]]
    private = tf_privacy_model(model, plan, seeds[0])  # the last to set TensorFlow's seed: its noise begins here
    private.optimizer.build(private.trainable_variables)
    for m, who in enumerate(members):
        private.set_weights(starts[m])
        for speed in private.optimizer.momentums:
            speed.assign(tf.zeros_like(speed))
        # A batch that tells its size only as it comes: one trace serves all numbers of members.
        everybody = tf.data.Dataset.from_tensor_slices((x[who], labels[who])).batch(len(labels))
        private.fit(everybody.cache().repeat(plan.steps), verbose=0)
        logits[m] = private(x, training=False)
    return logits
