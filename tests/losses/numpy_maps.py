"""The losses on maps, embeddings and memories in NumPy, written as loops from their papers' formulas."""

import math

import numpy as np


def pool(x, size):
    """Returns the means over the cells floor(i h / n) to ceil((i + 1) h / n)."""
    out = np.zeros((x.shape[0], size, size, x.shape[3]))
    h, w = x.shape[1:3]
    for i in range(size):
        for j in range(size):
            cell = x[:, i * h // size : math.ceil((i + 1) * h / size), j * w // size : math.ceil((j + 1) * w / size)]
            out[:, i, j] = cell.mean((1, 2))
    return out


def alike(s, t):
    size = min(s.shape[1], t.shape[1])
    return (s if s.shape[1] == size else pool(s, size)), (t if t.shape[1] == size else pool(t, size))


def unit(v):
    return v / max(np.linalg.norm(v), 1e-12)


def hint(s, t):
    return np.mean((s - t) ** 2)


def ickd(s, t):
    def correlations(f):
        gram = np.array([[(f[..., i] * f[..., j]).sum() for j in range(f.shape[-1])] for i in range(f.shape[-1])])
        return np.stack([unit(row) for row in gram])

    total = sum(((correlations(a) - correlations(b)) ** 2).sum() for a, b in zip(s, t))
    return total / (s.shape[0] * s.shape[-1])


def srrl(s, t, crossed, taught, weight):
    vectors = [np.array([[f[..., c].mean() for c in range(f.shape[-1])] for f in x]) for x in (s, t)]
    return np.mean((vectors[0] - vectors[1]) ** 2) + weight * np.mean((crossed - taught) ** 2)


def simkd(s, t):
    return hint(*alike(s, t))


def sdd(s, t, labels, temperature):
    out = np.zeros(len(s))
    for i, (a, b) in enumerate(zip(s, t)):
        for student, teacher in zip(a, b):
            p, q = softmax(teacher / temperature), softmax(student / temperature)
            differ = (b[0].argmax() == labels[i]) != (teacher.argmax() == labels[i])
            out[i] += (1 + differ) * temperature**2 * (p * np.log(p / q)).sum() / len(a)
    return out


def catkd(s, t, size):
    return hint(pool(s, size), pool(t, size))


def nd(s, t, means, labels):
    values = []
    for a, b, y in zip(s, t, labels):
        c = means[y]
        values.append(1 - a @ c / np.linalg.norm(c) / max(np.linalg.norm(a), np.linalg.norm(b)))
    return np.array(values)


def ofa(heads, teacher, labels, exponent, weights):
    p, out = softmax(teacher), np.zeros(len(teacher))
    for logits, weight in zip(heads, weights):
        q = softmax(logits)
        for i, y in enumerate(labels):
            for k in range(q.shape[1]):
                share = (p[i, k] + 1) ** exponent - 1 if k == y else p[i, k] ** exponent
                out[i] -= weight * share * np.log(q[i, k])
    return out


def vitkd(low, low_teacher, made, high, masked, weights):
    out = np.zeros(len(made))
    for i in range(len(made)):
        out[i] = weights[0] * sum(((s[i] - t[i]) ** 2).sum() for s, t in zip(low, low_teacher))
        for a, b in np.argwhere(masked[i]):
            out[i] += weights[1] / masked[i].mean() * ((made[i, a, b] - high[i, a, b]) ** 2).sum()
    return out


def attention(s, t):
    total = 0.0
    for a, b in zip(s, t):
        a, b = (np.stack([unit((f**2).mean(-1).ravel()) for f in x]) for x in alike(a, b))
        total += np.mean((a - b) ** 2)
    return total


def nst(s, t):
    def kernel(a, b):
        return np.mean([[(x @ y) ** 2 for x in f for y in g] for f, g in zip(a, b)])

    total = 0.0
    for a, b in zip(s, t):
        a, b = ([[unit(f[..., c].ravel()) for c in range(f.shape[-1])] for f in x] for x in alike(a, b))
        total += kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)
    return total


def fsp(s, t):
    def gram(low, high):
        low, high = alike(low, high)
        positions = low.shape[1] * low.shape[2]
        return np.stack(
            [h.reshape(-1, h.shape[-1]).T @ x.reshape(-1, x.shape[-1]) / positions for x, h in zip(low, high)]
        )

    return sum(np.mean((gram(a, c) - gram(b, d)) ** 2) for a, c, b, d in zip(s, s[1:], t, t[1:]))


def factor_transfer(s, t):
    s, t = (np.stack([unit((f**2).mean(-1).ravel()) for f in x]) for x in alike(s, t))
    return np.mean(np.abs(s - t))


