"""The input of a network, against the same steps written in NumPy or Pillow for one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import randomness
from kdjax.data import Stored
from kdjax.data.views import augment
from kdjax.data.views import transform as views
from kdjax.types import Batch
from tests.data.real_data import photographs

CIFAR = Stored(1 / 255, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), ("crop_flip", "crop", "none"))
render = jax.jit(augment.render, static_argnames=("view", "stored", "train"))


def random_images(size=12, count=20, channels=3):
    return np.random.default_rng(1).integers(1, 256, (count, size, size, channels)).astype(np.uint8)


def drawn(seed, epoch, example, pad):
    """Returns the offsets and the flip of one example, drawn without the rest of the batch."""
    bits = randomness.bits([example], epoch, seed, "crop", 3)[0]
    return int(bits[0] % (2 * pad + 1)), int(bits[1] % (2 * pad + 1)), bool(bits[2] >> 31)


def pad_crop_flip(image, top, left, flip, pad):
    size = image.shape[0]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    cropped = padded[top : top + size, left : left + size]
    return cropped[:, ::-1] if flip else cropped


def normalised(image, stored=CIFAR):
    return (image / np.float64(1 / stored.scale) - stored.mean) / stored.std


@pytest.mark.parametrize("view", ["crop", "crop_flip"])
@pytest.mark.parametrize("size, pad", [(32, 4), (12, 1), (8, 1), (6, 1), (64, 8)])
def test_render_equals_the_steps_in_numpy(view, size, pad):
    images, seed, epoch = random_images(size), 7, 3
    rows = np.array([4, 0, 19, 4], np.int32)
    seen = render(images, rows, rows, np.int32(epoch), np.uint32(seed), view=view, stored=CIFAR, train=True)
    for row, one in zip(rows, seen, strict=True):
        top, left, flip = drawn(seed, epoch, int(row), pad)
        expected = pad_crop_flip(images[row], top, left, flip and view == "crop_flip", pad)
        np.testing.assert_allclose(one, normalised(expected), atol=1e-5)


def test_all_offsets_and_both_flips_occur_equally_often():
    count = 4000
    images = np.ones((1, 32, 32, 1), np.float32)
    stored = Stored(1.0, (0.0,), (1.0,), ("crop_flip",))
    example = np.arange(count, dtype=np.int32)
    top, left, flip = views.draw_crop(example, 0, 5, 4, 4)
    for offset in (top, left):
        counts = np.bincount(np.asarray(offset) + 4, minlength=9)
        assert len(counts) == 9 and (np.abs(counts - count / 9) < 6 * np.sqrt(count / 9)).all()
    assert abs(np.mean(flip) - 0.5) < 6 * 0.5 / np.sqrt(count)
    assert abs(np.corrcoef(top, left)[0, 1]) < 6 / np.sqrt(count)
    shown = render(images, np.zeros(64, np.int32), example[:64], 0, 5, view="crop", stored=stored, train=True)
    kept = np.asarray(shown).sum(axis=(1, 2, 3))
    np.testing.assert_array_equal(kept, (32 - abs(top[:64])) * (32 - abs(left[:64])))


def test_an_example_does_not_depend_on_its_batch():
    images = random_images()
    rows = np.array([3, 17, 5, 9], np.int32)
    whole = render(images, rows, rows, 2, 1, view="crop_flip", stored=CIFAR, train=True)
    for i in range(4):
        alone = render(images, rows[i : i + 1], rows[i : i + 1], 2, 1, view="crop_flip", stored=CIFAR, train=True)
        np.testing.assert_array_equal(whole[i], alone[0])
    reversed_ = render(images, rows[::-1], rows[::-1], 2, 1, view="crop_flip", stored=CIFAR, train=True)
    np.testing.assert_array_equal(whole, reversed_[::-1])


def test_seed_epoch_and_example_each_change_the_view():
    images = np.repeat(random_images(32, 1), 64, axis=0)
    rows = np.arange(64, dtype=np.int32)

    def see(example, epoch, seed):
        return np.asarray(render(images, rows, example, epoch, seed, view="crop_flip", stored=CIFAR, train=True))

    base = see(rows, 0, 0)
    for other in (see(rows + 64, 0, 0), see(rows, 1, 0), see(rows, 0, 1)):
        same = (base == other).all(axis=(1, 2, 3)).mean()
        assert same < 0.1  # 1 in 162 by chance


def test_large_seeds_work():
    images, rows = random_images(), np.arange(4, dtype=np.int32)
    a = render(images, rows, rows, 0, np.uint32(2**32 - 1), view="crop", stored=CIFAR, train=True)
    b = augment.render(images, rows, rows, 0, 2**32 - 1, view="crop", stored=CIFAR, train=True)
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("view, train", [("none", True), ("crop_flip", False), ("crop", False)])
def test_no_view_and_evaluation_only_normalise(view, train):
    images, rows = random_images(), np.array([2, 11], np.int32)
    seen = render(images, rows, rows, 4, 9, view=view, stored=CIFAR, train=train)
    np.testing.assert_allclose(seen, normalised(images[rows]), atol=1e-5)


def test_vectors_are_not_augmented():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    stored = Stored(1.0, (0.0,), (1.0,), ("none",))
    rows = np.array([4, 1], np.int32)
    np.testing.assert_array_equal(render(x, rows, rows, 0, 0, view="none", stored=stored, train=True), x[rows])


def test_x64_gives_float64_and_the_same_draws():
    images, rows = random_images(), np.arange(6, dtype=np.int32)
    narrow = augment.render(images, rows, rows, 1, 3, view="crop_flip", stored=CIFAR, train=True)
    assert narrow.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = augment.render(images, rows, rows, 1, 3, view="crop_flip", stored=CIFAR, train=True)
        assert wide.dtype == jnp.float64
        exact = augment.render(images, rows, rows, 1, 3, view="none", stored=CIFAR, train=True)
        np.testing.assert_allclose(exact, normalised(images[rows]), atol=1e-12)
    np.testing.assert_allclose(narrow, wide, atol=1e-5)


@pytest.mark.parametrize("with_soft", [False, True])
def test_resident_and_streamed_batches_give_the_same_input(with_soft):
    images, labels = random_images(), np.arange(20, dtype=np.int32) % 3
    soft = np.eye(3, dtype=np.float32)[labels] if with_soft else None
    index, here = np.array([7, 2, 2], np.int32), np.ones(3, bool)
    arrays = {"images": images, "labels": labels} | ({"soft": soft} if with_soft else {})
    streamed = Batch(index, np.int32(0), here, here, images[index], labels[index], soft[index] if with_soft else None)
    seen = []
    for held, batch in ((arrays, Batch(index, np.int32(0), here, here)), (None, streamed)):
        pixels, rows, *targets = augment.materialize(held, batch)
        view = render(pixels, rows, batch.index, batch.epoch, 1, view="crop_flip", stored=CIFAR, train=True)
        seen.append((view, *targets))
    jax.tree.map(np.testing.assert_array_equal, seen[0], seen[1])
    assert (seen[0][2] is not None) == with_soft


def test_real_images_are_cropped_and_flipped_as_pil_does():
    """Compares 200 photographs of CIFAR with RandomCrop(32, padding=4) and a flip made with Pillow."""
    image_module = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    images, _ = photographs(200)
    photos, rows = [image_module.fromarray(image) for image in images], np.arange(200, dtype=np.int32)
    seen = render(images, rows, rows, 1, 2, view="crop_flip", stored=CIFAR, train=True)
    expected, flips = [], 0
    for row, photo in enumerate(photos):
        top, left, flip = drawn(2, 1, row, 4)
        cropped = ops.expand(photo, 4, fill=0).crop((left, top, left + 32, top + 32))
        expected.append(normalised(np.asarray(ops.mirror(cropped) if flip else cropped)))
        flips += flip
    assert 60 < flips < 140
    np.testing.assert_allclose(seen, np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("side", "size"), [((32, 32), 224), ((8, 12), 30), ((32, 32), 20)])
def test_resizing_is_pillows_bicubic_up_to_ties_of_rounding(side, size):
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (3, *side, 3), np.uint8)
    mine = np.asarray(jax.jit(lambda x: augment.resize(x, size))(images)).astype(int)
    if size < side[0]:  # larger images are cropped centrally, 224 of 256 pixels
        images = images[:, 2:30, 2:30]
    theirs = np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC)) for image in images])
    difference = np.abs(mine - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < (0.005 if size > side[0] else 0.03)


def test_a_view_is_resized_last():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    stored = Stored(1 / 255, (0.5,), (0.25,), ("crop",))
    rows = np.arange(4, dtype=np.int32)
    arguments = {"view": "crop", "train": True}
    small = augment.render(images, rows, rows, 1, 2, stored=stored._replace(mean=(0.0,), std=(1.0,)), **arguments)
    large = augment.render(images, rows, rows, 1, 2, stored=stored._replace(size=16), **arguments)
    again = augment.resize(np.rint(np.asarray(small) * 255).astype(np.uint8), 16)
    np.testing.assert_allclose(large, (np.asarray(again) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    assert large.shape == (4, 16, 16, 3)
