"""A model of one's own: files that must not run, names that must agree, and who is found."""

import json
import os
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from genlib import attacks, audit, bank, cohorts, features, membership, metrics, networks, privacy, results, run
from genlib.__main__ import parse

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
        found = audit.read_model(tmp_path / name)
        assert found.genes == GENES and found.classes == CLASSES
        np.testing.assert_array_equal(found.model.predict(x, verbose=0), model.predict(x, verbose=0))
        assert found.model.optimizer.get_config() == model.optimizer.get_config()

    def test_one_without_optimizer_is_opened_uncompiled(self, tmp_path):
        beside(tmp_path)
        K.Sequential([K.Input((30,)), K.layers.Dense(3)]).save(tmp_path / "m.keras")
        assert audit.read_model(tmp_path / "m.keras").model.optimizer is None

    @pytest.mark.parametrize("name", ["m.keras", "m.h5"])
    def test_code_in_a_file_does_not_run(self, tmp_path, name):
        beside(tmp_path)
        ran = str(tmp_path / "ran")
        evil = K.Sequential([K.Input((30,)), K.layers.Lambda(lambda t: (open(ran, "w"), t)[1]), K.layers.Dense(3)])
        evil.save(tmp_path / name)
        os.unlink(ran)
        with pytest.raises(ValueError, match="'Lambda' of .* may run code.*build the model from Keras' own layers"):
            audit.read_model(tmp_path / name)
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
            audit.read_model(tmp_path / "m.keras")

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
                audit.read_model(tmp_path / name)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"loss": K.losses.SparseCategoricalCrossentropy()},
                "'linear', and its loss has from_logits=False",
            ),
            (
                {"last": "softmax", "loss": K.losses.CategoricalCrossentropy(True)},
                "ends in 'softmax', and its loss has from_logits=True",
            ),
            ({"last": "sigmoid"}, "ends in 'sigmoid'"),
        ],
    )
    def test_probabilities_are_not_taken_for_logits(self, tmp_path, options, message):
        beside(tmp_path)
        small(**options).save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match=message):
            audit.read_model(tmp_path / "m.keras")

    @pytest.mark.parametrize(
        ("genes", "classes", "message"),
        [
            (GENES[1:], CLASSES, "genes.txt names 29"),
            (GENES, CLASSES[1:], "and classes.txt 2, at least 2: mend"),
            ([*GENES[:-1], "G0"], CLASSES, "genes.txt: a name stands twice"),
            (["G0\t1", *GENES[1:]], CLASSES, "lines differ in length"),
            ([f"{gene}\t8\t0" for gene in GENES], CLASSES, "an sd is not above 0"),
            ([f"{gene}\tx\t1" for gene in GENES], CLASSES, "a mean or sd is no number"),
        ],
    )
    def test_names_that_do_not_fit_are_refused(self, tmp_path, genes, classes, message):
        beside(tmp_path, genes, classes)
        small().save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match=message):
            audit.read_model(tmp_path / "m.keras")

    def test_without_names_it_says_how_to_make_them(self, tmp_path):
        small().save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match="there is no .*genes.txt; write it: one gene a line"):
            audit.read_model(tmp_path / "m.keras")


@pytest.fixture(scope="module")
def cohort():
    return cohorts.load("simulated")


@pytest.fixture(scope="module")
def known(cohort):
    """A cohort's features, its classes and who trained."""
    return features.transform(cohort), cohort.labels, np.random.default_rng(1).random(len(cohort)) < 0.6


def network(rate=0.02, seed=55):
    K.utils.set_random_seed(seed)
    layers = [K.layers.Dense(16, "relu", kernel_initializer=networks.START), K.layers.Dense(3)]
    model = K.Sequential([K.Input((400,)), *layers])
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(K.optimizers.SGD(rate), loss)
    return model


