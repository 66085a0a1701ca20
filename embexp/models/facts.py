"""What has to be known of a model before it is used: read from a loaded one, kept by content.

Called by `embedding_model`. With these at hand embeddings that are kept can be found and checked without loading the
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Facts:
    """device: where it runs, such as `cpu`. max_seq_length: tokens, null where it reads all. attention: transformers'
    name of how it is computed. transformer: whether it has one. drops: whether a dropout is above 0. routed: whether
    queries and passages take different ways through it (sentence-transformers' Router), so that it must be told which
    a text is."""

    device: str
    dimensions: int
    max_seq_length: int | None
    attention: str | None
    transformer: bool
    drops: bool
    prompts: Mapping[str, str | None]
    routed: bool = False


def facts_of(model: Any) -> Facts:
    """The facts of a loaded SentenceTransformer."""
    return Facts(
        device=model.device.type,
        dimensions=int(model.get_embedding_dimension()),
        max_seq_length=getattr(model, "max_seq_length", None),
        attention=getattr(getattr(model.transformers_model, "config", None), "_attn_implementation", None),
        transformer=model.transformers_model is not None,
        drops=any(getattr(module, name) > 0 for module, name in dropouts(model)),
        prompts=dict(model.prompts),
        routed=is_routed(model),
    )


def is_routed(model: torch.nn.Module) -> bool:
    """Whether queries and passages take different ways through it."""
    return any(type(module).__name__ == "Router" for module in model.modules())


def missing_weights(model: Any, *, pools_itself: bool = True) -> list[str]:
    """Names of the transformer's weights that its folder lacks, in whose place random ones stand.

    pools_itself: whether a pooler's are left out, as sentence-transformers does that by itself. The weights are read
    once more for it.
    """
    transformer = model.transformers_model
    if transformer is None:
        return []
    _, info = type(transformer).from_pretrained(
        transformer.name_or_path, output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    return sorted(name for name in info["missing_keys"] if not (pools_itself and "pooler" in name))


def dropouts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """What may drop: modules, each with the name of its attribute that holds the share.

    That is `p` of torch's Dropout, or a number that a module gives to a function, as Qwen3's attention_dropout.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            yield module, "p"
            continue
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
                yield module, name


def machine() -> list[str | None]:
    """What facts depend on beside the model: the accelerator that a model is put on."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [accelerator.type if accelerator is not None else None]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16 itself; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # avx512_bf16 alone took 1.5 to 2 times as long as float32 on a Xeon whose AMX is hidden
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return False
