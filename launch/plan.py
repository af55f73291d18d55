"""Says what a step of a config needs on a mesh of devices that are not there, and what back-propagation would.

    python -m launch.plan --config=configs/lm_llama.py:70b --mesh=data:4,fsdp:64,tensor:16 [--platform=tpu]

Nothing is allocated: the shapes of language models and of transducers follow from their sizes (see
`launch/common/problems.py`). The programs of a step are lowered for --platform (tpu or cuda) on an abstract mesh of
that size. Then they are partitioned and compiled for as many CPU devices, which takes seconds and no memory:

  exact      weights, optimiser state, batch: from shapes and shardings
  exact      bytes sent, as XLA's partitioner divides the program: collectives, loops counted, rings assumed; what a
             compiler merges afterwards (sums of two all-reduces, mostly) is counted apart
  estimate   temporaries, activations and noise: of the program with float32 weights, as XLA compiles it for the CPU

Meshes of more than 2,048 devices are compiled with a smaller "data" axis, the batch made smaller alike: the same
program for each device. Exit code 2: a wrong request.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from launch.common import cli, protocols, quantization
from launch.common.collectives import partitioned, sent
from launch.common.methods import make_method
from launch.common.problems import Problem, describe
from launch.common.schema import Config
from models.language.sharding import LOGICAL, shardings
from zojax import train

AXES = ("data", "fsdp", "tensor")
MOST = 2048
"""Devices of one process that XLA's CPU backend compiles for."""

DEVICES = {"tpu": AbstractDevice("TPU v5 lite", 1, "tpu"), "cuda": None}

Shapes = Any


class Need(NamedTuple):
    """What a device needs for a step.

    Attributes:
      name: of the method.
      weights: bytes of weights.
      state: bytes of the optimiser's state.
      batch: bytes of its share of a batch.
      temporaries: bytes of the largest program's temporaries.
      gradient: bytes of updates that a program returns, beside the temporaries.
      moved: bytes sent in a step, by kind of collective.
      lowered: lines of the lowered programs, or why they cannot be lowered.
    """

    name: str
    weights: int
    state: int
    batch: int
    temporaries: int
    gradient: int
    moved: dict[str, float]
    lowered: int | str


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        config, values = cli.parse_config(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        sizes = parse_mesh(given["mesh"])
        compiled = shrunk(sizes)
        _have(int(np.prod(list(compiled.values()))))
        problem = describe(config)
        request = (config, problem, sizes, compiled, given["platform"])
        needs = [] if config.method.name == "first_order" else [zeroth_order(*request)]
        if all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(problem.trainable)):
            needs.append(first_order(*request))
    except (ValueError, FileNotFoundError) as error:
        cli.complain("plan", error)
        return cli.WRONG
    print(report(*request, needs))
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("mesh", None, "axes and sizes, such as data:4,fsdp:64,tensor:16", flag_values=values)
    flags.DEFINE_enum("platform", "tpu", [*DEVICES], "what the programs are lowered for", flag_values=values)


def parse_mesh(given: str | None) -> dict[str, int]:
    """The sizes of a mesh's axes.

    Raises:
      ValueError: if an axis is unknown, or a size is no positive integer.
    """
    sizes: dict[str, int] = {}
    for part in (given or "").split(","):
        name, _, size = part.partition(":")
        if name not in AXES or name in sizes or not size.isdigit() or int(size) < 1:
            raise ValueError(f"--mesh={given}: axes of {', '.join(AXES)} with their sizes are needed, such as fsdp:8")
        sizes[name] = int(size)
    return sizes


def shrunk(sizes: dict[str, int]) -> dict[str, int]:
    """The mesh that is compiled: of at most `MOST` devices.

    Raises:
      ValueError: if the axis "data" is too small for that.
    """
    out = dict(sizes)
    while np.prod(list(out.values())) > MOST:
        if out.get("data", 1) % 2:
            raise ValueError(
                f"--mesh={sizes}: of more than {MOST} devices data must be the factor; it is {sizes.get('data', 1)}"
            )
        out["data"] //= 2
    return out


def _have(count: int) -> None:
    """As many CPU devices; JAX must not have started with fewer."""
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        if jax.device_count() < count:
            raise ValueError(f"--mesh: {count} devices are needed; JAX has started with {jax.device_count()}") from None


