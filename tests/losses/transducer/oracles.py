"""Transducers by enumeration of every path, and a plain recursion in float64 for long utterances."""

import numpy as np

STANDARD = ((1, False), (0, True))
MONOTONIC = ((1, False), (1, True))


def paths(frames, labels, arcs, ends_in_blank, t=0, u=0):
    """Every way from (t, u) to (frames, labels), a list of (arc, t, u)."""
    if (t, u) == (frames, labels):
        yield []
        return
    if t == frames:
        return
    for index, (taken, is_label) in enumerate(arcs):
        after = (t + taken, u + is_label)
        if after[0] > frames or after[1] > labels:
            continue
        if after == (frames, labels) and ends_in_blank and is_label:
            continue
        for rest in paths(frames, labels, arcs, ends_in_blank, *after):
            yield [(index, t, u), *rest]


class Enumeration:
    """What the paths say, given log-weights [T, U + 1] of each arc."""

    def __init__(self, weights, frames, labels, arcs=STANDARD, ends_in_blank=True):
        self.paths = list(paths(frames, labels, arcs, ends_in_blank))
        self.is_label = [label for _, label in arcs]
        self.log = np.array([sum(weights[a][t, u] for a, t, u in path) for path in self.paths])
        self.shape = (len(arcs), *weights[0].shape)
        self.labels = labels

    @property
    def cost(self):
        return -np.logaddexp.reduce(self.log) if len(self.log) else np.inf

    @property
    def share(self):
        return np.exp(self.log + self.cost)

    def posteriors(self):
        total = np.zeros(self.shape)
        for share, path in zip(self.share, self.paths, strict=True):
            for step in path:
                total[step] += share
        return total

    def emissions(self, path):
        """The frame of each label."""
        return np.array([t for a, t, _ in path if self.is_label[a]], float)

    def expected_emissions(self):
        return sum(s * self.emissions(p) for s, p in zip(self.share, self.paths, strict=True))

    def best(self):
        index = int(np.argmax(self.log))
        return self.emissions(self.paths[index]), self.log[index]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_probs(logits, labels, blank, hat=False):
    """(blank, next label) [T, U + 1] of one utterance; a label column of 0 behind the last."""
    x = np.asarray(logits, np.float64)
    if hat:
        rest = np.delete(x, blank, axis=-1)
        lp_blank = -np.log1p(np.exp(-x[..., blank]))
        lp = log_softmax(rest) - np.log1p(np.exp(x[..., blank]))[..., None]
        lp = np.insert(lp, blank, lp_blank, axis=-1)
    else:
        lp = log_softmax(x)
    lp_label = np.zeros(x.shape[:2])
    for u, label in enumerate(labels):
        lp_label[:, u] = lp[:, u, label]
    return lp[..., blank], lp_label


def recursion(logits, labels, blank):
    """Cost and gradient of one utterance [T, U + 1, V], by alpha and beta over anti-diagonals."""
    x = np.asarray(logits, np.float64)
    frames, symbols, _ = x.shape
    lp_blank, lp_label = log_probs(x, labels, blank)
    alpha = np.full((frames + 1, symbols), -np.inf)
    alpha[0, 0] = 0
    beta = np.full((frames + 1, symbols + 1), -np.inf)
    beta[frames, symbols - 1] = 0
    nodes = [np.array([(d - u, u) for u in range(symbols) if 0 <= d - u < frames]).T for d in range(frames + symbols)]
    with np.errstate(invalid="ignore"):
        for t, u in nodes[:-1]:
            up = u < symbols - 1
            alpha[t + 1, u] = np.logaddexp(alpha[t + 1, u], alpha[t, u] + lp_blank[t, u])
            t, u = t[up], u[up]
            alpha[t, u + 1] = np.logaddexp(alpha[t, u + 1], alpha[t, u] + lp_label[t, u])
        for t, u in nodes[-2::-1]:
            beta[t, u] = np.logaddexp(beta[t + 1, u] + lp_blank[t, u], beta[t, u + 1] + lp_label[t, u])
    total = beta[0, 0]
    through_blank = np.exp(alpha[:-1] + lp_blank + beta[1:, :-1] - total)
    through_label = np.exp(alpha[:-1] + lp_label + beta[:-1, 1:] - total)
    gradient = (through_blank + through_label)[..., None] * np.exp(log_softmax(x))
    gradient[..., blank] -= through_blank
    for u, label in enumerate(labels):
        gradient[:, u, label] -= through_label[:, u]
    return -total, gradient
