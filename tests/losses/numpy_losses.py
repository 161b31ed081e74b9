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


def sides(student_logits, teacher_logits, temperature):
    return softmax(teacher_logits / temperature), softmax(student_logits / temperature)


def forward_kl(student_logits, teacher_logits, *, temperature=1.0):
    return kl(*sides(student_logits, teacher_logits, temperature))


def reverse_kl(student_logits, teacher_logits, *, temperature=1.0):
    return kl(*sides(teacher_logits, student_logits, temperature))


def jeffreys(student_logits, teacher_logits, *, temperature=1.0):
    p, q = sides(student_logits, teacher_logits, temperature)
    return kl(p, q) + kl(q, p)


def skew_kl(student_logits, teacher_logits, *, skew=0.1, temperature=1.0):
    p, q = sides(student_logits, teacher_logits, temperature)
    return kl(p, skew * p + (1 - skew) * q)


def skew_reverse_kl(student_logits, teacher_logits, *, skew=0.1, temperature=1.0):
    return skew_kl(teacher_logits, student_logits, skew=skew, temperature=temperature)


def jensen_shannon(student_logits, teacher_logits, *, beta=0.5, scaled=False, temperature=1.0):
    p, q = sides(student_logits, teacher_logits, temperature)
    m = beta * p + (1 - beta) * q
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta) if scaled else 1)


def total_variation(student_logits, teacher_logits, *, temperature=1.0):
    p, q = sides(student_logits, teacher_logits, temperature)
    return np.abs(p - q).sum(axis=-1) / 2


def alpha_beta(student_logits, teacher_logits, *, alpha=0.8, beta=0.3, temperature=1.0):
    p, q = sides(student_logits, teacher_logits, temperature)
    if alpha == beta == 0:
        return np.sum(np.log(p / q) ** 2, axis=-1) / 2
    if alpha == 0:
        return np.sum(q**beta * np.log(q**beta / p**beta) - q**beta + p**beta, axis=-1) / beta**2
    if beta == 0:
        return np.sum(p**alpha * np.log(p**alpha / q**alpha) - p**alpha + q**alpha, axis=-1) / alpha**2
    if alpha == -beta:
        return np.sum(np.log(q**alpha / p**alpha) + (p / q) ** alpha - 1, axis=-1) / alpha**2
    s = alpha + beta
    return -np.sum(p**alpha * q**beta - alpha / s * p**s - beta / s * q**s, axis=-1) / (alpha * beta)


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


def gce(logits, labels, *, q=0.7):
    p = softmax(logits)
    by_class = -np.log(p) if q == 0 else (1 - p**q) / q
    return np.sum(probabilities(labels, logits.shape[-1]) * by_class, axis=-1)


def corrected_kd(student_logits, teacher_logits, labels, *, temperature=4.0, floor=0.01, teacher_smoothing=0.0):
    classes = student_logits.shape[-1]
    p = (1 - teacher_smoothing) * softmax(teacher_logits) + teacher_smoothing / classes
    r = probabilities(labels, classes) / np.maximum(p, floor) - 1
    w, log_q = softmax(teacher_logits / temperature), np.log(softmax(student_logits / temperature))
    correction = np.sum(r * w, axis=-1) * np.sum(w * log_q, axis=-1) - np.sum(r * w * log_q, axis=-1)
    return temperature**2 * (np.sum(w * (np.log(w) - log_q), axis=-1) + correction / temperature)
