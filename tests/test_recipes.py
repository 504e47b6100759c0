import dataclasses

import pytest

from genlib.recipes import Clustering, Privacy, Recipe

CHANGED = {
    "architecture": "softmax", "hidden": (8,), "epochs": 7, "batch_size": None, "optimizer": "adam", "l2": 0.1,
    "learning_rate": 0.5, "momentum": 0.5, "dropout": 0.1, "label_smoothing": 0.1, "patience": 3,
    "confidence_penalty": 0.1, "mixup": 0.2, "relax": 0.5, "l1": 0.01, "group": 0.01, "adversary": 1.0,
    "clustering": Clustering(), "class_weights": (1.0, 2.0), "average": 0.5, "privacy": Privacy(1.0),
}  # fmt: skip


def test_every_field_is_tried_below():
    assert set(CHANGED) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_counts_in_the_digest(name):
    base = Recipe(privacy=Privacy(2.0)) if name == "average" else Recipe()
    assert dataclasses.replace(base, **{name: CHANGED[name]}).digest() != base.digest()


@pytest.mark.parametrize("change", [{"epsilon": 2.0}, {"delta": 1e-6}, {"clip_norm": 2.0}, {"noisy_mean": True}])
def test_so_does_every_field_of_the_guarantee(change):
    private = Recipe(batch_size=None, privacy=Privacy(1.0))
    other = Recipe(batch_size=None, privacy=dataclasses.replace(Privacy(1.0), **change))
    assert private.digest() != other.digest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"epochs": None}, "epochs=None"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"optimizer": "rmsprop"}, "'sgd' or 'adam'"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"l2": -1}, "l2=-1"),
        ({"patience": -1}, "patience=-1"),
        ({"average": 0.5}, "only private training averages"),
        ({"average": 1.5, "privacy": Privacy(1.0)}, "average=1.5"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"mixup": -0.1}, "mixup=-0.1"),
        ({"relax": float("nan")}, "relax=nan"),
        ({"mixup": 0.2, "relax": 0.5}, "choose one of the two"),
        ({"mixup": 0.2, "label_smoothing": 0.1}, "without privacy, label smoothing"),
        ({"confidence_penalty": 0.1, "relax": 0.5}, "choose one of the two"),
        ({"l1": 0.1, "group": 0.1}, "choose one of the two"),
        ({"group": 0.1, "momentum": 0.9}, "go without; set it to 0"),
        ({"optimizer": "adam", "momentum": 0.9}, "go without; set it to 0"),
        ({"architecture": "cnn", "group": 0.1}, "shares its kernels"),
        ({"architecture": "softmax", "dropout": 0.1}, "no hidden units to drop"),
        ({"clustering": {}, "mixup": 0.1}, "set clustering=None"),
        ({"clustering": {"rounds": 0}}, "rounds=0"),
        ({"clustering": {"weight": -1.0}}, "weight=-1.0"),
        ({"class_weights": (1.0, 2.0), "group": 0.1}, "class weights are for"),
        ({"patience": 2, "adversary": 1.0}, "set patience=0"),
        ({"privacy": Privacy(1.0), "clustering": {}}, "learned from patients"),
        ({"privacy": Privacy(1.0), "l1": 0.1}, "set them to 0"),
        ({"privacy": Privacy(1.0), "adversary": 0.1}, "set them to 0"),
        ({"privacy": Privacy(1.0), "architecture": "cnn"}, "shares its kernels over the genes"),
        ({"privacy": Privacy(1.0, noisy_mean=True)}, "batch_size=32 with noisy_mean"),
        ({"patience": 2, "privacy": Privacy(1.0)}, "early stopping is not covered"),
    ],
)
def test_a_value_that_cannot_be_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": -1}, "epsilon=-1"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"epsilon": 1, "delta": 0}, "delta=0"),
        ({"epsilon": 1, "delta": 1}, "delta=1"),
        ({"epsilon": 1, "clip_norm": 0}, "clip_norm=0"),
        ({"epsilon": 1, "neighbors": "replace"}, "'replace' is not supported"),
    ],
)
def test_a_guarantee_that_cannot_be_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        Privacy(**change)


def test_a_recipe_cannot_be_changed_behind_its_digest():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3


def test_a_mapping_from_a_profile_makes_the_clustering():
    assert Recipe(clustering={"rounds": 3}).clustering == Clustering(rounds=3)
