"""Views, against the same steps made with Pillow for one example at a time, and the frequencies of their draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from kdjax import randomness
from kdjax.data import Stored
from kdjax.data.views import augment, colour, crop_boxes, geometry, mixing, policies
from kdjax.data.views import names as view_names
from kdjax.data.views import transform as views
from kdjax.errors import UserError

BYTES = Stored(1 / 255, (0.0,), (1.0,), ("none",))
SHOWN = ["crop_flip_cutout", "rrc_flip_rotate", "crop_flip+randaugment:2,10+jitter"]
SHOWN += [pytest.param("crop_flip+autoaugment", marks=pytest.mark.slow)]  # a policy, as randaugment is


@functools.partial(jax.jit, static_argnames=("view", "size"))
def show(images, rows, example, epoch, seed, view, size=0):
    stored = BYTES._replace(size=size)
    return views.show(jnp.asarray(images), rows, example, epoch, seed, view=view_names.parse(view), stored=stored)


def shown(view, images, size=0, example=None, epoch=3, seed=7):
    rows = np.arange(len(images), dtype=np.int32)
    return np.asarray(show(images, rows, rows if example is None else example, epoch, seed, view=view, size=size))


def photos(count=40, height=32, width=32, channels=3):
    """Returns smooth pictures with noise; like those of photographs, their histograms have gaps and repeated values."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (count, 4, 4, channels)).astype(np.uint8)
    rough = [np.asarray(Image.fromarray(one.squeeze()).resize((width, height), Image.BICUBIC)) for one in coarse]
    smooth = np.stack(rough).reshape(count, height, width, channels) // 2 + rng.integers(0, 60, (count, 1, 1, 1))
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def as_pillow(image):
    return Image.fromarray(image.squeeze())


def words(domain, count, size, epoch=3, seed=7):
    return np.asarray(randomness.bits(np.arange(count, dtype=np.int32), epoch, seed, domain, size))


# ---- colour


def enhanced(kind):
    return lambda image, amount: getattr(ImageEnhance, kind)(image).enhance(amount / 1000)


PILLOW = {
    "brightness": (enhanced("Brightness"), (100, 700, 1000, 1300, 1900)),
    "contrast": (enhanced("Contrast"), (100, 700, 1000, 1300, 1900)),
    "colour": (enhanced("Color"), (100, 700, 1000, 1300, 1900)),
    "sharpness": (enhanced("Sharpness"), (100, 700, 1000, 1300, 1900)),
    "posterize": (ImageOps.posterize, (1, 4, 5, 8)),
    "solarize": (lambda image, amount: ImageOps.solarize(image, amount), (0, 57, 128, 256)),
    "solarize_add": (lambda image, amount: image.point(lambda v: min(255, v + amount) if v < 128 else v), (0, 60, 110)),
    "invert": (lambda image, amount: ImageOps.invert(image), (0,)),
    "autocontrast": (lambda image, amount: ImageOps.autocontrast(image), (0,)),
    "equalize": (lambda image, amount: ImageOps.equalize(image), (0,)),
}
EXACT = ("posterize", "solarize", "solarize_add", "invert", "equalize")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", colour.OPERATIONS)
def test_colours_are_pillows(name, channels):
    images = photos(20, 24, 20, channels)
    images[0], images[1, ..., 0] = 77, 200  # an image of one value, and one with a channel of one value
    images[2, :12], images[2, 12:] = 10, 30  # an image of two values
    function, amounts = PILLOW[name]
    amount = np.resize(amounts, len(images)).astype(np.int32)
    mine = np.asarray(jax.jit(colour.OPERATIONS[name])(images, amount))
    theirs = [np.asarray(function(as_pillow(image), int(a))) for image, a in zip(images, amount, strict=True)]
    theirs = np.stack(theirs).reshape(images.shape)
    assert mine.dtype == np.uint8
    difference = mine.astype(int) - theirs
    assert (theirs != images).any() or (name, channels) == ("colour", 1)
    if name in EXACT:
        np.testing.assert_array_equal(mine, theirs)
    else:  # an integer, where Pillow's floats are just below it
        assert set(np.unique(difference)) <= {0, 1} and (difference != 0).mean() < 0.02


