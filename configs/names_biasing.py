"""Adapters that lead the transducer of `configs/names_rnnt.py`, frozen, to lists of people and titles.

After arXiv 2305.05271. The argument says how phrases are read: subword, acoustic (as characters, too), semantic (by
MiniLM, too) or both. In training, lists have up to 100 phrases, and one utterance in five is not on its list. Half of
the names are new to the base, too: from names that it knows by heart, adapters learn to be silent. Each position of a
phrase has a key, and attention is guided to what is said, without which it hardly learns; a vector a phrase, as in the
paper: --config.biasing.positions=False --config.biasing.guidance=0. All this and sizes are ours.

    python -m launch.train --config=configs/names_biasing.py:both --workdir=runs/names_both

The base is runs/names_rnnt:best; another: --config.model.weights=RUN. By forwards alone:
--config.method.name=spsa --config.optimizer.clip_norm=0.0. The table of list sizes, a row each for the four adapters
(the rows "none" and "shallow fusion" are the base's own, see there), and the same among phrases that sound alike:

    for kind in subword acoustic semantic both; do
        python -m launch.train --config=configs/names_biasing.py:$kind --workdir=runs/names_$kind
        python -m launch.eval --workdir=runs/names_$kind --weights=best --beam=4 --sizes=0,100,500,1000,2000
        python -m launch.eval --workdir=runs/names_$kind --weights=best --beam=4 --sizes=20,100 --distractors=alike
    done

For three seeds: --config.seed=0, 1, 2 with a folder each; --split=dev for choices. With adapters and shallow fusion
together: --boost. A file of phrases of your own: launch.transcribe --bias=FILE.

LibriSpeech's lists, for a base of `configs/librispeech_rnnt.py`, and their own distractors:

    python -m launch.train --config=configs/librispeech_rnnt.py:FOLDER --workdir=runs/librispeech_both \
        --config.model.weights=runs/librispeech_rnnt:best --config.trainable="('^biasing/',)" \
        --config.biasing.kind=both --config.biasing.phrases=all_rare_words.txt
    python -m launch.eval --workdir=runs/librispeech_both --weights=best --sizes=0,500,1000,2000
    python -m launch.eval --workdir=runs/librispeech_both --weights=best --sizes=100 \
        --distractors=test-clean.biasing_100.tsv,test-other.biasing_100.tsv
"""

from typing import Any

import ml_collections

from configs import names_rnnt

ARGUMENTS = ("subword", "acoustic", "semantic", "both")


def get_config(kind: str = "both") -> ml_collections.ConfigDict:
    """The config; `kind` is one of `ARGUMENTS`."""
    if kind not in ARGUMENTS:
        raise ValueError(f"argument {kind!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = names_rnnt.get_config()
    c.trainable = ("^biasing/",)
    c.model.weights = "runs/names_rnnt:best"
    c.biasing.kind = kind
    c.biasing.positions = True
    c.biasing.guidance = 0.3
    # Vectors of positions are wide: with 64 cells, adapters would be more than a third of the base.
    c.biasing.hidden = 48
    c.data.train_examples = 0
    c.speech.alone = 0
    c.optimizer.learning_rate = 1e-3
    c.train.steps = 6000
    c.train.eval_every = 2000
    c.train.checkpoint_every = 2000
    return c
