"""A data set that TFDS prepares once: aside, so that nobody sees half of it, and without its messages."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

Builder = Any


def prepare(
    make: Callable[[str], Builder],
    *,
    kind: type[tfds.core.GeneratorBasedBuilder],
    name: str,
    data_dir: str | os.PathLike[str] | None,
    check: Callable[[], None] = lambda: None,
    write: Callable[[Builder], None] = lambda builder: builder.download_and_prepare(),
) -> Builder:
    """The builder of a prepared copy, which is made first if it has not been.

    Several processes may ask for the same copy at once.

    Args:
      make: folder -> a builder that prepares into it.
      kind: class of the builder.
      name: name of the builder's config.
      data_dir: where prepared copies live; by default `$ZOJAX_CACHE`, else `~/.cache/zojax/tfds`.
      check: called before the first byte is written, and outside TFDS, which would wrap its errors.
      write: prepares what `make` has made.

    Returns:
      A builder to read from.
    """
    cache = Path(data_dir or os.environ.get("ZOJAX_CACHE") or Path.home() / ".cache" / "zojax" / "tfds").expanduser()
    target = cache / kind.name / name / str(kind.VERSION)
    if not target.is_dir():
        check()
        print(f"preparing a data set in {target}", file=sys.stderr, flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Prepared aside and then renamed in one go: no process ever sees half a data set.
        aside = tempfile.mkdtemp(prefix="preparing-", dir=cache)
        try:
            with _quiet():
                builder = make(aside)
                write(builder)
            try:
                os.rename(builder.data_path, target)
            except OSError:
                if not target.is_dir():  # else another process was first, with the same contents
                    raise
        finally:
            shutil.rmtree(aside)
    return tfds.builder_from_directory(target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what TFDS prints, warns of (a config that it does not know) and draws."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
