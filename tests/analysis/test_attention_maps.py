"""Attention maps and their overlap, against loops and against values computed by PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_analysis as plain
import pytest
from sklearn.metrics import jaccard_score

from kdjax import analysis

BATCH, SIDE, DIM, CLASSES = 3, 4, 6, 5
# torch.nn.functional.interpolate(mode="bilinear", align_corners=False) of 0, 1, 3, 7 as a column, to 7 and to 3.
TORCH_UP = [0.0, 0.357142895, 0.928571463, 2.000000238, 3.285715103, 5.571429253, 7.0]
TORCH_DOWN = [0.166666687, 2.0, 6.333333969]


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(BATCH, SIDE, SIDE, DIM)).astype(np.float32)
    return features, rng.normal(size=(DIM, CLASSES)).astype(np.float32), rng.normal(size=CLASSES).astype(np.float32)


def test_class_activation_is_the_classifier_at_every_position(network):
    features, kernel, bias = network
    logits = np.einsum("bhwd,dk->bhwk", features, kernel) + bias
    np.testing.assert_allclose(analysis.class_activation(*network), logits.sum(axis=-1), rtol=1e-4, atol=1e-4)
    classes = np.array([4, 0, 2])
    expected = np.stack([logits[i, :, :, k] for i, k in enumerate(classes)])
    np.testing.assert_allclose(analysis.class_activation(*network, classes), expected, rtol=1e-4, atol=1e-4)
    without = analysis.class_activation(features, kernel)
    np.testing.assert_allclose(without, (logits - bias).sum(axis=-1), rtol=1e-4, atol=1e-4)
    same = analysis.normalize_maps(analysis.class_activation(*network))
    np.testing.assert_allclose(analysis.normalize_maps(without), same, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 3), (4, 4)])
def test_resize_is_bilinear_between_centres(network, size):
    maps = network[0][..., 0]
    expected = np.stack([plain.bilinear(each, size) for each in maps])
    np.testing.assert_allclose(analysis.resize_maps(maps, size), expected, atol=1e-5)


def test_resize_is_torchs():
    column = np.array([0.0, 1, 3, 7])[None, :, None]
    np.testing.assert_allclose(analysis.resize_maps(column, (7, 1))[0, :, 0], TORCH_UP, atol=1e-6)
    np.testing.assert_allclose(analysis.resize_maps(column, (3, 1))[0, :, 0], TORCH_DOWN, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.3, -123.4])
def test_a_constant_map_has_no_region_whatever_it_is_resized_to(value):
    for shape, size in [((7, 7), (56, 56)), ((2, 3), (7, 11)), ((4, 4), (32, 32)), ((8, 8), (3, 3))]:
        maps = np.full((2, *shape), value, np.float32)
        np.testing.assert_array_equal(analysis.resize_maps(maps, size), np.full((2, *size), value, np.float32))
        assert not np.asarray(analysis.regions(maps, size)).any()


def test_maps_are_put_between_zero_and_one_each_alone(network):
    maps = network[0][..., 0]
    found = analysis.normalize_maps(maps)
    for each, original in zip(found, maps):
        np.testing.assert_allclose(each, (original - original.min()) / (original.max() - original.min()), rtol=1e-5)
    assert not np.asarray(analysis.normalize_maps(np.full((1, 2, 2), 5.0))).any()


def test_regions_are_the_steps_in_the_papers_order(network):
    found = analysis.regions(analysis.class_activation(*network), (16, 16))
    for each, activation in zip(found, np.asarray(analysis.class_activation(*network))):
        large = plain.bilinear(activation, (16, 16))
        expected = (large - large.min()) / (large.max() - large.min() + 1e-8) > 0.4
        np.testing.assert_array_equal(each, expected)
    assert found.dtype == bool and 0 < np.mean(found) < 1


def test_grad_cam_of_a_pooled_classifier_is_its_class_activation(network):
    features, kernel, bias = network
    classes = np.array([1, 3, 3])

    def head(features):
        return features.mean(axis=(1, 2)) @ kernel + bias

    gradients = analysis.logit_gradients(head, features, classes)
    expected = np.broadcast_to(kernel[:, classes].T[:, None, None, :], features.shape) / SIDE**2
    np.testing.assert_allclose(gradients, expected, rtol=1e-5)
    activation = analysis.class_activation(features, kernel, None, classes)
    found = analysis.grad_cam(features, gradients)
    np.testing.assert_allclose(found, np.maximum(activation, 0) / SIDE**2, rtol=1e-4, atol=1e-6)


def test_grad_cam_is_its_formula(network):
    features = network[0]
    gradients = np.random.default_rng(1).normal(size=features.shape)
    for found, activation, gradient in zip(analysis.grad_cam(features, gradients), features, gradients):
        weighted = sum(gradient[..., c].mean() * activation[..., c] for c in range(DIM))
        np.testing.assert_allclose(found, np.maximum(weighted, 0), rtol=1e-4, atol=1e-5)


def drawn_regions(networks, seed=0):
    return list(np.random.default_rng(seed).random((networks, BATCH, SIDE, SIDE)) > 0.5)


def test_iou_of_equal_regions_is_one_and_of_disjoint_ones_zero():
    (region,) = drawn_regions(1)
    assert analysis.means(analysis.iou_sums([region] * 3)) == {"iou": 1, "pooled_iou": 1, "empty": 0}
    assert analysis.means(analysis.iou_sums([region, ~region])) == {"iou": 0, "pooled_iou": 0, "empty": 0}


def test_iou_of_two_is_scikit_learns():
    first, second = drawn_regions(2)
    found = analysis.means(analysis.iou_sums([first, second]))
    each = [jaccard_score(a.ravel(), b.ravel()) for a, b in zip(first, second)]
    assert found["iou"] == pytest.approx(np.mean(each), rel=1e-6)
    assert found["pooled_iou"] == pytest.approx(jaccard_score(first.ravel(), second.ravel()))


@pytest.mark.parametrize("networks", [3, 4])
def test_iou_of_more_is_of_all_of_them(networks):
    masks = drawn_regions(networks)
    found = analysis.means(analysis.iou_sums(masks))
    assert found["iou"] == pytest.approx(np.mean([plain.iou(each) for each in zip(*masks)]), rel=1e-6)
    assert found["pooled_iou"] == pytest.approx(plain.iou(masks))


def test_an_image_without_any_region_is_left_out_and_counted():
    first, second = drawn_regions(2)
    first[1] = second[1] = False
    found = analysis.means(analysis.iou_sums([first, second]))
    assert found["empty"] == pytest.approx(1 / BATCH)
    assert found["iou"] == pytest.approx(np.mean([plain.iou([first[i], second[i]]) for i in (0, 2)]), rel=1e-6)


def test_as_the_reference_code_pools_a_batch_and_weighs_it_by_its_size():
    batches = [drawn_regions(3, seed=0), [each[:2] for each in drawn_regions(3, seed=1)]]
    totals = analysis.add(*(analysis.reference_code_iou_sums(masks) for masks in batches))
    expected = np.average([plain.iou(masks) for masks in batches], weights=[BATCH, 2])
    assert analysis.means(totals)["reference_code_iou"] == pytest.approx(expected, rel=1e-6)
    masks = batches[0]
    part = analysis.reference_code_iou_sums(masks, np.array([True, False, True]))
    alone = analysis.reference_code_iou_sums([each[[0, 2]] for each in masks])
    np.testing.assert_allclose(part["reference_code_iou"], alone["reference_code_iou"])
    nothing = analysis.reference_code_iou_sums([np.zeros((2, 3, 3), bool)] * 2)
    np.testing.assert_array_equal(nothing["reference_code_iou"], (0, 0))


def test_all_of_it_may_be_compiled(network):
    def overlap(features, kernel, bias):
        whole = analysis.regions(analysis.class_activation(features, kernel, bias), (8, 8))
        one = analysis.regions(analysis.class_activation(features, kernel, bias, jnp.zeros(BATCH, int)), (8, 8))
        return analysis.iou_sums([whole, one])

    found, eager = jax.jit(overlap)(*network), overlap(*network)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(eager), rtol=1e-6)


def test_shapes_are_printed(network):
    features, kernel, bias = network
    first, second = drawn_regions(2)

    def head(maps):
        return maps.mean(axis=(1, 2)) @ kernel + bias

    for call, words in [
        (lambda: analysis.class_activation(features, kernel[:-1]), r"not \[5, 5\] beside features \[3, 4, 4, 6\]"),
        (lambda: analysis.class_activation(features, kernel, bias[1:]), r"not \[4\] beside kernel \[6, 5\]"),
        (lambda: analysis.class_activation(features[0], kernel), r"not \[4, 4, 6\]"),
        (lambda: analysis.class_activation(features, kernel, bias, np.zeros(2, int)), r"int\d+ \[2\]"),
        (
            lambda: analysis.class_activation(features, kernel, bias, np.array([0, -1, 2])),
            "class -1 is not one of .* 5",
        ),
        (lambda: analysis.logit_gradients(head, features, np.array([0, 1, 5])), "class 5 is not one of .* 5"),
        (lambda: analysis.grad_cam(features, features[1:]), r"\[3, 4, 4, 6\] and gradients \[2, 4, 4, 6\]"),
        (lambda: analysis.resize_maps(features, (8, 8)), r"maps must be .* not \[3, 4, 4, 6\]"),
        (lambda: analysis.resize_maps(features[..., 0], (8,)), r"size must be \(height, width\), not \(8,\)"),
        (lambda: analysis.regions(features[..., 0], (8, 8), 1.0), r"threshold must be in \[0, 1\), not 1.0"),
        (lambda: analysis.iou_sums([first, second[1:]]), r"\['\[3, 4, 4\]', '\[2, 4, 4\]'\]"),
        (lambda: analysis.iou_sums([first]), "two or more"),
        (lambda: analysis.iou_sums([first, second.astype(np.float32)]), "must be bool"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
