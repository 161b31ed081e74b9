"""The statistics in NumPy, written from their definitions, for the tests to compare with."""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return sum(pk * np.log(pk / qk) for pk, qk in zip(p, q) if pk > 0)


def entropy(p):
    return -sum(pk * np.log(pk) for pk in p if pk > 0)


def ece(confidence, correct, bins, weighted):
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += gap * (inside.mean() if weighted else 1 / bins)
    return total


def bilinear(image, size):
    """Resizes between pixel centres without smoothing; coordinates are clipped to the image."""
    out = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = max((row + 0.5) * image.shape[0] / size[0] - 0.5, 0)
            x = max((column + 0.5) * image.shape[1] / size[1] - 0.5, 0)
            top, left = int(y), int(x)
            below, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            dy, dx = y - top, x - left
            upper = (1 - dx) * image[top, left] + dx * image[top, right]
            lower = (1 - dx) * image[below, left] + dx * image[below, right]
            out[row, column] = (1 - dy) * upper + dy * lower
    return out


def iou(masks):
    shared, united = masks[0], masks[0]
    for each in masks[1:]:
        shared, united = shared & each, united | each
    return shared.sum() / united.sum()
