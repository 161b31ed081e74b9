"""A stream gives the same images as memory, in the order of `Order`, complete, split over processes, from any step."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from kdjax import randomness
from kdjax.data import Dataset, Stored, make_order
from kdjax.data.encoded import Files
from kdjax.data.keeping import keep
from kdjax.data.stream import eval_stream, train_stream
from kdjax.data.views import crop_boxes
from kdjax.errors import UserError

STORED = Stored(1 / 255, (0.5,), (0.5,), ("none", "crop", "crop_flip"))


def in_memory(count=50, held_out=10) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3), np.uint8)
    rows = np.arange(count, dtype=np.int32)
    splits = {"train": rows[:-held_out], "test": rows[-held_out:]}
    return Dataset("made", images, rows % 3, None, 3, splits, STORED, streamed=True)


def write_images(folder, sizes, suffix="png"):
    rng, paths = np.random.default_rng(1), []
    for i, (height, width) in enumerate(sizes):
        paths.append(str(folder / f"{i:03}.{suffix}"))
        smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height))
        smooth.save(paths[-1])
    return Files(tuple(paths))


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory) -> Dataset:
    sizes = [(20 + 3 * i, 45 - 2 * i) for i in range(12)]
    files = write_images(tmp_path_factory.mktemp("images"), sizes)
    rows = np.arange(12, dtype=np.int32)
    stored = STORED._replace(size=16, kernel="bilinear", cropped=True)
    splits = {"train": rows[:8], "test": rows[8:]}
    return Dataset("made", files, rows % 2, None, 2, splits, stored, image_shape=(16, 16, 3), streamed=True)


def stream(dataset, order, first, last, **options):
    options = {"smallest": 0.0, "mixes": False, "workers": 0, **options}
    return list(train_stream(dataset, order, first, last, **options))


def test_a_stream_reads_the_rows_of_the_order_from_any_step():
    data = in_memory()
    order = make_order(data, 8, 4)
    wanted = np.concatenate([order.epoch(epoch).index for epoch in range(3)])
    got = stream(data, order, 0, 15)
    for pixels, index in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(pixels.images, data.images[index])
        assert pixels.good.all()
    for first in (3, 5, 13):
        rest = stream(data, order, first, 15)
        assert len(rest) == 15 - first
        np.testing.assert_array_equal(rest[0].images, got[first].images)
        np.testing.assert_array_equal(rest[-1].images, got[-1].images)


def test_processes_share_a_batch_without_overlap():
    data = in_memory()
    order = make_order(data, 8, 4)
    whole = stream(data, order, 0, 5)
    parts = [stream(data, order, 0, 5, shard=(number, 2)) for number in range(2)]
    for one, a, b in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(one.images, np.concatenate([a.images, b.images]))


def test_partners_follow_the_examples():
    data = in_memory()
    order = make_order(data, 8, 4)
    pixels = stream(data, order, 7, 8, mixes=True)[0]
    epoch, step = divmod(7, order.steps)
    index, visit = (part[step] for part in order.epoch(epoch))
    partner = randomness.partners(data.splits["train"], index, visit, 4)
    np.testing.assert_array_equal(pixels.images, data.images[np.concatenate([index, partner])])


def by_pillow(path, box, size=16):
    top, left, tall, wide = box
    image = Image.open(path).convert("RGB").crop((left, top, left + wide, top + tall))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def test_images_of_different_sizes_are_cropped_at_random_in_training_and_centrally_otherwise(many_sizes):
    data = many_sizes
    order = make_order(data, 4, 9)
    pixels = stream(data, order, 0, 2, smallest=0.3)
    steps = order.epoch(0)
    for step, row in itertools.product(range(2), range(4)):
        example = int(steps.index[step, row])
        width, height = Image.open(data.images.paths[example]).size
        words = randomness.bits([example], 0, 9, "resized", crop_boxes.WORDS)
        box = [int(part[0]) for part in crop_boxes.resized_box(words, 0.3, height, width)]
        np.testing.assert_array_equal(pixels[step].images[row], by_pillow(data.images.paths[example], box))
    index = data.splits["test"][None]
    shown = next(eval_stream(data, index)).images
    for row, example in enumerate(index[0]):
        width, height = Image.open(data.images.paths[example]).size
        side = round(min(height, width) * 7 / 8)
        box = ((height - side) // 2, (width - side) // 2, side, side)
        np.testing.assert_array_equal(shown[row], by_pillow(data.images.paths[example], box))


def test_worker_processes_read_what_threads_read(many_sizes):
    order = make_order(many_sizes, 4, 9)
    threads, processes = (stream(many_sizes, order, 1, 6, smallest=0.3, workers=workers) for workers in (0, 2))
    for a, b in zip(threads, processes, strict=True):
        np.testing.assert_array_equal(a.images, b.images)


def with_a_broken_image(dataset, tmp_path) -> Dataset:
    content = open(dataset.images.paths[2], "rb").read()
    broken = tmp_path / "broken.png"
    broken.write_bytes(content[: len(content) // 2])
    paths = [*dataset.images.paths[:2], str(broken), *dataset.images.paths[3:]]
    return dataclasses.replace(dataset, images=Files(tuple(paths)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_ends_the_stream_in_one_line(many_sizes, tmp_path, workers):
    data = with_a_broken_image(many_sizes, tmp_path)
    with pytest.raises(UserError, match="broken.png cannot be read as an image"):
        stream(data, make_order(data, 4, 9), 0, 2, workers=workers)


def test_a_stream_may_skip_and_count_bad_images(many_sizes, tmp_path):
    data = dataclasses.replace(with_a_broken_image(many_sizes, tmp_path), skip_bad=True)
    order = make_order(data, 4, 9)
    for pixels, index in zip(stream(data, order, 0, 2), order.epoch(0).index, strict=True):
        np.testing.assert_array_equal(pixels.good, index != 2)
        if not pixels.good.all():  # replaced with another image, not with a black one
            others = pixels.images[pixels.good]
            assert any((pixels.images[~pixels.good][0] == other).all() for other in others)


def test_images_of_one_size_are_kept_in_memory_and_others_are_not(tmp_path):
    (tmp_path / "one").mkdir()
    alike, unlike = write_images(tmp_path / "one", [(7, 9)] * 3), write_images(tmp_path, [(7, 9), (9, 7), (7, 9)])
    kept = keep(alike, 0, "auto", False)
    assert kept.images.shape == (3, 7, 9, 3) and kept.shape == (7, 9, 3) and not kept.cropped
    np.testing.assert_array_equal(kept.images[1], np.asarray(Image.open(alike.paths[1])))
    assert keep(alike, 0, "always", False).images is alike
    assert keep(unlike, 32, "auto", False) == (unlike, (32, 32, 3), True)
    with pytest.raises(UserError, match="set config.data.size"):
        keep(unlike, 0, "auto", False)
    with pytest.raises(UserError, match="always streamed"):
        keep(unlike, 32, "never", False)