def test_every_example_has_its_own_operation():
    images = photos(len(colour.OPERATIONS) + 1)
    code = np.arange(-1, len(colour.OPERATIONS), dtype=np.int32)
    amount = np.full(len(images), 4, np.int32)
    out = np.asarray(colour.apply(images, code, amount, tuple(colour.OPERATIONS)))
    np.testing.assert_array_equal(out[0], images[0])
    for i, function in enumerate(colour.OPERATIONS.values(), start=1):
        np.testing.assert_array_equal(out[i], function(images[i : i + 1], amount[i : i + 1])[0])
    only = np.asarray(colour.apply(images, code, amount, ("invert",)))
    assert [i for i in range(len(images)) if (only[i] != images[i]).any()] == [1 + colour.CODES["invert"]]


# ---- geometry


@pytest.mark.parametrize("sides", [(32, 32), (20, 30)])
@pytest.mark.parametrize("name", geometry.WARPS)
def test_warps_are_pillows_nearest_pixels_exactly(name, sides):
    images, (height, width) = photos(8, *sides), sides
    largest = policies.SIGNED[name]
    amounts = np.linspace(-largest, largest, len(images))
    matrices = [geometry.WARPS[name](amount, height, width) for amount in amounts]
    fixed = np.array([geometry.fixed(matrix) for matrix in matrices], np.int32)
    pixels = geometry.warp(geometry.identity(*sides), fixed, *sides, 128)
    mine = geometry.read(images, np.arange(len(images)), pixels)
    for image, matrix, amount, one in zip(images, matrices, amounts, mine, strict=True):
        if name == "rotate":
            theirs = as_pillow(image).rotate(amount, fillcolor=(128,) * 3)
        else:
            theirs = as_pillow(image).transform((width, height), Image.AFFINE, matrix, fillcolor=(128,) * 3)
        np.testing.assert_array_equal(one, np.asarray(theirs))


def test_steps_in_one_gather_equal_steps_one_after_the_other():
    """Shears, translates and rotates with three fills, flips, and shifts with zeros, all in one gather."""
    images = photos(6)
    steps = [("shear_y", 0.3, 128), ("translate_x", -0.25, 0), ("rotate", 20.0, 9)]
    top, left, mirrored = np.array([-4, 0, 3, 1, 2, -1]), np.array([2, 0, -3, 4, -4, 1]), np.arange(6) % 2 == 0
    pixels = geometry.identity(32, 32)
    for name, amount, fill in reversed(steps):
        row = np.tile(np.array(geometry.fixed(geometry.WARPS[name](amount, 32, 32)), np.int32), (6, 1))
        pixels = geometry.warp(pixels, row, 32, 32, fill)
    pixels = geometry.shift(geometry.flip(pixels, mirrored, 32), top, left, 32, 32)
    mine = np.asarray(geometry.read(images, np.arange(6), pixels))
    for i, image in enumerate(images):
        picture = as_pillow(image).crop((left[i], top[i], left[i] + 32, top[i] + 32))
        picture = ImageOps.mirror(picture) if mirrored[i] else picture
        for name, amount, fill in steps:
            matrix = geometry.WARPS[name](amount, 32, 32)
            picture = picture.transform((32, 32), Image.AFFINE, matrix, fillcolor=(fill,) * 3)
        np.testing.assert_array_equal(mine[i], np.asarray(picture))


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "sides"), [((32, 32), (32, 32)), ((24, 40), (56, 48)), ((60, 50), (20, 20))])
def test_resized_crops_are_pillows_up_to_ties_of_rounding(kernel, stored, sides):
    images, (height, width) = photos(12, *stored), stored
    rng = np.random.default_rng(0)
    tall, wide = rng.integers(1, height + 1, 12), rng.integers(1, width + 1, 12)
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    mirrored = np.arange(12) % 3 == 0
    box = tuple(part.astype(np.int32) for part in (top, left, tall, wide))
    crop = jax.jit(lambda x: geometry.resized_crop(x, box, mirrored, sides, kernel))
    filter_ = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[kernel]
    theirs = []
    for i, image in enumerate(images):
        cut = as_pillow(image).crop((left[i], top[i], left[i] + wide[i], top[i] + tall[i]))
        resized = np.asarray(cut.resize(sides[::-1], filter_))
        theirs.append(resized[:, ::-1] if mirrored[i] else resized)
    difference = np.abs(np.asarray(crop(images)).astype(int) - np.stack(theirs))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.03  # Pillow also rounds the weights
    floats = crop(images.astype(np.float32))
    assert floats.dtype == jnp.float32 and np.abs(floats - np.stack(theirs)).mean() < 2


