"""The published MeZO procedure in PyTorch against this library's two-point step: the same encoder, batch and loss.

MeZO moves the weights by +eps z, -2 eps z and +eps z, drawing z anew from one seed in each of its four passes. Here the
passes are written in place, which is kinder to torch than the published expressions. The encoder is BERT in plain torch
operations. Both sides use every core, or the GPU, where both multiply in TF32 but for the comparison of their losses;
without torch this library is timed alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from launch.bench._harness import (
    Record,
    finished,
    import_torch,
    interleave,
    no_torch,
    record,
    timings,
    torch_device,
)
from launch.bench._sizes import Scale, chosen
from launch.bench.zo_step import DIRECTIONS, EPS, LEARNING_RATE, classifier, programs, random_batch, sgd_chain
from models.language import hub
from models.language.bert import BertConfig

__all__ = ["TOLERANCE", "run", "torch_loss", "torch_mezo_step", "torch_weights"]

BENCH = "mezo_torch"

# Two float32 forwards of six layers differ by 1e-6 or so in a loss of order 1; a wrong mask or epsilon by 1e-3.
TOLERANCE = 1e-4


def torch_weights(torch: Any, folder: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's tensors by their names in the checkpoint, and the head.

    Args:
      torch: the module.
      folder: holds model.safetensors.
      head: "kernel" [d, classes] and "bias" [classes].

    Returns:
      float32 tensors; the pooler, which the loss does not use, is left out.
    """
    from safetensors.torch import load_file

    tensors = {name.removeprefix("bert."): x for name, x in load_file(folder / "model.safetensors").items()}
    unused = ("pooler.", "embeddings.position_ids")
    weights = {name: x.float() for name, x in tensors.items() if not name.startswith(unused)}
    weights["head.weight"] = torch.tensor(np.asarray(head["kernel"]).T.copy())
    weights["head.bias"] = torch.tensor(np.asarray(head["bias"]))
    return weights


