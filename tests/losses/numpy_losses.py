"""The losses on logits in NumPy and float64, written from their formulas, for the tests to compare with."""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q), axis=-1)


def renyi(p, order):
    if order == 1:
        return -np.sum(p * np.log(p), axis=-1)
    return np.log(np.sum(p**order, axis=-1)) / (1 - order)


def probabilities(labels, classes):
    return np.eye(classes)[labels] if labels.ndim == 1 else labels


def cross_entropy(logits, labels, *, label_smoothing=0.0):
    classes = logits.shape[-1]
    y = (1 - label_smoothing) * probabilities(labels, classes) + label_smoothing / classes
    return -np.sum(y * np.log(softmax(logits)), axis=-1)


def softmax_mse(logits, labels, *, space="probs", reduction="class_sum"):
    outputs = softmax(logits) if space == "probs" else logits
    total = np.sum((outputs - probabilities(labels, logits.shape[-1])) ** 2, axis=-1)
    return total / logits.shape[-1] if reduction == "class_mean" else total


def top_score_difference(logits, *, num_top=5):
    f = -np.sort(-softmax(logits), axis=-1)
    return f[:, 0] - np.sum(f[:, 1:num_top], axis=-1) / (num_top - 1)


def tolerant(logits, labels, *, num_top=5, eta=0.6):
    return eta * cross_entropy(logits, labels) + (1 - eta) * top_score_difference(logits, num_top=num_top)


def confidence_penalty(logits):
    return -renyi(softmax(logits), 1)


def kd(student_logits, teacher_logits, *, temperature=4.0):
    return temperature**2 * kl(softmax(teacher_logits / temperature), softmax(student_logits / temperature))


def power(p, gamma):
    return p**gamma / np.sum(p**gamma, axis=-1, keepdims=True)


def ttm(student_logits, teacher_logits, *, gamma):
    return kl(power(softmax(teacher_logits), gamma), softmax(student_logits))


def wttm(student_logits, teacher_logits, *, gamma, normalize="none"):
    weight = np.sum(softmax(teacher_logits) ** gamma, axis=-1)
    if normalize == "batch_mean":
        weight = weight / weight.mean()
    return weight * ttm(student_logits, teacher_logits, gamma=gamma)


def student_renyi(student_logits, *, order):
    return renyi(softmax(student_logits), order)
