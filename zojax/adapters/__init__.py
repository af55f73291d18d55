"""Small trainable additions to frozen weights."""

from zojax.adapters.lora import Lora, add_lora, merge_lora, unmerge_lora

__all__ = ["Lora", "add_lora", "merge_lora", "unmerge_lora"]
