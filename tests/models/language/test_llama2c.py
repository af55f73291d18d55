import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language import decode, llama2c
from models.language.llama import Llama


@pytest.fixture(scope="module")
def stories(zojax_data):
    folder = zojax_data / "lm" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no optional data: {folder} does not exist")
    return folder


def test_the_documented_greedy_sample_word_for_word(stories):
    config, params = llama2c.load(stories / "stories260K.bin")
    tokenizer = llama2c.Tokenizer.from_file(stories / "tok512.bin")
    text = (stories / "stories260K.md").read_text()
    (documented,) = re.findall(r"-t 0\.0\n(.*?)\n```", text, re.DOTALL)
    tokens, mask = decode.pad([tokenizer.encode("")], side="left")
    # The program's default is 256 steps, and it ends at the token that begins another text.
    out = decode.generate(Llama(config), params, tokens, mask, max_new_tokens=256, stop=(1,))
    sample = tokenizer.decode([1, *out.tokens[0, : int(out.length[0])].tolist()])
    assert sample == documented
    # The encoder finds the tokens that the model wrote: the merges are those of the training's encoder.
    assert tokenizer.encode(documented)[: 1 + 60] == [1, *out.tokens[0, :60].tolist()]


def write(path, *, dim=8, hidden=12, layers=2, heads=2, kv_heads=1, vocabulary=-10, length=6, seed=0):
    """A random model in the format; returns its float64 arrays by the names of llama2.c."""
    rng = np.random.default_rng(seed)
    kv, v, half = dim // heads * kv_heads, abs(vocabulary), dim // heads // 2
    shapes = dict(
        token_embedding=(v, dim),
        rms_att=(layers, dim),
        wq=(layers, dim, dim),
        wk=(layers, kv, dim),
        wv=(layers, kv, dim),
        wo=(layers, dim, dim),
        rms_ffn=(layers, dim),
        w1=(layers, hidden, dim),
        w2=(layers, dim, hidden),
        w3=(layers, hidden, dim),
        rms_final=(dim,),
        freq_real=(length, half),
        freq_imag=(length, half),
        **(dict(wcls=(v, dim)) if vocabulary < 0 else {}),
    )
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    header = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocabulary, length)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def oracle(w, tokens, heads=2, kv_heads=1):
    """llama2.c's forward in float64, token by token, with rotary pairs of neighbours."""

    def norm(x, gain):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * gain

    def turned(x, position, size):
        x = x.reshape(-1, size // 2, 2)
        angle = position * 10000.0 ** (-np.arange(0, size, 2) / size)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([x[..., 0] * cos - x[..., 1] * sin, x[..., 0] * sin + x[..., 1] * cos], -1).reshape(-1, size)

    dim = w["token_embedding"].shape[1]
    size, layers = dim // heads, len(w["wq"])
    keys, values, out = [[] for _ in range(layers)], [[] for _ in range(layers)], []
    for position, token in enumerate(tokens):
        x = w["token_embedding"][token]
        for i in range(layers):
            h = norm(x, w["rms_att"][i])
            q = turned(w["wq"][i] @ h, position, size)
            keys[i].append(turned(w["wk"][i] @ h, position, size))
            values[i].append((w["wv"][i] @ h).reshape(-1, size))
            mixed = []
            for head in range(heads):
                shared = head // (heads // kv_heads)
                s = np.array([q[head] @ k[shared] for k in keys[i]]) / np.sqrt(size)
                p = np.exp(s - s.max())
                mixed.append(sum(a * v[shared] for a, v in zip(p / p.sum(), values[i], strict=True)))
            x = x + w["wo"][i] @ np.concatenate(mixed)
            h = norm(x, w["rms_ffn"][i])
            gate = w["w1"][i] @ h
            x = x + w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ h))
        out.append(w.get("wcls", w["token_embedding"]) @ norm(x, w["rms_final"]))
    return np.stack(out)