class _Placed(NamedTuple):
    """Shapes on a mesh: of the weights, the frozen ones, a batch."""

    trainable: Shapes
    frozen: Shapes
    batch: Shapes

    @classmethod
    def of(cls, problem: Problem, mesh: Mesh | AbstractMesh, data: int) -> "_Placed":
        """`data`: by how much less a batch holds than the problem's."""
        on = dict(mesh.shape)
        names = tuple(name for name in LOGICAL["batch"] if name in on)
        count = int(np.prod([on[name] for name in names]))

        def row(leaf: Any) -> Any:
            shape = (leaf.shape[0] // data, *leaf.shape[1:]) if leaf.shape and leaf.shape[0] % data == 0 else leaf.shape
            divided = bool(names) and bool(shape) and shape[0] % count == 0
            spec = PartitionSpec(names) if divided else PartitionSpec()
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return cls(_on(problem.trainable, mesh), _on(problem.frozen, mesh), jax.tree.map(row, problem.batch))


def _on(shapes: Shapes, mesh: Any) -> Shapes:
    """Shapes with the shardings of weights; other leaves, such as counts, are on every device."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(shapes, mesh),
    )


def bytes_of(shapes: Shapes) -> int:
    """Bytes of the shards on one device."""

    def own(leaf: Any) -> int:
        # Four bits are half a byte to XLA, a whole one to numpy.
        bits = 4 if leaf.dtype in (jnp.int4, jnp.uint4) else 8 * leaf.dtype.itemsize
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * bits // 8

    return sum(own(leaf) for leaf in jax.tree.leaves(shapes))


def zeroth_order(config: Config, problem: Problem, sizes: Any, compiled: Any, platform: str) -> Need:
    """What the config's own method needs."""
    key = jax.random.key(0)
    inner: Any = make_method(
        config, problem.task, problem.trainable, key, rounding_key=key, steps_per_epoch=problem.steps_per_epoch
    )[1]
    tx: Any = quantization.keep_on_grid(config, inner, problem.trainable, key)
    measure = train.make_measure(protocols.wrap_task(config, problem.task), tx, microbatches=config.train.microbatches)
    apply = train.make_apply(tx)

    def state_of(mesh: Any, placed: _Placed) -> Shapes:
        return _on(jax.eval_shape(tx.init, placed.trainable), mesh)

    def programs(placed: _Placed, mesh: Any) -> list[tuple[Any, tuple[Any, ...]]]:
        state = state_of(mesh, placed)
        inputs = (placed.trainable, placed.frozen, state, placed.batch, key)
        scalars = jax.eval_shape(measure, *inputs)
        return [(measure, inputs), (apply, (placed.trainable, state, scalars))]

    return _need(config.method.name, problem, programs, state_of, sizes, compiled, platform)


def first_order(config: Config, problem: Problem, sizes: Any, compiled: Any, platform: str) -> Need:
    """What back-propagation needs, with Adam; layers are not recomputed."""
    tx = optax.adam(1e-3)
    method = train.first_order(problem.task, tx, description="", microbatches=config.train.microbatches)

    def state_of(mesh: Any, placed: _Placed) -> Shapes:
        return _on(jax.eval_shape(tx.init, placed.trainable), mesh)

    def programs(placed: _Placed, mesh: Any) -> list[tuple[Any, tuple[Any, ...]]]:
        state = state_of(mesh, placed)
        inputs = (placed.trainable, placed.frozen, state, placed.batch, jax.random.key(0), jnp.int32(1))
        return [(method.step, inputs)]

    return _need("back-propagation, Adam", problem, programs, state_of, sizes, compiled, platform)


def _need(name: str, problem: Problem, programs: Any, state: Any, sizes: Any, compiled: Any, platform: str) -> Need:
    whole = AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), abstract_device=DEVICES[platform]
    )
    placed = _Placed.of(problem, whole, 1)
    lowered: int | str = 0
    try:
        with jax.sharding.use_abstract_mesh(whole):
            for program, inputs in programs(placed, whole):
                lowered += program.trace(*inputs).lower(lowering_platforms=(platform,)).as_text().count("\n")
    except NotImplementedError as error:  # such as of a Pallas kernel, which is not divided by itself
        lowered = cli.one_line(error)
    devices = np.asarray(jax.devices()[: int(np.prod(list(compiled.values())))]).reshape(tuple(compiled.values()))
    mesh = Mesh(devices, tuple(compiled), axis_types=(AxisType.Auto,) * len(compiled))
    data = int(np.prod(list(sizes.values()))) // devices.size
    moved: dict[str, float] = {}
    temporaries = gradient = 0
    wide = problem._replace(trainable=_float32(problem.trainable), frozen=_float32(problem.frozen))
    with jax.set_mesh(mesh):
        # The same programs twice where weights are of half precision.
        own, floats = (programs(_Placed.of(which, mesh, data), mesh) for which in (problem, wide))
        for (program, inputs), (_, wider) in zip(own, floats, strict=True):
            executable, text = partitioned(program.lower(*inputs))
            for kind, size in sent(text).items():
                moved[kind] = moved.get(kind, 0.0) + size
            if [leaf.dtype for leaf in jax.tree.leaves(inputs)] != [leaf.dtype for leaf in jax.tree.leaves(wider)]:
                executable, _ = partitioned(program.lower(*wider))
            memory = executable.memory_analysis()
            temporaries = max(temporaries, memory.temp_size_in_bytes)
            # What is returned and takes the place of nothing.
            gradient = max(gradient, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    return Need(
        name=name,
        weights=bytes_of((placed.trainable, placed.frozen)),
        state=bytes_of(state(whole, placed)),
        batch=bytes_of(placed.batch),
        temporaries=temporaries,
        gradient=gradient,
        moved=moved,
        lowered=lowered,
    )


def _float32(shapes: Shapes) -> Shapes:
    def widened(leaf: Any) -> Any:
        half = leaf.dtype in (jnp.bfloat16, jnp.float16)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if half else leaf.dtype)

    return jax.tree.map(widened, shapes)


