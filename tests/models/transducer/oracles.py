"""The layers once more in float64 numpy, frame by frame and as the papers write them."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def layer_norm(x, scale, bias, eps=1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * scale + bias


def lstm(x, params, mask=None):
    """One utterance [t, d]; the four gates apart, in the order input, forget, cell, output."""
    h = params["bias"].shape[0] // 4
    of_x, of_r, bias = (
        [params[name][..., n * h : (n + 1) * h] for n in range(4)] for name in ("input", "recurrent", "bias")
    )
    c, r, out = np.zeros(h), np.zeros(params["recurrent"].shape[0]), []
    for t in range(len(x)):
        if mask is None or mask[t]:
            i, f, g, o = (x[t] @ of_x[n] + r @ of_r[n] + bias[n] for n in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            r = sigmoid(o) * np.tanh(c)
            if "projection" in params:
                r = r @ params["projection"]
        out.append(r)
    return np.array(out)


def lstm_stack(x, params, layers):
    for n in range(layers):
        norm = params[f"norm_{n}"]["norm"]
        x = np.array([layer_norm(y, norm["scale"], norm["bias"]) for y in lstm(x, params[f"lstm_{n}"])])
    return x


def attention(x, params, heads, sees):
    """One utterance [t, d]; sees(i, j) tells whether frame i sees frame j. A sinusoid for each pair of frames."""
    frames, d = x.shape
    k = d // heads

    def affine(name):
        return (x @ params[name]["kernel"] + params[name]["bias"]).reshape(frames, heads, k)

    query, key, value = affine("query"), affine("key"), affine("value")
    rates = np.array([10000.0 ** (-2 * n / d) for n in range(d // 2)])
    out = np.zeros((frames, heads, k))
    for head in range(heads):
        u, v = params["key_bias"][head], params["position_bias"][head]
        for i in range(frames):
            seen = [j for j in range(frames) if sees(i, j)]
            scores = []
            for j in seen:
                table = np.concatenate([np.sin((i - j) * rates), np.cos((i - j) * rates)])
                place = table @ params["position"][:, head]
                scores.append(((query[i, head] + u) @ key[j, head] + (query[i, head] + v) @ place) / np.sqrt(k))
            out[i, head] = softmax(np.array(scores)) @ value[seen, head]
    return out.reshape(frames, d) @ params["output"]["kernel"] + params["output"]["bias"]


def depthwise(x, params, dilation, right):
    """y[t] = b + sum over taps of w[tap] x[t + right - (taps - 1 - tap) dilation]; frames outside are 0."""
    taps, out = len(params["kernel"]), np.zeros_like(x)
    for t in range(len(x)):
        out[t] = params["bias"]
        for tap in range(taps):
            at = t + right - (taps - 1 - tap) * dilation
            if 0 <= at < len(x):
                out[t] += params["kernel"][tap] * x[at]
    return out


def conv(x, params, *, bins, subsample, bin_stride):
    """Frames [t, bins * channels]; causal in time, padded over bins as "SAME" is."""
    kernel, bias = params["kernel"], params["bias"]
    taps, wide, channels, features = kernel.shape
    x = x.reshape(len(x), bins, channels)
    out_bins = -(-bins // bin_stride)
    before = max((out_bins - 1) * bin_stride + wide - bins, 0) // 2
    out = np.zeros((len(x) // subsample, out_bins, features))
    for j in range(len(out)):
        for b in range(out_bins):
            total = bias.copy()
            for tap in range(taps):
                t = subsample * (j + 1) - 1 - (taps - 1 - tap)
                for w in range(wide):
                    at = b * bin_stride + w - before
                    if t >= 0 and 0 <= at < bins:
                        total += x[t, at] @ kernel[tap, w]
            out[j, b] = total
    return out.reshape(len(out), -1)


def squeeze_excite(x, params):
    out = np.zeros_like(x)
    for t in range(len(x)):
        hidden = np.maximum(x[: t + 1].mean(0) @ params["down"]["kernel"] + params["down"]["bias"], 0)
        out[t] = x[t] * sigmoid(hidden @ params["up"]["kernel"] + params["up"]["bias"])
    return out


def float64(tree):
    if isinstance(tree, dict):
        return {name: float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