def activation_boundary(s, t, margin=1.0):
    total = 0.0
    for i, (a, b) in enumerate(zip(s, t)):
        value = 0.0
        for x, y in zip(a.ravel(), b.ravel()):
            if y > 0 and x <= margin:
                value += (x - margin) ** 2
            elif y <= 0 and x > -margin:
                value += (x + margin) ** 2
        total += 2.0 ** (i - len(s) + 1) * value / len(a) / 1000 * 3
    return total


def vid(s, t, variances):
    return sum(np.mean(0.5 * ((a - b) ** 2 / v + np.log(v))) for a, b, v in zip(s, t, variances))


def review(s, t):
    total = 0.0
    for a, b in zip(s, t):
        value, weights, weight = np.mean((a - b) ** 2), 1.0, 1.0
        for level in (4, 2, 1):
            if level < a.shape[1]:
                weight /= 2
                value, weights = value + weight * np.mean((pool(a, level) - pool(b, level)) ** 2), weights + weight
        total += value / weights
    return total


def ofd(s, t, margins):
    total = 0.0
    for i, (a, b, m) in enumerate(zip(s, t, margins)):
        target = np.where(b > 0, b, np.maximum(b, m))  # the margin ReLU
        counts = (b > 0) | (a > target)
        total += np.sum(np.where(counts, (a - target) ** 2, 0)) / len(a) / 2 ** (len(s) - i - 1)
    return total


def svd(s, t):
    def leading(f, k):
        vectors = [np.linalg.svd(x.reshape(-1, x.shape[-1]), full_matrices=False)[2][:k] for x in f]
        return np.stack(vectors)

    total, before = 0.0, None
    for a, b in zip(s, t):
        teacher, student = leading(b, 1)[:, 0], leading(a, 4)
        chosen = []
        for vectors, other in zip(student, teacher):
            cosines = vectors @ other
            best = np.argmax(np.abs(cosines))
            chosen.append(np.sign(cosines[best]) * vectors[best])
        now = np.stack(chosen), teacher
        if before is not None:
            kernels = [np.exp(-((x[:, :, None] - y[:, None]) ** 2) / 8) for x, y in zip(now, before)]
            total += np.sum((kernels[0] - kernels[1]) ** 2) / len(a)
        before = now
    return total


def similarity(s, t):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    a, b = (np.stack([unit(row) for row in f @ f.T]) for f in (s, t))
    return np.sum((a - b) ** 2) / len(s) ** 2


def correlation(s, t):
    d = np.abs(s - t)
    return np.mean([np.sum(d[i] * d[i + 1]) for i in range(len(d) - 1)])


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def rkd(s, t):
    def distances(x):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / d[d > 0].mean()

    def angles(x):
        n = len(x)
        return np.array(
            [[[unit(x[i] - x[a]) @ unit(x[j] - x[a]) for j in range(n)] for i in range(n)] for a in range(n)]
        )

    return 25 * huber(distances(s) - distances(t)).mean() + 50 * huber(angles(s) - angles(t)).mean()


def pkt(s, t):
    def neighbours(x):
        x = np.stack([row / (np.linalg.norm(row) + 1e-7) for row in x])
        similar = (x @ x.T + 1) / 2
        return similar / similar.sum(1, keepdims=True)

    q, p = neighbours(s), neighbours(t)
    return np.mean(p * np.log((p + 1e-7) / (q + 1e-7)))


def itrd(s, t, projections, alpha):
    n = len(s)
    c = [
        np.sum((a - a.mean()) / a.std(ddof=1) * (b - b.mean()) / b.std(ddof=1)) / n for a, b in zip(projections.T, t.T)
    ]
    correlation_term = np.log2(np.sum(np.abs(np.array(c) - 1) ** (2 * alpha)))
    a, b = (np.stack([unit(row) for row in x]) for x in (s, t))
    own = a @ a.T
    both = own * (b @ b.T)
    own, both = own / np.trace(own), both / np.trace(both)
    return 2 * correlation_term + np.sum(own**2 - both**2)


def crd(student, teacher, normalizers, examples):
    total = 0.0
    for scores, z in zip((student, teacher), normalizers):
        x, noise = np.exp(scores) / z, (scores.shape[1] - 1) / examples
        total -= np.sum(np.log(x[:, 0] / (x[:, 0] + noise + 1e-7))) / len(x)
        total -= np.sum(np.log(noise / (x[:, 1:] + noise + 1e-7))) / len(x)
    return total


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dkd(s, t, labels, alpha, beta, temperature):
    values = []
    for a, b, y in zip(s / temperature, t / temperature, labels):
        q, p = softmax(a), softmax(b)
        two = [(p[y], q[y]), (1 - p[y], 1 - q[y])]
        target = sum(u * np.log(u / v) for u, v in two)
        q, p = softmax(np.delete(a, y)), softmax(np.delete(b, y))
        values.append(temperature**2 * (alpha * target + beta * np.sum(p * np.log(p / q))))
    return np.array(values)