def report(config: Config, problem: Problem, sizes: Any, compiled: Any, platform: str, needs: Sequence[Need]) -> str:
    """The plan as text."""
    mesh = " x ".join(f"{name} {size}" for name, size in sizes.items())
    count = sum(leaf.size for leaf in jax.tree.leaves((problem.trainable, problem.frozen)))
    trained = sum(leaf.size for leaf in jax.tree.leaves(problem.trainable))
    rows = max(leaf.shape[0] for leaf in jax.tree.leaves(problem.batch) if leaf.shape)
    shards = int(np.prod([size for name, size in sizes.items() if name in LOGICAL["batch"]]))
    lines = [
        f"model     {config.model.source}: {count:,} weights, {trained:,} of them trained",
        f"mesh      {mesh} = {int(np.prod(list(sizes.values()))):,} devices",
        f"batch     {rows} rows"
        + ("" if rows % shards == 0 else f": {shards} shards do not divide it, each holds all"),
    ]
    if compiled != sizes:
        lines.append(f"compiled  for data {compiled['data']}, a batch smaller alike: the same program for each device")
    width = max(len(need.name) for need in needs)
    lines += ["", f"{'MB a device':<34}" + "".join(f"{need.name:>{width + 2}}" for need in needs)]

    def row(name: str, numbers: Sequence[float]) -> str:
        return f"{name:<34}" + "".join(f"{number / 1e6:>{width + 2},.1f}" for number in numbers)

    lines += [
        row("weights (exact)", [need.weights for need in needs]),
        row("optimiser state (exact)", [need.state for need in needs]),
        row("batch (exact)", [need.batch for need in needs]),
        row("temporaries (estimate)", [need.temporaries + need.gradient for need in needs]),
        row("in all", [need.weights + need.state + need.batch + need.temporaries + need.gradient for need in needs]),
        row("sent in a step", [sum(need.moved.values()) for need in needs]),
    ]
    for kind in sorted({kind for need in needs for kind in need.moved}):
        lines.append(row(f"  {kind}", [need.moved.get(kind, 0.0) for need in needs]))
    for need in needs:
        how = f"{need.lowered:,} lines" if isinstance(need.lowered, int) else f"no: {need.lowered}"
        lines.append(f"lowered for {platform}: {need.name}: {how}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
