"""CRD's memory: its negatives, its embeddings, its size, and that a run with it resumes exactly."""

import jax
import numpy as np
from small_world import assert_stopped_and_resumed_is_unbroken
from test_methods import configured

from kdjax.distillation import memory

LABELS = np.random.default_rng(0).integers(0, 5, 300)
ROWS = np.random.default_rng(1).permutation(300)[:230]  # the training rows
TABLE = {name: jax.numpy.asarray(array) for name, array in memory.class_table(LABELS, ROWS, 5).items()}


def draw(index, count=40, seed=0, epoch=0):
    index = np.asarray(index, np.int32)
    drawn = jax.jit(memory.draw_negatives, static_argnames="count")(
        seed, epoch, index, LABELS[index], TABLE, count=count
    )
    return np.asarray(drawn)


def test_negatives_are_of_other_classes_and_all_different():
    index = ROWS[:64]
    places = draw(index)
    assert places.min() >= 0 and places.max() < 230
    assert (LABELS[ROWS[places]] != LABELS[index][:, None]).all()
    assert all(len(set(row)) == 40 for row in places)


def test_all_others_can_be_drawn_and_then_come_again():
    row = int(ROWS[3])
    others = np.flatnonzero(LABELS[ROWS] != LABELS[row])
    assert sorted(draw([row], len(others))[0]) == sorted(others)
    assert set(draw([row], 2 * len(others))[0]) == set(others)


def test_every_place_is_drawn_equally_often():
    row = int(ROWS[0])
    others = np.flatnonzero(LABELS[ROWS] != LABELS[row])
    counts = np.zeros(230)
    for epoch in range(400):
        counts[draw([row], 20, epoch=epoch)[0]] += 1
    expected = 400 * 20 / len(others)
    assert np.abs(counts[others] - expected).max() < 5 * np.sqrt(expected)
    assert counts.sum() == counts[others].sum()


def test_draws_belong_to_seed_epoch_and_example_alone():
    whole = draw(ROWS[:8])
    np.testing.assert_array_equal(draw(ROWS[5:2:-1]), whole[5:2:-1])
    for changed in ({"seed": 1}, {"epoch": 1}):
        assert (draw(ROWS[:8], **changed) != whole).any(axis=1).all()


def test_a_memory_keeps_normalised_means():
    bank = jax.numpy.asarray(memory.first_bank(0, 6, 4, "float32"))
    assert np.abs(bank).max() <= 1 / np.sqrt(4 / 3)
    new = np.eye(4, dtype=np.float32)[:2]
    kept = np.asarray(memory.remember(bank, np.array([4, 1]), new, 0.5))
    for place, row in ((4, new[0]), (1, new[1])):
        mean = (np.asarray(bank)[place] + row) / 2
        np.testing.assert_allclose(kept[place], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_array_equal(kept[[0, 2, 3, 5]], np.asarray(bank)[[0, 2, 3, 5]])


def test_sizes_are_planned_and_large_ones_announced(caplog):
    assert memory.plan_bytes(50_000, 128, "float32") < 200e6  # CIFAR's
    assert memory.plan_bytes(1_281_167, 128, "bfloat16") < 0.7e9 < memory.plan_bytes(1_281_167, 128, "float32")
    memory.announce(1_281_167, 128, "bfloat16")
    assert "2 x 1281167 x 128 in bfloat16 takes 640 MB" in caplog.text


def test_a_stopped_run_with_memories_and_adapters_resumes_to_the_same_bits(config, one_device, tmp_path, monkeypatch):
    from kdjax.store import Store
    from kdjax.training.loop import train

    store = Store(tmp_path)
    config = configured(config, "crd")
    teacher = config.copy_and_resolve_references()
    teacher.teachers, teacher.losses, teacher.epochs = {}, {"cross_entropy": {"weight": 1.0}}, 1
    train(teacher, store, name="teacher", devices=one_device, show=False)
    config.teachers = {"a": {"run": "teacher"}}
    config.epochs = 2
    assert_stopped_and_resumed_is_unbroken(config, store, one_device, 8, monkeypatch)
