"""Lowering for hardware that this machine does not have: fails on what Pallas cannot translate or its verifier refuses.

It ends before the device's own compiler: layouts, registers and the memory of a core are not checked. Those are checked
where the tests run on the hardware itself, for `interpreted` is False there.
"""

from types import ModuleType

import jax
from jax.sharding import AbstractDevice, AbstractMesh

TPU = AbstractDevice("TPU v5 lite", 1, "tpu")
GPU = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")


def interpreted(module: ModuleType) -> bool:
    """Whether a back end's kernels run in interpret mode: everywhere but on the hardware that they are for."""
    return {"cuda": "gpu"}.get(module.PLATFORM, module.PLATFORM) != jax.default_backend()


def _lower(f, args, platform: str, device: AbstractDevice) -> str:
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def lower_for_tpu(f, *args) -> str:
    """The program of `f(*args)` for a TPU v5e, as text; a Pallas kernel in it is a `tpu_custom_call`."""
    return _lower(f, args, "tpu", TPU)


def lower_for_cuda(f, *args) -> str:
    """The program of `f(*args)` for an H100; a kernel in it is `__gpu$xla.gpu.triton` or `mosaic_gpu_v2`."""
    return _lower(f, args, "cuda", GPU)