def torch_loss(torch: Any, weights: Mapping[str, Any], config: BertConfig, batch: Mapping[str, Any]) -> Any:
    """Mean cross-entropy of mean-pooled BERT.

    Args:
      torch: the module.
      weights: as `torch_weights` returns them.
      config: sizes; the activation is the exact GELU.
      batch: tensors tokens int64 [B, S], mask bool [B, S], label int64 [B].

    Returns:
      Scalar tensor.
    """
    F = torch.nn.functional
    tokens, mask = batch["tokens"], batch["mask"]
    rows, length = tokens.shape

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(
            x, (config.hidden_size,), weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps
        )

    def heads(x):
        return x.view(rows, length, config.num_attention_heads, config.head_size).transpose(1, 2)

    x = F.embedding(tokens, weights["embeddings.word_embeddings.weight"])
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        query, key, value = (heads(linear(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(rows, length, config.hidden_size)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        wide = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    counted = mask.to(x.dtype)[..., None]
    pooled = (x * counted).sum(1) / counted.sum(1)
    return F.cross_entropy(linear(pooled, "head"), batch["label"])


def torch_mezo_step(
    torch: Any, weights: Sequence[Any], loss: Callable[[], Any], *, eps: float, learning_rate: float, seed: int
) -> float:
    """One step of MeZO with SGD; changes the weights in place.

    Args:
      torch: the module.
      weights: tensors that are moved.
      loss: the loss at the present weights.
      eps: scale of the probe.
      learning_rate: of the update.
      seed: of the step's noise.

    Returns:
      The projected gradient.

    References:
      MeZO, arXiv 2305.17333, algorithm 1.
    """

    def move(scale: float) -> None:
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        for w in weights:
            w.add_(torch.normal(0.0, 1.0, tuple(w.shape), generator=generator, device=w.device), alpha=scale)

    with torch.no_grad():
        move(eps)
        plus = float(loss())
        move(-2 * eps)
        minus = float(loss())
        move(eps)
        projected = (plus - minus) / (2 * eps)
        move(-learning_rate * projected)
    return projected


def run(
    repeats: int = 10,
    *,
    scale: str = "minilm",
    source: str | Path | BertConfig | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Record]:
    """Measures forwards and steps of both.

    Args:
      repeats: rounds of each interleaved timing.
      scale: name in `_sizes.SCALES`, whose fields hold where an argument is None.
      source: as `classifier` takes it; a folder holds one model.safetensors.
      shapes: (rows, tokens) of the batches.

    Yields:
      Lines: the difference of the losses, times in ms, and steps/s compared with MeZO in torch.

    Raises:
      ValueError: if the losses of the two encoders differ by more than TOLERANCE.
    """
    sizes: Scale = chosen(scale)
    encoder = sizes.source if source is None else source
    task, params = classifier(encoder)
    torch, tensors = import_torch(), {}
    if torch is None:
        yield no_torch(BENCH)
    else:
        tensors = _tensors(torch, encoder, params)
    for rows, length in sizes.shapes if shapes is None else shapes:
        batch = random_batch(task.config.vocab_size, rows, length)
        held = [jax.tree.map(lambda x: x.copy(), params)]
        calls: dict[str, Callable[[], Any]] = {}
        if torch is not None:
            calls, theirs = _torch_calls(torch, tensors, task.config, batch)
            with jax.default_matmul_precision("highest"):
                ours = jax.jit(lambda params, batch: task.loss(params, batch)[0])(held[0], batch)
            yield _agreement(float(ours), theirs, f"{rows}x{length}")
        batch = jax.device_put(batch)
        forward = jax.jit(lambda params, batch: task.loss(params, batch)[0]).lower(held[0], batch).compile()
        calls["forward, zojax"] = lambda held=held, forward=forward, batch=batch: forward(held[0], batch)
        for name in ("Rademacher", "Gaussian"):
            step = programs(task, held, batch, sgd_chain(DIRECTIONS[name]))
            calls[f"step, zojax, {name}"] = lambda step=step: (step.call_measure(), step.call_apply())
        yield from _lines(interleave(calls, repeats), f"{rows}x{length}")


def _tensors(torch: Any, source: str | Path | BertConfig, params: Any) -> dict[str, Any]:
    """The weights in torch: a random encoder takes the way of a checkpoint, too."""
    if not isinstance(source, BertConfig):
        return torch_weights(torch, hub.resolve(source), params["head"])
    with TemporaryDirectory() as folder:
        hub.save(folder, source, params["encoder"])
        return torch_weights(torch, Path(folder), params["head"])


def _torch_calls(
    torch: Any, weights: dict[str, Any], config: BertConfig, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Calls for the timer, and the loss before any of them, which is in full float32."""
    device = torch_device(torch)
    weights = {name: w.to(device, copy=True) for name, w in weights.items()}
    batch = {name: torch.tensor(arrays[name], device=device) for name in ("tokens", "mask", "label")}
    batch |= {name: batch[name].long() for name in ("tokens", "label")}
    trained = {name: w.clone().requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.SGD(list(trained.values()), lr=LEARNING_RATE)
    seeds = iter(range(1 << 30))

    def forward():
        with torch.no_grad():
            return torch_loss(torch, weights, config, batch)

    def mezo():
        moved = list(weights.values())
        torch_mezo_step(torch, moved, forward, eps=EPS, learning_rate=LEARNING_RATE, seed=next(seeds))

    def sgd():
        optimizer.zero_grad()
        torch_loss(torch, trained, config, batch).backward()
        optimizer.step()

    calls = {"forward, torch": forward, "step, torch, MeZO": mezo, "step, torch, back-propagation": sgd}
    torch.backends.cuda.matmul.allow_tf32 = False
    loss = float(forward())
    torch.backends.cuda.matmul.allow_tf32 = True  # JAX's default on a GPU
    return {case: finished(torch, call) for case, call in calls.items()}, loss


def _agreement(ours: float, theirs: float, shape: str) -> Record:
    difference = abs(ours - theirs)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"mezo_torch: the loss is {theirs} in torch and {ours} here at {shape}; they must agree to {TOLERANCE}"
        )
    return record(BENCH, f"loss, zojax against torch, {shape}", "absolute_difference", difference, "nats")


def _lines(seconds: Mapping[str, np.ndarray], shape: str) -> Iterator[Record]:
    seconds = {f"{case}, {shape}": measured for case, measured in seconds.items()}
    mezo = f"step, torch, MeZO, {shape}"
    references = {case: mezo for case in seconds if case.startswith("step") and case != mezo}
    references[f"forward, zojax, {shape}"] = f"forward, torch, {shape}"
    yield from timings(BENCH, seconds, references)
    rates = {case: 1 / float(np.median(measured)) for case, measured in seconds.items() if case.startswith("step")}
    for case, rate in rates.items():
        reference = mezo if case != mezo and mezo in rates else None
        yield record(BENCH, case, "rate", rate, "steps/s", reference=reference, reference_value=rates.get(mezo))
