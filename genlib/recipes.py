"""All that defines a training run, in two frozen dataclasses that check themselves."""

import dataclasses
import math

from genlib import results

NEIGHBORS = "add-or-remove"


@dataclasses.dataclass(frozen=True)
class Privacy:
    """A wanted privacy guarantee for one training run.

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
    neighbors : {"add-or-remove"}
        What the guarantee compares: training with one patient and without.

    Raises
    ------
    ValueError
        Naming the value, the limit and the way out.

    Examples
    --------
    >>> Privacy(epsilon=3.0)
    Privacy(epsilon=3.0, delta=1e-05, clip_norm=1.0, noisy_mean=False, neighbors='add-or-remove')
    >>> Privacy(epsilon=0)
    Traceback (most recent call last):
    ValueError: epsilon=0: must be a finite number above 0; ...
    """

    epsilon: float
    delta: float = 1e-5
    clip_norm: float = 1.0
    noisy_mean: bool = False
    neighbors: str = NEIGHBORS

    def __post_init__(self):
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(
                f"epsilon={self.epsilon}: must be a finite number above 0; leave privacy out (None) to train without"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: must be above 0 and below 1/n, as 1e-5")
        if not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ValueError(f"clip_norm={self.clip_norm}: must be a finite number above 0, as 1.0")
        if self.neighbors != NEIGHBORS:
            raise ValueError(f"neighbors='{self.neighbors}' is not supported; choose '{NEIGHBORS}'")


@dataclasses.dataclass(frozen=True)
class Clustering:
    """The second phase of DeepType: rounds of K-means on what the last layer works on.

    Each round fits centers to the members' representation; then training goes on with `weight` times the mean squared
    distance to one's center added to the loss. Centers are learned from patients, so no epsilon covers them.

    Parameters
    ----------
    weight : float
        Alpha of the paper.
    n_clusters : int
    rounds : int
    epochs : int
        Passes over the members a round.

    Raises
    ------
    ValueError
        Naming the value and the limit.

    References
    ----------
    Chen, Yang, Goodison, Sun: "Deep-learning approach to identifying cancer subtypes using high-dimensional genomic
    data", Bioinformatics 36(5), 2020.

    Examples
    --------
    >>> Clustering(rounds=0)
    Traceback (most recent call last):
    ValueError: rounds=0: must be a whole number of at least 1
    """

    weight: float = 1.2
    n_clusters: int = 11
    rounds: int = 100
    epochs: int = 50

    def __post_init__(self):
        for name in ("n_clusters", "rounds", "epochs"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name}={getattr(self, name)}: must be a whole number of at least 1")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight={self.weight}: must be a finite number of at least 0")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Parameters
    ----------
    architecture : str
        Name in `genlib.models.ARCHITECTURES`: ``"softmax"``, ``"mlp"``, ``"deeptype"`` or ``"cnn"``.
    hidden : tuple of int
        Widths of the hidden layers (``"softmax"`` has none).
    epochs : int
        Passes over the members; a fixed number unless `patience` is set.
    batch_size : int or None
        Patients a step; None takes all members in every step (full batch).
    optimizer : {"sgd", "adam"}
    learning_rate, momentum : float
        Momentum is for ``"sgd"``.
    l2 : float
        Weight decay: l2 times the squared norm of all kernels is added to the mean loss.
    dropout : float
        Share of hidden units dropped while training, from 0 to below 1.
    label_smoothing : float
        Share a of the target that is spread evenly over all classes, from 0 to below 1.
    confidence_penalty : float
        Above 0, so many times the entropy of each answer is taken off the loss.
    mixup : float
        Above 0, patients are mixed in pairs with shares drawn from Beta(mixup, mixup), once a step.
    relax : float
        Above 0, the mean loss of a batch that training holds to instead of going below (RelaxLoss).
    l1 : float
        Strength of the lasso on the first kernel: entries become exactly zero. For this and `group` the strength grows
        over the first quarter of the steps.
    group : float
        Strength of the group lasso on the first kernel: genes are given up as a whole.
    adversary : float
        Above 0, strength of adversarial regularization; its reference patients are the reserved ones.
    clustering : Clustering, optional
        Second phase with K-means, as DeepType has it; a mapping of its parameters will do.
    class_weights : tuple of float, optional
        Weight of each class's loss. With privacy from published prevalence, never from the members' own counts.
    patience : int
        0: no early stopping. Else training ends when the loss on *reserved* patients has not fallen for so many
        epochs, and the best weights are kept.
    average : float
        Share of the last steps whose weights are averaged, from 0 (the last weights as they are) to 1; for private
        training, where it takes out some of the noise at no cost.
    privacy : Privacy or None
        Train by DP-SGD under this guarantee. `batch_size` is then the mean size of Poisson batches.

    Raises
    ------
    ValueError
        Naming the value, the limit and the way out.

    Examples
    --------
    >>> Recipe("mlp", hidden=(64,), epochs=10).batch_size
    32
    >>> Recipe("mlp", dropout=1.0)
    Traceback (most recent call last):
    ValueError: dropout=1.0: must be at least 0 and below 1
    """

    architecture: str = "mlp"
    hidden: tuple = (256,)
    epochs: int = 30
    batch_size: int | None = 32
    optimizer: str = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.0
    l2: float = 0.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    confidence_penalty: float = 0.0
    mixup: float = 0.0
    relax: float = 0.0
    l1: float = 0.0
    group: float = 0.0
    adversary: float = 0.0
    clustering: Clustering | None = None
    class_weights: tuple | None = None
    patience: int = 0
    average: float = 0.0
    privacy: Privacy | None = None

    def __post_init__(self):
        # Softmax regression has no hidden layer, whatever is said of it.
        object.__setattr__(self, "hidden", () if self.architecture == "softmax" else tuple(self.hidden))
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(weight) for weight in self.class_weights))
            if not all(weight >= 0 and math.isfinite(weight) for weight in self.class_weights):
                raise ValueError(f"class_weights={self.class_weights}: must be finite numbers of at least 0")
        if isinstance(self.clustering, dict):
            object.__setattr__(self, "clustering", Clustering(**self.clustering))
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer='{self.optimizer}' is not known; choose 'sgd' or 'adam'")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not (name == "batch_size" and value is None) and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}={value}: must be a whole number of at least 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate={self.learning_rate}: must be a finite number above 0")
        for name in ("momentum", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 and below 1")
        for name in ("l2", "confidence_penalty", "mixup", "relax", "l1", "group", "adversary"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number of at least 0")
        self._check_together()
        if self.patience < 0:
            raise ValueError(f"patience={self.patience}: must be at least 0 (0: no early stopping)")
        if not 0 <= self.average <= 1:
            raise ValueError(f"average={self.average}: must be at least 0 and at most 1")

    def _check_together(self):
        """Refuse what does not go together, each with its reason."""
        if self.average and not self.privacy:
            raise ValueError(f"average={self.average}: only private training averages its weights; set it to 0")
        if self.privacy and self.privacy.noisy_mean and self.batch_size is not None:
            raise ValueError(
                f"batch_size={self.batch_size} with noisy_mean: it is accounted for with full batches only"
            )
        if self.privacy and self.patience:
            raise ValueError("early stopping is not covered by the guarantee; set patience=0 or privacy=None")
        if (self.mixup or self.relax) and (self.privacy or self.label_smoothing or self.class_weights):
            raise ValueError("mixup and relax are for training without privacy, label smoothing and class weights")
        if self.mixup and self.relax:
            raise ValueError(f"mixup={self.mixup} with relax={self.relax}: choose one of the two")
        if self.relax and self.confidence_penalty:
            raise ValueError(
                f"relax={self.relax} with confidence_penalty={self.confidence_penalty}: choose one of the two"
            )
        if self.momentum and (self.l1 or self.group or self.optimizer == "adam"):
            raise ValueError(
                f"momentum={self.momentum}: the proximal step of l1 and group, and Adam, go without; set it to 0"
            )
        if self.l1 and self.group:
            raise ValueError(f"l1={self.l1} with group={self.group}: choose one of the two")
        if self.architecture == "cnn" and (self.l1 or self.group):
            raise ValueError(
                "sparsity gives up genes, and a convolution shares its kernels over them; set l1, group to 0"
            )
        if self.architecture == "softmax" and self.dropout:
            raise ValueError(f"dropout={self.dropout}: softmax regression has no hidden units to drop; set it to 0")
        if self.architecture != "softmax" and not all(isinstance(units, int) and units >= 1 for units in self.hidden):
            raise ValueError(f"hidden={self.hidden}: must be whole numbers of at least 1")
        if self.clustering and (self.mixup or self.adversary):
            raise ValueError("the K-means rounds go without mixup and adversarial regularization; set clustering=None")
        if self.class_weights and (
            self.l1 or self.group or self.adversary or self.clustering or self.architecture == "cnn"
        ):
            raise ValueError(
                "class weights are for dense networks without sparsity, clustering and adversary; leave them out"
            )
        if self.patience and (self.l1 or self.group or self.adversary or self.clustering):
            raise ValueError("early stopping goes without sparsity, clustering and adversary; set patience=0")
        if self.privacy:
            self._check_private()

    def _check_private(self):
        if self.clustering:
            raise ValueError(
                "K-means centers are learned from patients, which no epsilon here covers; set clustering=None"
            )
        if self.adversary or self.confidence_penalty or self.l1:
            raise ValueError("private training goes without adversary, confidence_penalty and l1; set them to 0")
        if self.architecture == "cnn":
            raise ValueError(
                "architecture='cnn' shares its kernels over the genes, and their gradients for each patient are not "
                "known here; train 'mlp', 'softmax' or 'deeptype' privately"
            )

    def digest(self):
        """Name this recipe by its content: 16 hexadecimal digits, the same in every process.

        Examples
        --------
        >>> Recipe().digest() == Recipe(hidden=[256]).digest() != Recipe(l2=0.1).digest()
        True
        """
        return results.digest(dataclasses.asdict(self))[:16]
