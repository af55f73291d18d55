"""Small trainable additions to frozen weights."""

from zojax.adapters.bottleneck import Bottleneck, bottleneck
from zojax.adapters.lora import Lora, add_lora, merge_lora, unmerge_lora
from zojax.adapters.tensor_train import TensorTrain, factorise, init_tensor_train, tensor_train_dot, train_shape

__all__ = [
    "Bottleneck",
    "Lora",
    "TensorTrain",
    "add_lora",
    "bottleneck",
    "factorise",
    "init_tensor_train",
    "merge_lora",
    "tensor_train_dot",
    "train_shape",
    "unmerge_lora",
]
