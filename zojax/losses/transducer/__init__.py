"""Transducer losses: exact, lean in memory and fast; pruned; and when labels are emitted."""

from zojax.losses.transducer.cells import node_log_probs
from zojax.losses.transducer.joined import Joiner, joined_log_probs
from zojax.losses.transducer.latency import Alignment, best_alignment, emission_frames, expected_emission
from zojax.losses.transducer.lattice import MONOTONIC, STANDARD, Lattice, path_cost, posteriors
from zojax.losses.transducer.loss import TransducerSpec, fused_transducer_loss, loss_of_log_probs, transducer_loss
from zojax.losses.transducer.pruned import PrunedLoss, band_starts, pruned_scales, pruned_transducer_loss
from zojax.losses.transducer.tdt import tdt_loss

__all__ = [
    "MONOTONIC",
    "STANDARD",
    "Alignment",
    "Joiner",
    "Lattice",
    "PrunedLoss",
    "TransducerSpec",
    "band_starts",
    "best_alignment",
    "emission_frames",
    "expected_emission",
    "fused_transducer_loss",
    "joined_log_probs",
    "loss_of_log_probs",
    "node_log_probs",
    "path_cost",
    "posteriors",
    "pruned_scales",
    "pruned_transducer_loss",
    "tdt_loss",
    "transducer_loss",
]