def test_boxes_fit_and_have_the_right_areas_and_ratios():
    bits = words("resized", 4000, crop_boxes.WORDS)
    top, left, tall, wide = (np.asarray(part) for part in crop_boxes.resized_box(bits, 0.2, 224, 200))
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= 224).all() and (left + wide <= 200).all()
    area, ratio = tall * wide / (224 * 200), wide / tall
    assert 0.19 < area.min() < 0.21 and 0.97 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.77 and 1.29 < ratio.max() < 1.35
    assert 0.5 < area.mean() < 0.6  # 0.6 for a uniform area, less since some do not fit
    small = area < 0.5  # every ratio fits
    assert abs(np.median(np.log(ratio[small]))) < 0.03 and abs(np.mean(area[small]) - 0.35) < 0.01
    at = (top / np.maximum(224 - tall, 1))[small]
    assert abs(at.mean() - 0.5) < 0.03 and at.min() == 0 and at.max() == 1


@pytest.mark.parametrize(("sides", "crop"), [((90, 30), (11, 0, 40, 30)), ((30, 100), (0, 30, 30, 40))])
def test_a_box_that_never_fits_becomes_the_middle(sides, crop):
    bits = words("resized", 50, crop_boxes.WORDS)
    found = np.stack(crop_boxes.resized_box(bits, 0.9, *sides), axis=1)
    expected = ((sides[0] - crop[2]) // 2, (sides[1] - crop[3]) // 2, *crop[2:])
    np.testing.assert_array_equal(found, np.tile(expected, (50, 1)))


# ---- whole views


def test_a_weak_view_is_torchvisions_steps():
    """Compares with RandomResizedCrop, flip and rotation made with Pillow from the same random numbers."""
    images = photos(30)
    mine = shown("rrc_flip_rotate", images, size=48)
    cuts = np.stack(crop_boxes.resized_box(words("resized", 30, crop_boxes.WORDS), 0.2, 32, 32), axis=1)
    mirrored = np.asarray(views.draw_crop(np.arange(30, dtype=np.int32), 3, 7, 4, 4)[2])
    angles = (words("rotate", 30, 1)[:, 0] % 3001).astype(int) / 100 - 15
    theirs = []
    for image, (top, left, tall, wide), flip, angle in zip(images, cuts, mirrored, angles, strict=True):
        picture = as_pillow(image).crop((left, top, left + wide, top + tall)).resize((48, 48), Image.BICUBIC)
        theirs.append(np.asarray((ImageOps.mirror(picture) if flip else picture).rotate(angle)))
    difference = np.abs(mine.astype(int) - np.stack(theirs))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert 5 < mirrored.sum() < 25 and angles.min() < -8 and angles.max() > 8


def by_pillow(picture, name, amount):
    if name in geometry.WARPS:
        matrix = geometry.WARPS[name](amount, *picture.size[::-1])
        return picture.transform(picture.size, Image.AFFINE, matrix, fillcolor=(128,) * 3)
    return PILLOW[name][0](picture, amount)


@pytest.mark.parametrize("sides", [(32, 32), (20, 28)])
def test_autoaugment_is_the_papers_subpolicies_one_step_after_the_other(sides):
    count = 300
    images = photos(count, *sides)
    mine = shown("autoaugment", images)
    bits = words("policy", count, 6)
    seen, off = set(), 0
    for i, image in enumerate(images):
        number, picture = int(bits[i, 0] % 25), as_pillow(image)
        for slot, (name, probability, level) in enumerate(policies.AUTOAUGMENT_CIFAR10[number]):
            if bits[i, 3 * slot + 1] / 2**32 < probability:
                sign = -1 if bits[i, 3 * slot + 2] >> 31 else 1
                amount = sign * policies.SIGNED.get(name, 0) * level / 9
                if name == "posterize":
                    amount = round(8 - 4 * level / 9)
                elif name == "solarize":
                    amount = 256 - 256 * level / 9
                elif name in ("brightness", "contrast", "colour", "sharpness"):
                    amount = 1000 + 1000 * amount
                picture = by_pillow(picture, name, amount)
                seen.add((number, slot))
        off += (np.abs(mine[i].astype(int) - np.asarray(picture)) > 1).mean() / count
    assert len(seen) >= 45  # of 49: an invert has probability 0
    assert off < 0.002  # a tie in rounding may change a later histogram


def test_autoaugment_is_as_likely_as_its_table():
    tables = policies.autoaugment_cifar10(32, 32)
    assert tables.codes.shape == (2, 25)
    choice = views._choose(tables, jnp.asarray(words("policy", 20000, 6)))
    share = np.mean(np.asarray(choice[0][1]) == colour.CODES["equalize"])
    expected = sum(p for (name, p, _), _ in policies.AUTOAUGMENT_CIFAR10 if name == "equalize") / 25
    assert abs(share - expected) < 5 * np.sqrt(expected / 20000)
    moved = np.mean((np.asarray(choice[1][0]) != views.STILL).any(axis=1))
    expected = sum(p for _, (name, p, _) in policies.AUTOAUGMENT_CIFAR10 if name in geometry.WARPS) / 25
    assert abs(moved - expected) < 5 * np.sqrt(expected / 20000)


def test_randaugment_draws_operations_equally_often_and_slots_independently():
    tables = policies.randaugment(32, 32, 3, 10)
    assert tables.codes.shape == (3, 14)
    bits = words("policy", 7000, 9)
    choices = [bits[:, 3 * slot] % 14 for slot in range(3)]
    for one in choices:
        assert (np.abs(np.bincount(one, minlength=14) - 500) < 6 * np.sqrt(500)).all()
    assert abs(np.corrcoef(choices[0], choices[1])[0, 1]) < 6 / np.sqrt(7000)
    amounts = {name: tables.amounts[0][i].tolist() for i, name in enumerate(policies.RANDAUGMENT)}
    assert amounts["brightness"] == [1300, 700] and amounts["posterize"] == [7, 7] and amounts["solarize"] == [171, 171]
    still = shown("randaugment:2,0", images := photos(200))
    same = [(a == b).all() for a, b in zip(still, images, strict=True)]
    unmoved = (12 / 14) ** 2  # at magnitude 0, only autocontrast and equalize change an image
    assert abs(np.mean(same) - unmoved) < 0.15


def test_timms_randaugment_applies_each_of_its_fifteen_operations_every_second_time():
    tables = policies.randaugment_timm(32, 32, 2, 10)
    assert tables.codes.shape == (2, 15 * policies.QUANTILES)
    amounts = {
        name: tables.amounts[0][i * policies.QUANTILES :][: policies.QUANTILES, 0]
        for i, name in enumerate(policies.TIMM)
    }
    assert (
        amounts["solarize"].max() == 256
        and set(amounts["posterize"]) == {3, 4}
        and amounts["solarize_add"].max() == 110
    )
    assert amounts["colour"].max() == 1900 and 1700 < amounts["colour"].min() < 1800
    choice = views._choose(tables, jnp.asarray(words("policy", 20000, 6)))
    for name in ("equalize", "solarize_add"):
        share = np.mean(np.asarray(choice[1][1]) == colour.CODES[name])
        assert abs(share - 0.5 / 15) < 5 * np.sqrt(0.5 / 15 / 20000)
    moved = np.mean((np.asarray(choice[0][0]) != views.STILL).any(axis=1))
    assert abs(moved - 0.5 * 5 / 15) < 5 * np.sqrt(1 / 6 / 20000)


def test_a_hole_is_cut_anywhere_and_off_at_the_edges():
    images = np.full((4000, 32, 32, 1), 255, np.uint8)
    out = shown("cutout:8", images)
    bits = words("hole", 4000, 2)
    for i in range(50):
        expected = images[i].copy()
        y, x = (int(bits[i, axis] % 32) for axis in range(2))
        expected[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 0
        np.testing.assert_array_equal(out[i], expected)
    holes = (out == 0).mean(axis=0)[..., 0]
    assert abs(holes[8:-8, 8:-8].mean() - 64 / 1024) < 0.004 and holes[0, 0] < 0.03
    assert views.side_of(view_names.VIEWS["autoaugment_cifar10"].hole, (224, 224)) == 16
    assert (shown("cutout", images[:50]) == 0).sum(axis=(1, 2, 3)).max() <= 256


def test_a_cut_out_view_is_the_crop_with_a_hole():
    images = photos()
    plain, cut = shown("crop_flip", images), shown("crop_flip_cutout", images)
    erased = shown("cutout", np.ones_like(images)) == 0
    np.testing.assert_array_equal(cut, np.where(erased, 0, plain))


def test_jitter_is_brightness_contrast_and_colour_in_the_drawn_order():
    images = photos(60)
    mine, bits = shown("jitter:0.4", images), words("jitter", 60, 4)
    orders = set()
    for i, image in enumerate(images):
        order, picture = views.ORDERS[bits[i, 0] % 6], as_pillow(image)
        for slot, name in enumerate(order):
            picture = PILLOW[name][0](picture, int(bits[i, 1 + slot] % 801) + 600)
        difference = np.abs(mine[i].astype(int) - np.asarray(picture))
        assert difference.max() <= 2 and difference.mean() < 0.1
        orders.add(tuple(order))
    assert len(orders) == 6


def test_a_policy_after_a_padded_crop_reads_the_crop():
    """In one gather, pixels outside the crop do not reappear, and the fills stay separate."""
    images = np.full((300, 32, 32, 3), 200, np.uint8)
    out = shown("crop+autoaugment", images)
    values = {value for value in np.unique(out)}
    assert {0, 128, 200} <= values
    assert shown("crop+rotate:30", images[:20], size=40).shape == (20, 40, 40, 3)
    np.testing.assert_array_equal(shown("crop+rotate:0", images), shown("crop", images))


@pytest.mark.parametrize("view", SHOWN)
def test_a_view_is_the_same_on_one_and_four_devices(view):
    images, rows = photos(16, 16, 16), np.arange(16, dtype=np.int32)
    one = shown(view, images, example=rows + 5)
    split = functools.partial(views.show, view=view_names.parse(view), stored=BYTES)
    args = (jnp.asarray(images), rows.reshape(4, 4), (rows + 5).reshape(4, 4), 3, 7)
    axes = (None, 0, 0, None, None)
    many = jax.pmap(split, in_axes=axes, devices=jax.local_devices()[:4])(*args)
    np.testing.assert_array_equal(np.asarray(many).reshape(one.shape), one)
    alone = show(images, rows[9:10], rows[9:10] + 5, 3, 7, view=view)
    np.testing.assert_array_equal(alone[0], one[9])


@pytest.mark.parametrize("view", SHOWN)
def test_seed_epoch_and_example_each_change_a_view(view):
    images = np.repeat(photos(1), 32, axis=0)
    rows = np.arange(32, dtype=np.int32)
    base = shown(view, images)
    np.testing.assert_array_equal(base, shown(view, images))
    for other in (shown(view, images, example=rows + 32), shown(view, images, epoch=4), shown(view, images, seed=8)):
        assert (base == other).all(axis=(1, 2, 3)).mean() < 0.35


def test_render_shows_normalises_and_resizes_at_once():
    images, rows = photos(6), np.arange(6, dtype=np.int32)
    stored = BYTES._replace(mean=(0.5,), std=(0.25,), size=40)
    render = jax.jit(functools.partial(augment.render, view="autoaugment_cifar10", stored=stored, train=True))
    seen = render(images, rows, rows, 3, 7)
    expected = shown("autoaugment_cifar10", images, size=40)
    np.testing.assert_allclose(seen, (expected / 255.0 - 0.5) / 0.25, atol=1e-5)


# ---- mixing


def test_partners_come_from_the_training_split_alike_on_host_and_device():
    train = np.sort(np.random.default_rng(0).permutation(5000)[:3000]).astype(np.int32)
    example = train[:2000]
    host = randomness.partners(train, example, 4, 2**32 - 1)
    device = jax.jit(lambda e, s: randomness.partners(train, example, e, s, jnp))(4, np.uint32(2**32 - 1))
    np.testing.assert_array_equal(host, device)
    np.testing.assert_array_equal(host[7:9], randomness.partners(train, example[7:9], 4, 2**32 - 1))
    assert host.dtype == np.int32 and np.isin(host, train).all()
    assert len(np.unique(host)) > 0.9 * 3000 * (1 - np.exp(-2 / 3))  # with replacement
    places = np.searchsorted(train, host)
    assert abs(places.mean() / 2999 - 0.5) < 0.03 and abs(np.corrcoef(places, example)[0, 1]) < 0.1
    for other in (randomness.partners(train, example, 5, 2**32 - 1), randomness.partners(train, example, 4, 1)):
        assert (host == other).mean() < 0.01


def test_the_table_of_shares_is_the_beta_distribution():
    np.testing.assert_allclose(mixing.shares(1.0), (np.arange(4096) + 0.5) / 4096, atol=1e-6)
    for alpha in (0.2, 2.0):
        share = mixing.shares(alpha).astype(np.float64)
        assert (np.diff(share) >= 0).all() and abs(share.mean() - 0.5) < 1e-3
        assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 1e-3


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_are_mixed_by_the_fractions_that_are_returned(kind):
    count = 2000
    own, other = np.ones((count, 16, 12, 1), np.float32), np.zeros((count, 16, 12, 1), np.float32)
    example = np.arange(count, dtype=np.int32)
    images, kept = mixing.mix(own, other, example, 3, 7, mix=kind, alpha=1.0)
    np.testing.assert_allclose(np.mean(images, axis=(1, 2, 3)), kept, atol=1e-5)
    assert 0 <= kept.min() < (0.01 if kind == "mixup" else 0.4) and 0.99 < kept.max() <= 1
    if kind == "mixup":
        assert np.std(images, axis=(1, 2, 3)).max() < 1e-6 and abs(np.mean(kept) - 0.5) < 0.03
    else:
        values = np.asarray(images)
        assert set(np.unique(values)) == {0.0, 1.0}
        rows, columns = (values[..., 0].min(axis=axis) == 0 for axis in (2, 1))
        box = rows.sum(axis=1) * columns.sum(axis=1)
        np.testing.assert_array_equal(box, (values == 0).sum(axis=(1, 2, 3)))
        bits = words("mix", 1, 3)[0]
        side = [int(total * np.sqrt(1 - mixing.shares(1.0)[bits[0] >> 20])) // 2 for total in (16, 12)]
        y, x = int(bits[1] % 16), int(bits[2] % 12)
        expected = np.ones((16, 12))
        expected[max(y - side[0], 0) : y + side[0], max(x - side[1], 0) : x + side[1]] = 0
        np.testing.assert_array_equal(values[0, ..., 0], expected)


def test_a_mixed_view_mixes_the_two_views_without_mixing():
    images, rows = photos(8), np.arange(8, dtype=np.int32)
    partner = np.array([3, 3, 0, 7, 1, 2, 6, 5], np.int32)
    mix = jax.jit(functools.partial(augment.mixed, view="crop_flip+mixup:1", stored=BYTES))
    mixed, kept = mix(images, (rows, rows), (partner, partner), 3, 7)
    alone = shown("crop_flip", images) / np.float32(255)
    part = np.asarray(kept)[:, None, None, None]
    np.testing.assert_allclose(mixed, part * alone + (1 - part) * alone[partner], atol=1e-5)
    half, again = mix(images, (rows[4:], rows[4:]), (partner[4:], partner[4:]), 3, 7)
    np.testing.assert_array_equal(again, kept[4:])
    np.testing.assert_allclose(half, mixed[4:], atol=1e-6)


# ---- names


def test_names_join_and_take_arguments():
    assert view_names.parse("crop_flip") == view_names.View(crop="padded", flip=True)
    joined = view_names.parse("rrc_flip:0.25+jitter:0.3+randaugment:3,15+cutout:8+mixup:0.2")
    assert joined == view_names.View("resized", 0.25, True, 0.0, 0.3, "randaugment", 3, 15, 8.0, "mixup", 0.2)
    assert set(view_names.ARGUMENTS) <= set(view_names.VIEWS)


@pytest.mark.parametrize(
    ("text", "words_"),
    [
        ("crop_flop", "unknown view 'crop_flop'. Did you mean 'crop_flip'?"),
        ("crop:4", "'crop' takes none"),
        ("randaugment:2,10,3", "takes 2: count, magnitude"),
        ("randaugment:2,31", r"magnitude must be a whole number in \[0, 30\], not '31'"),
        ("mixup:x", "alpha must be a number"),
        ("", "unknown view ''"),
    ],
)
def test_a_wrong_name_or_argument_is_a_one_line_error(text, words_):
    with pytest.raises(UserError, match=words_):
        view_names.parse(text)


def test_views_that_do_not_suit_the_data_are_refused():
    with pytest.raises(UserError, match="vectors"):
        view_names.check("flip", (4,), np.float32, "config.data.view 'flip'")
    with pytest.raises(UserError, match="bytes"):
        view_names.check("jitter", (4, 4, 3), np.dtype("float32"), "config.data.view 'jitter'")
    assert view_names.check("jitter", (4, 4, 1), np.dtype("uint8"), "here").jitter == 0.4
    assert view_names.check("none", (4,), np.dtype("float32"), "here") == view_names.View()