class TestNames:
    def test_genes_are_taken_in_the_models_order_and_scaled_where_it_says(self, cohort, tmp_path):
        genes = [*cohort.genes[30:40], *cohort.genes[:20]]
        beside(tmp_path, [f"{gene}\t8\t2" for gene in genes], ["class B", "class C", "class A"])
        small().save(tmp_path / "m.keras")
        x, y = audit.match(audit.read_model(tmp_path / "m.keras"), cohort, "log2")
        columns = [cohort.genes.index(gene) for gene in genes]
        np.testing.assert_array_equal(x, (cohort.expression[:, columns] - 8) / 2)
        assert (y == np.array([2, 0, 1])[cohort.labels]).all()

    def test_other_genes_and_other_classes_are_refused(self, cohort, tmp_path):
        small().save(tmp_path / "m.keras")
        beside(tmp_path, [*cohort.genes[:29], "NOT-HERE"], cohort.classes)
        with pytest.raises(ValueError, match="1 genes of the model are not in simulated: NOT-HERE; give the table"):
            audit.match(audit.read_model(tmp_path / "m.keras"), cohort, "rank")
        beside(tmp_path, cohort.genes[:30], ["class A", "b", "C"])
        with pytest.raises(ValueError, match=r"has classes \['class B', 'class C'\].*name them in classes.txt"):
            audit.match(audit.read_model(tmp_path / "m.keras"), cohort, "rank")

    def test_members_are_named_as_in_the_owners_file_and_no_message_names_one(self, cohort, tmp_path):
        table = pd.DataFrame(cohort.expression, columns=cohort.genes)
        table.insert(0, "type", np.array(cohort.classes)[cohort.labels])
        table.insert(0, "patient", [f"secret{i:03d}" for i in range(len(table))])
        table.to_csv(tmp_path / "mine.csv", index=False)
        mine = cohorts.load(tmp_path / "mine.csv", label="type", keep_ids=True)
        (tmp_path / "m.txt").write_text("secret007\n\nsecret000 \n")
        assert np.flatnonzero(audit.read_members(tmp_path / "m.txt", mine)).tolist() == [0, 7]
        assert cohorts.load(tmp_path / "mine.csv", label="type").ids[7] == "7"
        (tmp_path / "m.txt").write_text("secret007\nsecret999\n")
        with pytest.raises(ValueError, match="1 of 2 lines name no patient of mine, the first is line 2") as caught:
            audit.read_members(tmp_path / "m.txt", mine)
        assert "secret" not in str(caught.value)
        (tmp_path / "m.txt").write_text("\n".join(mine.ids))
        with pytest.raises(ValueError, match="240 of 240 patients are members"):
            audit.read_members(tmp_path / "m.txt", mine)

    def test_a_model_that_cannot_be_the_one_is_refused(self, known):
        x, y, members = known
        model = network()
        model.fit(x[members], y[members], epochs=30, batch_size=16, verbose=0)
        logits = audit.answers(model, x)
        audit.refuse_mismatch(logits, y, members)
        right = (logits[0].argmax(axis=1) == y)[~members].mean()
        audit.refuse_mismatch(logits, y, members, right)
        order = np.random.default_rng(0).permutation(x.shape[1])
        odd = audit.answers(model, x[:, order])
        for answers, labels, stated in [(odd, y, None), (logits, (y + 1) % 3, None), (logits, y, right - 0.3)]:
            with pytest.raises(ValueError, match="in another order"):
                audit.refuse_mismatch(answers, labels, members, stated)


def verdict(model, known, epochs=40):
    """Judge as the notebook does, by LiRA, the loss and the weights."""
    x, y, members = known
    sets = membership.shadow_sets(members.sum(), len(y), 12, seed=0)
    how = {"epochs": epochs, "batch_size": 16, "seed": 0, "progress": False}
    shadows, logits = bank.train(model, x, y, sets, **how), audit.answers(model, x)
    inside, further, activation = audit.weights(model, x)
    aside, told = {"shadows": (shadows.logits, sets)}, attacks.lira(shadows.logits, y, sets)
    scores = {
        "LiRA": (attacks.lira(logits, y, members[None], **aside), told),
        "loss": (attacks.signal(logits, y), attacks.signal(shadows.logits, y)),
        "span": [
            attacks.on_weights(first, x, rest, y, activation)
            for first, rest in ((inside, further), (shadows.inside, shadows.further))
        ],
    }
    rows = [audit.found(a[0], members, y, ["A", "B", "C"], b[~sets]).assign(attack=k) for k, (a, b) in scores.items()]
    table = pd.concat(rows, ignore_index=True)
    assert (results.select(table, metric=audit.FALSE, group="all")["estimate"] <= 0.01).all()
    return results.verdict(results.select(table, metric=audit.FOUND).assign(bound=np.nan), 0.03)


