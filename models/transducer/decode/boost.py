"""Shallow fusion with a list of phrases: an Aho-Corasick automaton over labels, the classical way to bias a search."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from models.transducer.decode.decodable import Fusion

__all__ = ["phrase_boost"]


class _Automaton(NamedTuple):
    """Node 0 is the root; a node is what the last labels have in common with the beginnings of phrases.

    Attributes:
      labels: of the edges of each node but the root, 0 behind them.
      targets: of these edges; -1 behind them.
      first: where each label leads from the root.
      fail: the node of the longest proper suffix.
      earned: by the phrases that end at a node, in labels.
      hoped: by the phrase that may be on its way, in labels.
      reward: of a label, in nats.
    """

    labels: Int[np.ndarray, "nodes d"]
    targets: Int[np.ndarray, "nodes d"]
    first: Int[np.ndarray, "classes"]
    fail: Int[np.ndarray, "nodes"]
    earned: Float[np.ndarray, "nodes"]
    hoped: Float[np.ndarray, "nodes"]
    reward: Float[np.ndarray, ""]


def phrase_boost(phrases: Sequence[Sequence[int]], classes: int, *, reward: float) -> Fusion:
    """Scores that lead a search to phrases.

        score(y) = reward * (sum of the lengths of the phrases in y + labels of the phrase that y ends within)

    Every place of y at which a phrase ends counts, also one phrase within another. The last term is paid in advance,
    label by label, so that a phrase is not dropped before it is complete; what turns out to be none is paid back at
    once, by the automaton's failure links, or at the end of the utterance. ("Ends within": the longest end of y that
    begins a phrase and is none that nothing longer begins with.) Where a phrase ends, a longer word may go on: labels
    know no words.

    Args:
      phrases: labels of each, in [1, classes); equal ones count once.
      classes: labels of the transducer, the blank, 0, among them.
      reward: of a label, in nats.

    Returns:
      What `decode` takes. Programs are shared by automata whose sizes, rounded up to powers of 2, are the same.

    Raises:
      ValueError: if a phrase is empty or has a label out of range, or the reward is negative or not finite.

    Example:
      >>> boost = phrase_boost([[1, 2, 3]], 5, reward=1.0)
      >>> scores, state = boost.scores(jnp.array([0]), boost.initial_state(1))
      >>> scores[0, 1:].tolist()  # at the beginning: the first label of a phrase
      [1.0, 0.0, 0.0, 0.0]
      >>> scores, state = boost.scores(jnp.array([1]), state)
      >>> scores[0, 1:].tolist()  # another 1 begins anew, 2 goes on, and the others pay back
      [0.0, 1.0, -1.0, -1.0]
    """
    if not (math.isfinite(reward) and reward >= 0):
        raise ValueError(f"reward: {reward}; a number, 0 or more, is needed")
    for phrase in phrases:
        if not len(phrase) or not all(0 < label < classes for label in phrase):
            raise ValueError(f"phrases: {list(phrase)}; one label or more, in 1 to {classes - 1}, are needed")
    edges, ends, depth = _trie(phrases)
    fail, order = _failures(edges)
    earned, hoped = np.where(ends, depth, 0.0), np.where([bool(own) for own in edges], depth, 0.0)
    for node in order:  # a node comes behind those of its suffixes
        earned[node] += earned[fail[node]]
        if not edges[node]:
            hoped[node] = hoped[fail[node]]
    nodes = _power(len(edges), least=64)
    widest = _power(max((len(own) for own in edges[1:]), default=0), least=4)
    labels, targets = np.zeros((nodes, widest), np.int32), np.full((nodes, widest), -1, np.int32)
    for node, own in enumerate(edges[1:], start=1):
        labels[node, : len(own)], targets[node, : len(own)] = list(own), list(own.values())
    first = np.zeros(classes, np.int32)
    for label, node in edges[0].items():
        first[label] = node

    def filled(x: np.ndarray, kind: type) -> np.ndarray:
        return np.pad(x, (0, nodes - len(x))).astype(kind)

    params = _Automaton(
        labels=labels,
        targets=targets,
        first=first,
        fail=filled(fail, np.int32),
        earned=filled(earned, np.float32),
        hoped=filled(hoped, np.float32),
        reward=np.array(reward, np.float32),
    )
    return Fusion(params=jax.tree.map(jnp.asarray, params), start=_start, step=_step, end=_end)


def _power(size: int, *, least: int) -> int:
    return max(least, 1 << max(size - 1, 0).bit_length())


def _trie(phrases: Sequence[Sequence[int]]) -> tuple[list[dict[int, int]], np.ndarray, np.ndarray]:
    """(edges of each node, whether a phrase ends there, its distance from the root)."""
    edges, ends, depth = [{}], [False], [0]
    for phrase in phrases:
        node = 0
        for label in map(int, phrase):
            if label not in edges[node]:
                edges[node][label] = len(edges)
                edges.append({})
                ends.append(False)
                depth.append(depth[node] + 1)
            node = edges[node][label]
        ends[node] = True
    return edges, np.array(ends), np.array(depth)


def _failures(edges: list[dict[int, int]]) -> tuple[np.ndarray, list[int]]:
    """(failure links, the nodes but the root by their depth)."""
    fail, order, waiting = np.zeros(len(edges), np.int64), [], deque([0])
    while waiting:
        node = waiting.popleft()
        for label, target in edges[node].items():
            if node:
                suffix = int(fail[node])
                while suffix and label not in edges[suffix]:
                    suffix = int(fail[suffix])
                fail[target] = edges[suffix].get(label, 0)
            order.append(target)
            waiting.append(target)
    return fail, order


class _State(NamedTuple):
    """A node, and where each label leads from it: what the scores need is what the next step needs."""

    node: Int[Array, "b"]
    targets: Int[Array, "b classes"]


def _start(params: _Automaton, batch: int) -> _State:
    # The first label, the blank for the start, leads to the root.
    return _State(jnp.zeros(batch, jnp.int32), jnp.zeros((batch, params.first.shape[0]), jnp.int32))


def _step(params: _Automaton, labels: Int[Array, "b"], state: _State) -> tuple[Float[Array, "b classes"], _State]:
    node = jnp.take_along_axis(state.targets, labels[:, None], axis=1)[:, 0]
    targets = _targets(params, node)
    gains = params.earned[targets] + params.hoped[targets] - params.hoped[node][:, None]
    return params.reward * gains, _State(node, targets)


def _end(params: _Automaton, state: _State) -> Float[Array, "b"]:
    """What was paid in advance for a phrase that will not come."""
    return -params.reward * params.hoped[state.node]


def _targets(params: _Automaton, node: Int[Array, "b"]) -> Int[Array, "b classes"]:
    """Where each label leads: by an edge of the node, else of its suffixes, the longest first, else of the root."""
    row = jnp.arange(len(node))[:, None]

    def step(now):
        node, found = now
        labels = params.labels[node]
        known = found[row, labels]
        found = found.at[row, labels].set(jnp.where(known < 0, params.targets[node], known))
        return params.fail[node], found

    nothing = jnp.full((len(node), params.first.shape[0]), -1, jnp.int32)
    _, found = lax.while_loop(lambda now: jnp.any(now[0] > 0), step, (node, nothing))
    return jnp.where(found < 0, params.first, found)
