"""Convolutions and squeeze-and-excitation against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.convolution import Conv, Depthwise, SqueezeExcite, depthwise
from tests.models.transducer import oracles
from tests.models.transducer.streams import Run, lengths_mask

# float32 against float64: sums of some dozens of products near 1.
TOLERANCE = 5e-6


def compare(layer, oracle, frames=11):
    run = Run(layer, frames)
    params = oracles.float64(run.variables["params"])
    for length in (frames, 7):
        got = run.whole(run.x, lengths_mask(frames, [frames, length]))[1]
        want = oracle(run.x[1, :length].astype(np.float64), params)
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("dilation", "right"), [(1, 0), (2, 0), (1, 2), (3, 4)])
def test_depthwise(dilation, right):
    layer = Depthwise(3, 3, 4, dilation=dilation, right=right)
    compare(layer, lambda x, params: oracles.depthwise(x, params, dilation, right))


@pytest.mark.parametrize("dilation", [1, 3])
def test_the_gradient_of_a_depthwise_convolution(dilation):
    """Against autodiff through a grouped convolution."""
    rng = np.random.default_rng(0)
    x, weight, dy = (
        jnp.asarray(rng.normal(size=of), jnp.float32) for of in ((2, 13, 5), (4, 5), (2, 13 - 3 * dilation, 5))
    )

    def grouped(x, weight):
        return jax.lax.conv_general_dilated(
            x, weight[:, None], (1,), "VALID", rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=5,
        )  # fmt: skip

    wanted, pull_wanted = jax.vjp(grouped, x, weight)
    found, pull = jax.vjp(lambda x, weight: depthwise(x, weight, dilation), x, weight)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    for one, other in zip(pull(dy), pull_wanted(dy), strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)


@pytest.mark.parametrize(("subsample", "bin_stride", "bin_kernel"), [(1, 1, 3), (2, 2, 3), (1, 2, 5), (2, 3, 2)])
def test_conv_over_time_and_bins(subsample, bin_stride, bin_kernel):
    layer = Conv(10, 3, 3, subsample=subsample, bins=5, bin_kernel=bin_kernel, bin_stride=bin_stride)
    compare(layer, lambda x, params: oracles.conv(x, params, bins=5, subsample=subsample, bin_stride=bin_stride))


def test_squeeze_and_excitation_is_causal():
    compare(SqueezeExcite(6, 2), oracles.squeeze_excite)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"Conv\.bins is 3; it must divide d_in = 8"):
        Conv(8, 2, 3, bins=3)
    with pytest.raises(ValueError, match=r"Conv\.subsample is 3; a kernel that spans 2"):
        Conv(8, 2, 2, subsample=3)
    with pytest.raises(ValueError, match=r"Depthwise\.right is 3; it must be 0 to 2"):
        Depthwise(8, 8, 3, right=3)
    with pytest.raises(ValueError, match="must keep the width"):
        Depthwise(8, 4, 3)
    with pytest.raises(ValueError, match=r"SqueezeExcite\.ratio is 9"):
        SqueezeExcite(8, 9)
