"""A tiny transducer whose predictor remembers everything, and searches over it in plain Python and float64."""

import functools

import jax.numpy as jnp
import numpy as np

from models.transducer.decode import Decodable, Fusion

WIDTH, MEMORY = 3, 4


def _start(params, batch):
    return {"h": jnp.zeros((batch, params["a"].shape[0]))}


def _step(params, labels, state):
    h = jnp.tanh(state["h"] @ params["a"] + jnp.asarray(params["table"])[labels])
    return h @ params["b"], {"h": h}


def _joiner(params, encoded, predicted):
    return jnp.tanh(encoded + predicted) @ params["out"] + params["bias"]


def _lm_start(params, batch):
    return jnp.zeros((batch,)), jnp.zeros((batch,), jnp.int32)


def _lm_step(params, labels, state):
    total, count = state
    total = total * 0.5 + labels
    return jnp.cos(total[:, None] * params + count[:, None]), (total, count + 1)


class Model:
    """Both sides of a random transducer: `decodable` and `fusion` for searches, log_probs and lm for the oracles."""

    def __init__(self, seed, classes, frames, batch=1, bias=0.0):
        rng = np.random.default_rng(seed)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
        self.params = {
            "a": draw(MEMORY, MEMORY),
            "table": draw(classes, MEMORY) * 2,
            "b": draw(MEMORY, WIDTH) * 2,
            "out": draw(WIDTH, classes) * 1.5,
            "bias": np.where(np.arange(classes) == 0, bias, 0).astype(np.float32),
        }
        self.lm_params = draw(classes)
        self.encoded = draw(batch, frames, WIDTH)
        self.classes = classes
        self.decodable = Decodable(params=self.params, start=_start, step=_step, joiner=_joiner)
        self.fusion = Fusion(params=self.lm_params, start=_lm_start, step=_lm_step)
        self.predicted = functools.cache(self._predicted)
        self.lm = functools.cache(self._lm)

    def _memory(self, labels):
        p = {k: v.astype(np.float64) for k, v in self.params.items()}
        h = np.zeros(MEMORY)
        for label in (0, *labels):
            h = np.tanh(h @ p["a"] + p["table"][label])
        return h

    def _predicted(self, labels):
        return self._memory(labels) @ self.params["b"].astype(np.float64)

    def log_probs(self, frame, labels, row=0):
        """log P(class) after these labels."""
        x = np.tanh(self.encoded[row, frame] + self.predicted(labels)) @ self.params["out"].astype(np.float64)
        x += self.params["bias"]
        return x - np.logaddexp.reduce(x)

    def logits(self, labels, row=0):
        """[frames, labels + 1, classes]."""
        frames = range(self.encoded.shape[1])
        return np.stack([[self.log_probs(t, labels[:u], row) for u in range(len(labels) + 1)] for t in frames])

    def _lm(self, labels):
        """Scores of the next label."""
        total = 0.0
        for label in (0, *labels):
            total = total * 0.5 + label
        return np.cos(total * self.lm_params.astype(np.float64) + len(labels))

    def external(self, labels):
        return sum(self.lm(labels[:u])[label] for u, label in enumerate(labels))


def greedy(model, frames, max_symbols, max_labels, row=0, monotonic=False):
    """(labels, their frames, log-probability of the path)."""
    labels, times, total = (), [], 0.0
    for t in range(frames):
        emitted = 0
        while True:
            log_p = model.log_probs(t, labels, row)
            best = int(np.argmax(log_p))
            if emitted == max_symbols or len(labels) == max_labels:
                best = 0
            total += log_p[best]
            if best == 0:
                break
            labels, emitted = (*labels, best), emitted + 1
            times.append(t)
            if monotonic:
                break
    return labels, times, total


def _best(found, model, width, fuse):
    rank = lambda item: -(item[1][0] + (model.external(item[0]) if fuse else 0))  # noqa: E731
    return dict(sorted(found.items(), key=rank)[:width])


def _add(found, labels, log_prob, times):
    """Sums over ways; the times are those of the greater part."""
    if labels in found:
        before, kept = found[labels]
        times = times if log_prob > before else kept
        log_prob = np.logaddexp(before, log_prob)
    found[labels] = (log_prob, times)


def modified_beam(model, frames, width, max_labels, row=0, fuse=False):
    """labels -> (log_prob, times), best first."""
    beam = {(): (0.0, ())}
    for t in range(frames):
        found = {}
        for labels, (total, times) in beam.items():
            log_p = model.log_probs(t, labels, row)
            _add(found, labels, total + log_p[0], times)
            for k in range(1, model.classes if len(labels) < max_labels else 1):
                _add(found, (*labels, k), total + log_p[k], (*times, t))
        beam = _best(found, model, width, fuse)
    return beam


def expansion_beam(model, frames, width, max_labels, max_symbols, gamma, row=0, fuse=False):
    """labels -> (log_prob, times), best first."""
    rank = lambda labels, total: total + (model.external(labels) if fuse else 0)  # noqa: E731
    live = {(): (0.0, ())}
    for t in range(frames):
        done = {}
        for count in range(max_symbols + 1):
            longer = {}
            for labels, (total, times) in live.items():
                log_p = model.log_probs(t, labels, row)
                _add(done, labels, total + log_p[0], times)
                if count < max_symbols and len(labels) < max_labels:
                    for k in range(1, model.classes):
                        longer[(*labels, k)] = (total + log_p[k], (*times, t))
            done = _best(done, model, width, fuse)
            best = max(rank(labels, total) for labels, (total, _) in done.items())
            longer = {y: v for y, v in longer.items() if rank(y, v[0]) >= best - gamma}
            live = _best(longer, model, width, fuse)
        live = done
    return live
