"""Wake words in running speech, then commands that name somebody: one attention to all phrases, or two in turns.

The utterances are made by espeak-ng's voices when they are first asked for, and kept: see `zojax.data.audio.wake`.
Synthetic speech of few voices: it compares the attentions, and is no measure of a recogniser. A transducer is trained
first, without phrases; it stays as it is when the attentions are trained on top of it. `single` attends to all phrases
at every frame; `dual` (arXiv 2304.01905) to the wake words where a spotter hears one, and to the catalogue elsewhere.

    python -m launch.train --config=configs/wake_word.py --workdir=runs/wake
    python -m launch.train --config=configs/wake_word.py:single:runs/wake:best --workdir=runs/wake_single
    python -m launch.train --config=configs/wake_word.py:dual:runs/wake:best --workdir=runs/wake_dual

Word errors, those on names (B-WER), F1 of wake words by text and by the spotter, operations a frame in and out of wake
words, the share of weights; on new voices and names, and on wake words that training has never heard:

    python -m launch.eval --workdir=runs/wake_dual --weights=best
    python -m launch.eval --workdir=runs/wake_dual --weights=best --split=unseen
    python -m launch.compare_speech runs/wake_single runs/wake_dual
    python -m launch.bench wake_word

A stream that says when the wake word was heard:

    python -m launch.transcribe test:0 test:1 --workdir=runs/wake_dual --stream

`--config.seed=1` and 2 with folders of their own repeat it; the spotter's jitter and its loss's weight are
`--config.wake.jitter` and `--config.wake.spotting`.
"""

from typing import Any

import ml_collections

from configs.base import get_base

ARGUMENTS = ("", "single:runs/wake:best", "dual:runs/wake:best")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The config; `arg` is nothing for the transducer alone, or "single:RUN" or "dual:RUN", RUN as model.weights."""
    attention, _, run = arg.partition(":")
    if attention not in ("", "single", "dual") or bool(attention) != bool(run):
        raise ValueError(f"configs/wake_word.py: {arg!r}; nothing, single:RUN or dual:RUN is needed")
    c: Any = get_base("wake")
    c.data.batch_size = 64
    c.data.eval_batch_size = 64
    c.model.name = "transducer"
    c.model.source = "random"
    c.model.weights = run
    c.model.head = "zero"
    c.speech.speeds = (90, 100, 110)
    c.speech.gain = 6.0
    c.speech.seconds = 260
    c.speech.frequency_width = 14
    c.speech.time_masks = 2
    c.speech.time_width = 12
    c.speech.stack = 4
    c.speech.layers = 4
    c.speech.width = 512
    c.speech.dropout = 0.1
    c.speech.predictor = "stateless"
    c.speech.embedding = 256
    c.speech.joint = 512
    c.speech.acoustic = 0.5
    c.method.name = "first_order"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.weight_decay = 0.01
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 200
    c.optimizer.clip_norm = 1.0
    c.train.steps = 4000
    c.train.eval_every = 500
    c.train.checkpoint_every = 1000
    c.train.log_every = 50
    c.train.keep_best = "wer"
    if not attention:
        c.speech.alone = 300
        return c
    c.trainable = ("^wake/",)
    c.speech.dropout = 0.0
    c.wake.attention = attention
    c.wake.small = 32
    c.wake.catalogue = 200
    c.train.steps = 2000
    return c
