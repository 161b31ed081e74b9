"""Every random stream draws what it always drew: values computed once, and compared to the bit."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import randomness
from kdjax.data import Dataset, Order, Rows, Stored, epoch_order, make_splits, protocols
from kdjax.data.letters import load_letters
from kdjax.data.sources import load_gaussian
from kdjax.distillation import memory
from kdjax.distillation.adapters import Embeddings
from kdjax.distillation.distillers import _draw_adapter
from kdjax.models.initialize import draw_variables, torch_linear
from kdjax.training import forward
from kdjax.types import Batch

SEED, EPOCH = 9, 3
BATCH = Batch(index=np.array([2, 5], np.int32), epoch=np.int32(EPOCH), mask=None, labelled=None)

# Stream -> two words for example 5 and two for example 70000.
BITS = {
    "crop": [0xCDD6BE74, 0x80E52A2E, 0x336BD11B, 0xE2991BFF],
    "resized": [0xF73AD33D, 0x6CDF9688, 0xFC10538B, 0x63D36C8C],
    "rotate": [0x026B9FA2, 0x8832A6F1, 0xE14813C7, 0xB2DA03FC],
    "jitter": [0x8E1A9DF6, 0xB6ED3090, 0xCC2756BD, 0x634DE6DB],
    "policy": [0x4254E858, 0x0CEBC389, 0xB4467054, 0xF5A69AB2],
    "hole": [0x9E3431A8, 0x347E753C, 0x08989140, 0xD539B5A3],
    "mix": [0xE3730F11, 0x0DF762B9, 0x1BEA50EC, 0x802C0710],
    "partner": [0xEF6BC4BD, 0x512B3985, 0x1E7B044E, 0x0B849847],
    "teacher": [0x027E2A44, 0x7BE6845B, 0xAB86324F, 0x4BF72797],
}


def test_bits_of_every_stream_of_examples():
    assert set(BITS) == set(randomness.EXAMPLE_STREAMS)
    for xp in (np, jnp):
        for stream, words in BITS.items():
            assert np.asarray(randomness.bits([5, 70000], EPOCH, SEED, stream, 2, xp)).ravel().tolist() == words, stream
    crop = randomness.bits([5], EPOCH, SEED, "crop", 2)
    assert randomness.unit(crop).tolist() == [[0.8040579557418823, 0.5034967660903931]]
    assert randomness.partners(np.arange(100, 150), [5, 6, 7], EPOCH, SEED).tolist() == [141, 100, 100]


def test_the_order_of_an_epoch_and_of_examples_without_labels():
    assert epoch_order(SEED, EPOCH, 10).tolist() == [4, 1, 8, 2, 9, 7, 5, 3, 0, 6]
    steps = Order(np.arange(4), np.arange(10, 16), 4, steps=2, labelled=2, seed=SEED).epoch(EPOCH)
    assert steps.index.tolist() == [[1, 13, 2, 10], [3, 11, 0, 14]]
    assert steps.visit.tolist() == [[3, 2, 3, 2], [3, 2, 3, 2]]


def test_splits():
    rows = Rows(np.zeros((20, 2), np.float32), np.arange(20) % 2, None, 2, test=0.25)
    splits = make_splits(rows, 0.2, SEED)
    assert splits["test"].tolist() == [0, 6, 14, 17, 19]
    assert splits["validation"].tolist() == [1, 4, 11]


@pytest.mark.parametrize(
    ("name", "arguments", "kept", "words"),
    [
        ("subset", {"per_class": 3}, [1, 4, 5, 12, 16, 17], [0x4238D58B5E80F0EB, 0x6D59100B5AFEBDC9]),
        (
            "long_tailed",
            {"imbalance": 4.0},
            [0, 2, 4, 6, 8, 10, 11, 12, 13, 14, 16, 18],
            [0xF7DD8F484692D742, 0x3BE5EDF00D9D360E],
        ),
        (
            "labelled_fraction",
            {"fraction": 0.3, "unlabelled": "drop"},
            [2, 8, 9, 13, 16, 19],
            [0xF5405747035F26E2, 0xC46A46FEDA394D25],
        ),
        ("label_noise", {"rate": 0.3}, [11, 12, 14, 15, 16, 19], [0x999521FA7E4DC26B, 0xF5C6AC323FCE6D5B]),
    ],
)
def test_protocols(name, arguments, kept, words):
    labels = (np.arange(20) % 2).astype(np.int32)
    splits, stored = {"train": np.arange(20, dtype=np.int32)}, Stored(1.0, (0.0,), (1.0,), ("none",))
    dataset = Dataset("x", np.zeros((20, 2), np.float32), labels, None, 2, splits, stored)
    drawn = protocols.PROTOCOLS[name](dataset, seed=SEED, **arguments)
    found = np.flatnonzero(drawn.labels != labels) if name == "label_noise" else drawn.splits["train"]
    assert found.tolist() == kept
    assert randomness.philox(SEED, name).random_raw(2).tolist() == words


def test_drawn_data_sets():
    gaussian = load_gaussian("", classes=3, dim=2, n_train=4, n_test=0, seed=SEED)
    assert gaussian.labels.tolist() == [0, 1, 1, 1]
    expected = [0.1871024, -0.1947601, 0.6738252, -1.3575922, 3.3931031, -4.1477513, -4.7886729, 0.2529210]
    np.testing.assert_allclose(gaussian.images.ravel(), expected, rtol=1e-6)
    letters = load_letters("", characters="AB", copies=1, seed=SEED)
    assert letters.images.reshape(40, -1).sum(axis=1)[:8].tolist() == [284, 358, 353, 467, 220, 361, 449, 408]


def test_initial_weights_of_networks_and_adapters():
    shapes = {"params": {"fc": {"kernel": np.zeros((2, 2))}}}
    kernel = draw_variables(shapes, ((".*", torch_linear),), SEED, "x")["params"]["fc"]["kernel"]
    np.testing.assert_allclose(kernel.ravel(), [0.6988383, -0.0691758, -0.3365101, -0.2782058], rtol=1e-6)
    shapes = {"params": {"student": {"kernel": np.zeros((1, 2)), "bias": np.zeros(2)}}}
    adapter = _draw_adapter(Embeddings(dim=2), shapes, "correlation/a", SEED, None)
    np.testing.assert_allclose(adapter["params"]["student"]["kernel"], [[0.6270900, -0.0258862]], rtol=1e-6)


def test_memories_and_their_negatives():
    bank = memory.first_bank(SEED, 2, 3, "float32")
    expected = [-0.0253807, 0.5172012, 0.9197252, 0.4463511, 0.2865331, -0.3148898]
    np.testing.assert_allclose(bank.ravel(), expected, rtol=1e-5)
    table = {
        name: jnp.asarray(array) for name, array in memory.class_table(np.arange(20) % 4, np.arange(20), 4).items()
    }
    negatives = memory.draw_negatives(SEED, EPOCH, np.array([5, 6], np.int32), np.array([1, 2]), table, 4)
    assert negatives.tolist() == [[6, 7, 14, 19], [13, 19, 0, 12]]


def dropout_keys(step: int) -> list:
    """The keys of three devices."""
    draw = jax.vmap(lambda _: forward.dropout_key(np.uint32(SEED), step, "devices"), axis_name="devices")
    return jax.random.key_data(draw(jnp.arange(3))).tolist()


def test_keys_of_examples_and_of_dropout_are_different_streams():
    keys = jax.random.key_data(forward.example_keys(np.uint32(SEED), BATCH)).tolist()
    assert keys == [[3854599545, 1168228754], [893014206, 2656250066]]
    # With one word for both, (epoch 3, example 2) and (step 3, device 2) had the same key.
    dropout = dropout_keys(step=3)
    assert dropout == [[4262194322, 574394141], [3495363332, 581340074], [2999636829, 2200954722]]
    assert keys[0] not in dropout


def test_no_two_streams_of_a_generator_share_a_word():
    for streams in (randomness.EXAMPLE_STREAMS, randomness.PHILOX_STREAMS, randomness.KEY_STREAMS):
        assert len(set(streams.values())) == len(streams)
        assert all(0 <= word < 2**32 for word in streams.values())


def test_the_table_needs_numpy_alone(root):
    code = "import sys, kdjax.randomness; print([name for name in ('jax', 'flax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
