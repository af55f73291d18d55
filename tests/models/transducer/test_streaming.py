"""Every layer that streams: its steps and flush give the frames of its call, and no frame sees more than it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.transducer.attention import Attention
from models.transducer.combine import parallel, repeat, residual
from models.transducer.conformer import ConformerConfig, conformer_block, conformer_encoder
from models.transducer.conv_rnnt import ConvRnntConfig, conv_rnnt_encoder
from models.transducer.convolution import Conv, Depthwise, SqueezeExcite
from models.transducer.layers import Activation, Affine, BinsLast, Dense, Norm, Stack
from models.transducer.lstm import Lstm, LstmConfig, lstm_encoder
from models.transducer.streaming import HostBuffer, serial
from tests.models.transducer.streams import Run, lengths_mask, random_chunks

# float32 against float32: sums in another order, of numbers near 1.
TOLERANCE = 1e-5

BLOCK = ConformerConfig(width=8, heads=2, kernel=3, chunk=2, left=4, right=2, expansion=2)

# name: (layer, frames of the whole, blocks of a step)
LAYERS = {
    "without memory": (serial(Affine(6), BinsLast(6, 3), Dense(6, 4), Norm(4), Activation(4, "glu")), 13, 3),
    "stack": (Stack(2, 3), 13, 2),
    "conv over time": (Conv(4, 3, 3, dilation=2), 13, 2),
    "conv that looks ahead": (Conv(4, 3, 4, right=2), 13, 3),
    "conv over time and bins": (Conv(8, 3, 3, subsample=2, bins=4, bin_kernel=3, bin_stride=2), 13, 2),
    "two convs": (serial(Conv(4, 5, 3, subsample=2), Conv(5, 4, 3, subsample=2)), 18, 1),
    "depthwise": (Depthwise(4, 4, 5, dilation=3), 23, 2),
    "depthwise that looks ahead": (Depthwise(4, 4, 5, right=3), 13, 1),
    "squeeze and excite": (SqueezeExcite(8, 2), 13, 2),
    "lstm": (Lstm(4, 6, 3), 13, 4),
    "lstm without projection": (Lstm(4, 6), 13, 1),
    "causal attention": (Attention(8, 2, chunk=1, left=4), 13, 2),
    "causal attention that sees itself": (Attention(8, 2, chunk=1, left=0), 7, 1),
    "chunked attention": (Attention(8, 2, chunk=3, left=4), 17, 1),
    "chunked attention, larger steps": (Attention(8, 2, chunk=2, left=3), 17, 3),
    "attention that looks ahead": (Attention(8, 2, chunk=1, left=3, right=2), 13, 2),
    "residual with a delay": (residual(Depthwise(4, 4, 4, right=2), scale=0.5), 13, 2),
    "parallel": (parallel(Depthwise(4, 4, 3), Lstm(4, 3)), 13, 2),
    "repeated with a delay": (repeat(residual(Depthwise(4, 4, 3, right=1)), 3), 13, 2),
    "conformer blocks": (repeat(conformer_block(BLOCK), 2), 13, 2),
    "delay before memory": (serial(Depthwise(8, 8, 3, right=2), Attention(8, 2, chunk=2, left=3), Lstm(8, 4)), 13, 1),
    "lstm encoder": (lstm_encoder(LstmConfig(d_in=4, stack=3, layers=2, hidden=6, projection=4)), 25, 2),
    "conformer encoder": (
        conformer_encoder(
            ConformerConfig(d_in=4, channels=2, width=8, layers=2, heads=2, kernel=5, chunk=2, left=3, right=2)
        ),
        45,
        1,
    ),
    "conv_rnnt encoder": (
        conv_rnnt_encoder(
            ConvRnntConfig(
                d_in=8, channels=(3, 2), bin_strides=(2, 1), kernel=3, local=4, blocks=2, width=8, ratio=4, project=6,
                layers=1, hidden=5,
            )
        ),
        28,
        2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=LAYERS)
def run(request):
    layer, frames, blocks = LAYERS[request.param]
    return Run(layer, frames, blocks=blocks)


def test_a_stream_is_the_call(run):
    """Over random chunks, ragged rows, with the state saved and restored midway."""
    rng = np.random.default_rng(1)
    frames = run.x.shape[1]
    mask = lengths_mask(frames, [frames, frames * 3 // 5])
    want = run.whole(run.x, mask)
    stride = run.layer.stride
    assert [len(row) for row in want] == [frames // stride, frames * 3 // 5 // stride]
    for _ in range(4):
        chunks = random_chunks(frames, rng)
        got = run.stream(run.x, mask, chunks, save_at=len(chunks) // 2)
        for one, other in zip(got, want, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def test_no_frame_sees_more_than_it_reaches(run):
    """A change of input frame n leaves the output frames whose reach is less, and no latency is overstated."""
    frames, layer = run.x.shape[1], run.layer
    mask = lengths_mask(frames, [frames, frames])
    before = run.whole(run.x, mask)[0]
    moved = set()
    for n in range(frames):
        x = run.x.copy()
        x[0, n] += np.linspace(-1, 2, x.shape[2])
        changed = np.abs(run.whole(x, mask)[0] - before).max(axis=-1) > 0
        for j in np.flatnonzero(changed).tolist():
            assert n <= layer.reach(j), f"frame {j} reaches {layer.reach(j)}, and frame {n} changes it"
            if n == layer.reach(j):
                moved.add(j)
    reachable = {j for j in range(len(before)) if layer.reach(j) < frames}
    assert moved == reachable
    assert layer.latency == max(layer.reach(j) - layer.stride * j for j in range(64))


def test_padding_and_other_rows_change_nothing(run):
    frames = run.x.shape[1]
    short = frames * 3 // 5
    mask = lengths_mask(frames, [frames, short])
    x = run.x.copy()
    x[0], x[1, short:] = 7.0, -9.0
    np.testing.assert_array_equal(run.whole(x, mask)[1], run.whole(run.x, mask)[1])


def test_a_full_context_layer_says_that_it_has_no_step():
    for layer in (Attention(8, 2), conformer_encoder(ConformerConfig(d_in=4, width=8, layers=1, heads=2, kernel=3))):
        with pytest.raises(ValueError, match=r"Attention\.chunk is None.*no step"):
            layer.initial_state(1)
        with pytest.raises(ValueError, match=r"the whole sequence; there is no latency"):
            layer.latency  # noqa: B018
    with pytest.raises(ValueError, match=r"Attention\.left is None.*no step"):
        Attention(8, 2, chunk=2).initial_state(1)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"layer 1 \(Dense\) takes frames of width 5; those before it give 4"):
        serial(Dense(3, 4), Dense(5, 2))
    with pytest.raises(ValueError, match=r"works on blocks of 2; the delay before it is 1"):
        serial(Depthwise(8, 8, 3, right=1), Attention(8, 2, chunk=2, left=2))
    with pytest.raises(ValueError, match="no layers"):
        serial()
    with pytest.raises(ValueError, match="must keep width and rate"):
        residual(Dense(3, 4))
    with pytest.raises(ValueError, match="delay = 0"):
        parallel(Depthwise(4, 4, 3, right=1), Depthwise(4, 4, 3, right=1))
    with pytest.raises(ValueError, match=r"works on blocks of 2"):
        repeat(serial(Attention(8, 2, chunk=2, left=2), Depthwise(8, 8, 3, right=1)), 2)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 5), chunks=st.lists(st.integers(0, 7), max_size=6))
def test_a_host_buffer_gives_all_frames_in_order(size, chunks):
    total = sum(chunks)
    x = np.arange(2 * total, dtype=np.float32).reshape(1, total, 2)
    buffer, pieces, start = HostBuffer(size, x[:, :0]), [], 0
    for count in chunks:
        pieces += buffer.push(x[:, start : start + count])
        start += count
        buffer = HostBuffer(size, buffer.x, buffer.mask)
    pieces += buffer.finish()
    assert all(piece.shape == (1, size, 2) and mask.shape == (1, size) for piece, mask in pieces)
    got = [piece[mask] for piece, mask in pieces] or [x[0]]
    np.testing.assert_array_equal(np.concatenate(got), x[0])
    assert len(pieces) == -(-total // size)


def test_a_host_buffer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="size is 0"):
        HostBuffer(0, np.zeros((1, 0, 2)))
    with pytest.raises(ValueError, match="fewer than size = 2"):
        HostBuffer(2, np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"it must be \[1, frames, 2\]"):
        HostBuffer(2, np.zeros((1, 0, 2))).push(np.zeros((2, 1, 2)))
