"""A model of one's own: files that must not run, names that must agree, and who is found."""

import os
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from genlib import attacks, bank, cohorts, judge, membership, networks, privacy, results

K = tf.keras
GENES, CLASSES = [f"G{i}" for i in range(30)], ["a", "b", "c"]


def small(last=None, loss=None, optimizer="adam"):
    layers = [K.layers.Dense(8), K.layers.LeakyReLU(), K.layers.Dense(3, last)]
    model = K.Sequential([K.Input((30,)), *layers])
    model.compile(optimizer, loss or K.losses.SparseCategoricalCrossentropy(from_logits=last is None))
    return model


def beside(folder, genes=GENES, classes=CLASSES):
    (folder / "genes.txt").write_text("\n".join(genes))
    (folder / "classes.txt").write_text("\n".join(classes))


class TestRead:
    @pytest.mark.parametrize("name", ["m.keras", "m.h5"])
    @pytest.mark.parametrize("last", [None, "softmax"])
    def test_the_model_answers_and_learns_as_it_was_saved(self, tmp_path, name, last):
        model = small(last, optimizer=K.optimizers.SGD(0.3, momentum=0.5, nesterov=True))
        x, y = np.random.default_rng(0).normal(size=(20, 30)).astype("f"), np.arange(20) % 3
        model.fit(x, y, verbose=0)
        beside(tmp_path)
        model.save(tmp_path / name)
        found = judge.read(tmp_path / name)
        assert found.genes == GENES and found.classes == CLASSES
        np.testing.assert_array_equal(found.model.predict(x, verbose=0), model.predict(x, verbose=0))
        assert found.model.optimizer.get_config() == model.optimizer.get_config()

    def test_one_without_optimizer_is_opened_uncompiled(self, tmp_path):
        beside(tmp_path)
        K.Sequential([K.Input((30,)), K.layers.Dense(3)]).save(tmp_path / "m.keras")
        assert judge.read(tmp_path / "m.keras").model.optimizer is None

    @pytest.mark.parametrize("name", ["m.keras", "m.h5"])
    def test_code_in_a_file_does_not_run(self, tmp_path, name):
        beside(tmp_path)
        ran = str(tmp_path / "ran")
        evil = K.Sequential([K.Input((30,)), K.layers.Lambda(lambda t: (open(ran, "w"), t)[1]), K.layers.Dense(3)])
        evil.save(tmp_path / name)
        os.unlink(ran)
        with pytest.raises(ValueError, match="'Lambda' of .* may run code.*build the model from Keras' own layers"):
            judge.read(tmp_path / name)
        assert not os.path.exists(ran)
        if name == "m.h5":
            K.models.load_model(tmp_path / name, safe_mode=True)
            assert os.path.exists(ran)  # Keras runs it

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace('"Dense"', '"function"', 1),
            lambda text: text.replace('"module": "keras.layers"', '"module": "os"', 1),
            lambda text: text.replace('"activation": "linear"', '"activation": {"class_name": "__lambda__"}', 1),
            lambda text: text.replace('"Adam"', '"Mine"').replace('"adam"', '{"class_name": "Mine", "config": {}}'),
        ],
    )
    def test_a_class_or_module_that_is_not_keras_own_is_refused_at_any_depth(self, tmp_path, change):
        beside(tmp_path)
        small().save(tmp_path / "good.keras")
        with zipfile.ZipFile(tmp_path / "good.keras") as good, zipfile.ZipFile(tmp_path / "m.keras", "w") as bad:
            for name in good.namelist():
                text = good.read(name)
                bad.writestr(name, change(text.decode()) if name == "config.json" else text)
        with pytest.raises(ValueError, match="may run code"):
            judge.read(tmp_path / "m.keras")

    def test_files_of_another_kind_are_refused_by_name_with_the_way_out(self, tmp_path):
        beside(tmp_path)
        small().save(tmp_path / "three.h5")
        with h5py.File(tmp_path / "three.h5", "a") as file:
            file.attrs["keras_version"] = "3.4.1"
        small().save_weights(tmp_path / "only.weights.h5")
        small().save(tmp_path / "saved_model")
        (tmp_path / "text.keras").write_text("no model")
        np.savez(tmp_path / "arrays.npz", np.zeros(3))
        ways = {"three.h5": "Keras 3.4.1.*savez", "saved_model": "folder without model.keras.*set_weights"}
        ways |= dict.fromkeys(
            ["only.weights.h5", "text.keras", "arrays.npz", "missing.keras"], r"model.save\('model.keras'\)"
        )
        for name, way in ways.items():
            with pytest.raises(ValueError, match=way):
                judge.read(tmp_path / name)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss": K.losses.SparseCategoricalCrossentropy()}, "gives logits, and its loss.*from_logits=True"),
            ({"last": "softmax", "loss": K.losses.CategoricalCrossentropy(True)}, "its loss takes.*from_logits=False"),
            ({"last": "sigmoid"}, "ends in 'sigmoid'"),
        ],
    )
    def test_probabilities_are_not_taken_for_logits(self, tmp_path, options, message):
        beside(tmp_path)
        small(**options).save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match=message):
            judge.read(tmp_path / "m.keras")

    @pytest.mark.parametrize(
        ("genes", "classes", "message"),
        [
            (GENES[1:], CLASSES, "genes.txt names 29"),
            (GENES, CLASSES[1:], "classes.txt names 2 classes"),
            ([*GENES[:-1], "G0"], CLASSES, "genes.txt: a name stands twice"),
            (["G0\t1", *GENES[1:]], CLASSES, "lines differ in length"),
        ],
    )
    def test_names_that_do_not_fit_are_refused(self, tmp_path, genes, classes, message):
        beside(tmp_path, genes, classes)
        small().save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match=message):
            judge.read(tmp_path / "m.keras")

    def test_without_names_it_says_how_to_make_them(self, tmp_path):
        small().save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match="there is no .*genes.txt; write it: one gene a line"):
            judge.read(tmp_path / "m.keras")
