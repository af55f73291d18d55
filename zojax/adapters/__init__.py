"""Small trainable additions to frozen weights."""

from zojax.adapters.bottleneck import Bottleneck, bottleneck
from zojax.adapters.lora import Lora, add_lora, merge_lora, unmerge_lora
from zojax.adapters.prompt import PromptTable, add_prompt, prepend_prompt
from zojax.adapters.tensor_train import TensorTrain, factorise, init_tensor_train, tensor_train_dot, train_shape

__all__ = [
    "Bottleneck",
    "Lora",
    "PromptTable",
    "TensorTrain",
    "add_lora",
    "add_prompt",
    "bottleneck",
    "factorise",
    "init_tensor_train",
    "merge_lora",
    "prepend_prompt",
    "tensor_train_dot",
    "train_shape",
    "unmerge_lora",
]