@pytest.mark.parametrize("vocabulary", [10, -10])
def test_a_random_model_by_float64_oracle(tmp_path, vocabulary):
    arrays = write(tmp_path / "m.bin", vocabulary=vocabulary)
    config, params = llama2c.load(tmp_path / "m.bin")
    assert config.tie_word_embeddings == (vocabulary > 0)
    tokens = [3, 1, 4, 1, 5]
    apply = jax.jit(lambda p, *given: Llama(config).apply({"params": p}, *given))
    out = apply(params, *decode.pad([tokens], side="left"))[0]
    # Weights are of order 1 here, and logits of order 10: 1e-5 of them is a few hundred last places.
    np.testing.assert_allclose(out, oracle(arrays, tokens), rtol=0, atol=1e-4 * float(jnp.abs(out).max()))


def test_a_file_of_another_length_is_refused(tmp_path):
    write(tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "short.bin").write_bytes(data[:-4])
    with pytest.raises(
        ValueError, match=rf"short.bin has {len(data) - 4} bytes; by its header it must have {len(data)}"
    ):
        llama2c.load(tmp_path / "short.bin")
    (tmp_path / "short.bin").write_bytes(data[:20])
    with pytest.raises(ValueError, match="has 20 bytes; the header alone has 28"):
        llama2c.load(tmp_path / "short.bin")
    for header, message in (
        ((8, 12, 2, 3, 1, 10, 6), "head_dim|must divide it"),
        ((8, 12, 0, 2, 1, 10, 6), "num_hidden_layers is 0"),
        ((8, 12, 2, 0, 1, 10, 6), "num_attention_heads is 0"),
        ((-8, 12, 2, 2, 1, 10, 6), "hidden_size is -8"),
    ):
        (tmp_path / "bad.bin").write_bytes(struct.pack("<7i", *header) + data[28:])
        with pytest.raises(ValueError, match=f"is no llama2.c model: .*({message})"):
            llama2c.load(tmp_path / "bad.bin")


@pytest.fixture
def tokenizer():
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256))]
    merges = {b" ": -9.0, b"a": -9.0, b"b": -9.0, b"ab": -1.0, b" a": -2.0, b"aa": -1.0, b" ab": -3.0}
    return llama2c.Tokenizer((*special, *merges), (*(0.0,) * len(special), *merges.values()))


def test_the_best_pair_is_merged_first(tokenizer):
    def pieces(text):
        return [tokenizer.pieces[i] for i in tokenizer.encode(text)[1:]]

    assert pieces("ab") == [b" ab"]  # "ab" before " a", and then with the space
    assert pieces("aab") == [b" ", b"aa", b"b"]  # of equals the first
    assert pieces("") == []
    assert tokenizer.encode("é")[1:] == [259, 0xC3 + 3, 0xA9 + 3]  # bytes of what is unknown


def test_a_text_comes_back(tokenizer):
    for text in ("ab ba", " two  spaces", "Straße 東京 🎬\n", "<s>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([1, 259, 260, 2]) == "a"
    assert tokenizer.decode([3 + 0xC3]) == "\ufffd"
    with pytest.raises(ValueError, match="tokens holds 266; it must be in"):
        tokenizer.decode([266])


def test_a_tokenizer_file_comes_back_and_a_broken_one_is_refused(tokenizer, tmp_path):
    path = tmp_path / "tok.bin"
    entries = zip(tokenizer.pieces, tokenizer.scores, strict=True)
    data = struct.pack("<i", 7) + b"".join(struct.pack("<fi", score, len(p)) + p for p, score in entries)
    path.write_bytes(data)
    assert llama2c.Tokenizer.from_file(path) == tokenizer
    for broken in (data[:-1], data + b"x", struct.pack("<i", 3) + data[4:], data[:2], data[:400]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"tok\.bin (is no llama2.c tokenizer|has \d+ tokens)"):
            llama2c.Tokenizer.from_file(path)
