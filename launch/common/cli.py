"""What the programs share: flags, and errors of one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.common import schema
from launch.common.schema import Config

# Exit codes: 0 done (also after SIGTERM, when the run has saved itself), 1 the run or a check failed,
# 2 the request was wrong and nothing was written, 130 after SIGINT (saved too).
FAILED, WRONG, INTERRUPTED = 1, 2, 130

_HELP = {"--help", "-help", "-h"}


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def parse(argv: Sequence[str], doc: str, define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """Parses flags that belong to this call alone.

    Args:
      argv: name of the program and its arguments.
      doc: what --help shows before the flags.
      define: defines the flags.

    Raises:
      ValueError: if an argument is wrong.
      SystemExit: after --help.
    """
    values = flags.FlagValues()
    define(values)
    if _HELP & set(argv[1:]):
        print(f"{doc.strip()}\n\n{values.module_help(argv[0]) or values.main_module_help()}".strip())
        raise SystemExit(0)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise ValueError(one_line(error)) from error
    if rest[1:]:
        raise ValueError(f"not a flag: {' '.join(rest[1:])}")
    return values


def integers(name: str, texts: Sequence[str]) -> list[int]:
    """The numbers of a flag that is a list.

    Raises:
      ValueError: if one is no integer, or below 0.
    """
    if not all(text.strip().isdecimal() for text in texts):
        raise ValueError(f"--{name}={','.join(texts)}: integers, 0 or more, parted by commas are needed")
    return [int(text) for text in texts]


def parse_config(
    argv: Sequence[str], doc: str, define: Callable[[flags.FlagValues], None]
) -> tuple[Config, flags.FlagValues]:
    """As `parse`, with --config=FILE[:ARGUMENT] and --config.FIELD=VALUE; the config is checked.

    Raises:
      ValueError: if an argument or a field is wrong.
      FileNotFoundError: if there is no such file.
    """
    named = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not named and not _HELP & set(argv[1:]):
        raise ValueError("--config=FILE.py is needed, such as --config=configs/quickstart.py")
    if named and not Path(named[-1].split(":")[0]).is_file():
        raise FileNotFoundError(f"--config={named[-1]}: no such file")

    def read(arguments: Sequence[str]) -> flags.FlagValues:
        def define_all(values: flags.FlagValues) -> None:
            define(values)
            config_flags.DEFINE_config_file(
                "config", None, "FILE.py[:ARGUMENT]", lock_config=True, flag_values=values, sys_argv=list(arguments)
            )

        return parse(arguments, doc, define_all)

    overrides = [a for a in argv if a.startswith("--config.")]
    fields = schema.flat(read([a for a in argv if a not in overrides])["config"].value)
    for override in overrides:
        name, separator, _ = override.removeprefix("--config.").partition("=")
        if name not in fields:
            raise ValueError(f"--config.{name}: no such field; there are {', '.join(sorted(fields))}")
        if not separator:
            raise ValueError(f"--config.{name}: no value; write --config.{name}=VALUE")
    values = read(argv)
    config = values["config"].value
    schema.check(config)
    return config, values


def complain(program: str, error: BaseException) -> None:
    """Writes one line on stderr."""
    print(f"{program}: {one_line(error)}", file=sys.stderr)
