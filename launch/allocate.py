"""Finds a number of bits for each matrix of a transducer that ships below 8 bits.

    python -m launch.allocate --config=configs/rnnt_gq.py:an4 --average=4 [--batches=2]

Measures on batches of dev how much the loss of the integers rises when one matrix alone has fewer bits, of least
squared error and untrained, and goes down from 8 bits where that costs least. Prints a line a matrix, and the value for
`config.integer.allocation`. Exit code 2: a wrong request.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from absl import flags

from launch.common import cli
from launch.common.build import build
from launch.common.quantization import QuantisedTask
from launch.speech.integers import rules
from zojax.quant.general import allocate, sensitivity
from zojax.quant.tables import grids
from zojax.trees import merge

DEPTHS = (6, 5, 4, 3, 2, 1)


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        config, values = cli.parse_config(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        average, count = given["average"], given["batches"]
        if config.integer.weights != "gq":
            raise ValueError(f"config.integer.weights is {config.integer.weights!r}; it must be 'gq'")
        run = build(config, splits=("dev",))
        params = {name: value for name, value in merge(run.params, run.frozen).items() if name != "centroids"}
        assert isinstance(run.task, QuantisedTask)
        batches = [run.evaluation["dev"][i] for i in range(min(count, len(run.evaluation["dev"])))]
        rises = sensitivity(_loss(run.task, batches), params, rules(config), bits=DEPTHS)
        sizes = {path: leaf.size for path, leaf in grids(params, rules(config)).items()}
        chosen = allocate(rises, sizes, average_bits=average)
    except (ValueError, FileNotFoundError) as error:
        cli.complain("allocate", error)
        return cli.WRONG
    for path, bits in chosen.items():
        found = "  ".join(f"{depth}: {rise:+.4f}" for depth, rise in rises[path].items())
        print(f"{path:<36} {sizes[path]:>10,}  {bits} bits  of {found}")
    total = sum(chosen[path] * sizes[path] for path in sizes) / sum(sizes.values())
    print(f"{total:.3f} bits a weight")
    print(tuple(f"^{path}$={bits}" for path, bits in chosen.items()))
    return 0


def _loss(task: QuantisedTask, batches: Sequence[Any]) -> Callable[[Any], Any]:
    """The mean loss of the integers over batches, of leaves that know their grid."""

    def value(params: Any) -> Any:
        pairs = [task.task.evaluate(params, batch)["loss"] for batch in batches]
        return sum((total for total, _ in pairs), start=jnp.float32(0)) / sum(weight for _, weight in pairs)

    return value


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_float("average", 4.0, "bits a weight", lower_bound=1.0, upper_bound=8.0, flag_values=values)
    flags.DEFINE_integer("batches", 2, "batches of dev", lower_bound=1, flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