class TestVerdict:
    @pytest.fixture(scope="class")
    def memorizer(self, known):
        x, y, members = known
        noisy = np.where(
            np.random.default_rng(3).random(len(y)) < 0.2, (y + 1) % 3, y
        )  # so that there is much to memorize
        model = network()
        model.fit(x[members], noisy[members], epochs=40, batch_size=16, verbose=0)
        return model, (x, noisy, members)

    def test_a_model_that_memorizes_fails(self, memorizer):
        assert verdict(*memorizer)[0] == "fails"

    def test_one_that_other_patients_trained_does_not(self, memorizer):
        model, (x, y, members) = memorizer
        others = np.zeros(len(y), bool)
        others[np.flatnonzero(~members)[::2]] = True
        asked = ~members
        assert verdict(model, (x[asked], y[asked], others[asked]))[0] != "fails"

    def test_a_private_release_does_not_and_its_bundle_is_opened(self, memorizer, cohort, tmp_path):
        _, (x, y, members) = memorizer
        promise = privacy.Privacy(epsilon=2.0)
        model, words = privacy.release(network(0.05), x[members], y[members], promise, n=144, epochs=20)
        audit.bundle(tmp_path, model, cohort.genes, cohort.classes, words)
        released = audit.read_model(tmp_path)
        np.testing.assert_array_equal(released.model(x[:5]), model(x[:5]))
        assert released.promise == words and released.memory is None and released.model.optimizer is not None
        assert verdict(released.model, (x, y, members))[0] != "fails"

    def test_a_common_seed_and_the_optimizers_memory_give_members_away(self, known, tmp_path):
        x, y, members = known
        model = network(seed=1)
        model.compile(K.optimizers.SGD(0.02, momentum=0.9), K.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x[members], y[members], epochs=5, batch_size=32, verbose=0)
        beside(tmp_path, [f"g{i}" for i in range(400)], CLASSES)
        for name, asked in (("m.keras", "m.keras"), ("model.h5", "")):  # a file, and a folder that holds one
            model.save(tmp_path / name)
            released = audit.read_model(tmp_path / asked)
            np.testing.assert_array_equal(released.memory, model.optimizer.momentums[0])
        seed, start = audit.known_start(released.model)
        assert seed == 1 and audit.known_start(released.model, seeds=[0, 2]) == (None, None)
        for change in (model.get_weights()[0] - start[0], released.memory):
            moved = (x @ change)[None]
            found = attacks.span(moved, x, moved - attacks.left_out(moved, x, 1e-6), 1e-6)
            assert metrics.auc(found, members[None]) > 0.9


def test_found_counts_whom_the_stricter_threshold_accuses():
    scores, members = np.array([5.0, 3, 1, 4, 2, 0]), np.array([1, 1, 1, 0, 0, 0], bool)
    one = audit.found(scores, members, np.array([0, 0, 1, 0, 1, 1]), ["a", "b"], np.arange(100) / 100)
    one = one.set_index(["metric", "group"])["estimate"]  # above 4, the highest of three others
    assert one[audit.FOUND].to_dict() == {"all": 1 / 3, "a": 0.5, "b": 0.0} and (one[audit.FALSE] == 0).all()
    one = audit.found(scores, members, np.zeros(6, int), ["a"], np.arange(1000) / 200)  # above 4.95, of the reference
    assert one.loc[0, "estimate"] == 1 / 3
    one = audit.found(scores, members, np.zeros(6, int), ["a"], np.array([9.0]))
    assert one.loc[0, "estimate"] == 0


def test_weights_of_other_networks_are_not_taken():
    layers = [
        K.layers.Dense(4),
        K.layers.Activation("tanh"),
        K.layers.Dropout(0.5),
        K.layers.Dense(3),
        K.layers.Softmax(),
    ]
    x = np.ones((2, 30), np.float32)
    inside, further, activation = audit.weights(K.Sequential([K.Input((30,)), *layers]), x)
    assert inside.shape == (1, 2, 4) and len(further) == 3 and activation is K.activations.tanh
    for odd in (K.layers.LayerNormalization(), K.layers.Dense(3, use_bias=False), K.layers.Dense(4, "relu")):
        assert audit.weights(K.Sequential([K.Input((30,)), *layers[:2], odd, K.layers.Dense(3)]), x) is None


@pytest.mark.slow
def test_the_command_leaves_a_card_and_names_patients_in_their_owners_file_alone(known, cohort, tmp_path, capsys):
    x, y, members = known
    model = network()
    model.fit(x[members], y[members], epochs=20, batch_size=16, verbose=0)
    audit.bundle(tmp_path / "m", model, cohort.genes, cohort.classes, "None.")
    (tmp_path / "members.txt").write_text("\n".join(cohort.ids[members]))
    words = ["judge", "--model", f"{tmp_path}/m", "--members", f"{tmp_path}/members.txt", "--cohort", "simulated"]
    words += ["--n-shadow-models", "12", "--epochs", "20", "--batch-size", "16", "--run", "test-judge"]
    run.main(parse([*words, "--name-patients", f"{tmp_path}/who.csv"]))
    folder, said = run.OUTPUTS / "test-judge", capsys.readouterr().out
    card = json.loads((folder / "model_card.json").read_text())
    assert f"Verdict: {card['verdict']} ({card['why']})" in said and len(results.load(folder, "your_model"))
    assert card["lacking"] == []  # nothing that keeps it from passing
    assert (folder / "html" / "your_model.html").exists() and "| all | " in (folder / "model_card.md").read_text()
    who = pd.read_csv(tmp_path / "who.csv")
    assert who["most telling"].is_monotonic_decreasing and who.set_index("patient")[
        "member"
    ].sort_index().tolist() == list(members)
