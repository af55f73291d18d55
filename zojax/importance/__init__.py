"""Which weights matter to which tasks, and the masks by rows that follow from it (MaZO, arXiv 2502.11513)."""

from zojax.importance.calibrate import Statistics, calibrate, importance_scores
from zojax.importance.scores import Importance, damped, global_score, greedy_score, task_score
from zojax.importance.select import magnitude_masks, random_masks, row_top_k, score_masks

__all__ = [
    "Importance",
    "Statistics",
    "calibrate",
    "damped",
    "global_score",
    "greedy_score",
    "importance_scores",
    "magnitude_masks",
    "random_masks",
    "row_top_k",
    "score_masks",
    "task_score",
]