def nkd(s, t, labels, gamma, temperature):
    values = []
    for a, b, y in zip(s, t, labels):
        own = -softmax(b)[y] * np.log(softmax(a)[y])
        q, p = softmax(np.delete(a, y) / temperature), softmax(np.delete(b, y) / temperature)
        values.append(own - gamma * temperature**2 * np.sum(p * np.log(q)))
    return np.array(values)


def gkl(s, t, alpha, beta, gamma, temperature, teacher_temperature):
    """From the definition: over all pairs of classes. The mean over examples is alpha CE + beta wMSE."""
    n, classes = s.shape
    error, total = np.zeros(n), 0.0
    for row in range(n):
        w = softmax(t[row] / teacher_temperature) ** gamma
        for i in range(classes):
            for j in range(classes):
                apart = (t[row, i] - t[row, j]) - (s[row, i] - s[row, j])
                error[row] += w[i] * w[j] * apart**2 / 4
                total += w[i] * w[j]
    soft = -np.sum(softmax(t / temperature) * np.log(softmax(s / temperature)), axis=-1)
    return alpha * soft + beta * n * error / total


def class_gkl(s, t, outputs, labels, alpha, beta, gamma, temperature):
    """The weights are those that `gkl` would make of a teacher with the mean outputs of the labels' classes."""
    n, error, total = len(s), np.zeros(len(s)), 0.0
    for row, label in enumerate(labels):
        w = outputs[label] ** gamma
        d = t[row] - s[row]
        pairs = np.outer(w, w) * (d[:, None] - d[None]) ** 2
        error[row], total = pairs.sum() / 4, total + np.outer(w, w).sum()
    soft = -np.sum(softmax(t / temperature) * np.log(softmax(s / temperature)), axis=-1)
    return alpha * soft + beta * n * error / total


def wkdl(s, t, costs, labels, gamma, label_weight, temperature, regularization=0.05, iterations=10):
    """As loops over the examples, each with the label's row and column taken out of the costs."""
    values = []
    for a, b, y in zip(s, t, labels):
        q, p = (softmax(np.delete(x, y) / temperature) for x in (a, b))
        c = np.maximum(np.delete(np.delete(costs, y, 0), y, 1), 0) + 1e-8
        k, u = np.exp(-c / regularization), np.full(len(q), 1 / len(q))
        for _ in range(iterations):
            v = p / (k.T @ u + 1e-8)
            u = q / (k @ v + 1e-8)
        plan = u[:, None] * k * v
        values.append(-label_weight * softmax(b)[y] * np.log(softmax(a)[y]) + gamma * (plan * c).sum())
    return np.array(values)


def mlkd(student, teacher, student_strong, teacher_strong, temperature):
    """From the released code's terms, with medians by np.percentile; the mean over examples is the loss."""
    p = softmax(teacher)
    sure, by_class = p.max(1), p.sum(0)
    f, f_c = np.mean(sure <= np.percentile(sure, 50)), np.mean(by_class <= np.percentile(by_class, 50))

    def kd(s, t, heat):
        a, b = softmax(t / heat), softmax(s / heat)
        return heat**2 * np.sum(a * np.log(a / b), axis=1)

    total = kd(student, teacher, 2) + kd(student, teacher, 6)
    for heat in (temperature, 3, 5):
        total = total + kd(student_strong, teacher_strong, heat)
    for heat in (temperature, 3, 5, 2, 6):
        a, b = softmax(teacher / heat), softmax(student / heat)
        total = total + f * kd(student, teacher, heat)
        total = total + f_c * np.sum((a.T @ a - b.T @ b) ** 2) / p.shape[1]
        total = total + f * np.sum((a @ a.T - b @ b.T) ** 2) / p.shape[0]
    return total


def relation_costs(vectors, sharpness):
    def cka(x, y):
        h = np.eye(len(x)) - 1 / len(x)
        hsic = lambda a, b: np.trace(a @ a.T @ h @ b @ b.T @ h)  # noqa: E731
        return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))

    return np.array([[1 - np.exp(-sharpness * (1 - cka(x, y))) for y in vectors] for x in vectors])


def dist(s, t, temperature):
    q, p = softmax(s / temperature), softmax(t / temperature)
    inter = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T)])
    return temperature**2 * (inter + intra)


def hsakd(s, t, temperature):
    total = np.zeros(len(s[0]))
    for a, b in zip(s, t):
        q, p = softmax(a / temperature), softmax(b / temperature)
        total += temperature**2 * np.sum(p * np.log(p / q), -1).mean(1)
    return total


def auxiliary_cross_entropy(branches, labels):
    values = [
        [[-np.log(softmax(z)[i, j, 4 * y + j]) for j in range(4)] for i, y in enumerate(labels)] for z in branches
    ]
    return np.sum(np.mean(values, axis=2), axis=0)
