"""Low-rank adapters (LoRA, arXiv 2106.09685), for teachers too large to train whole.

Every linear projection W of the layers learns a product B·A of low rank on top of itself, and W stays as
it is: only the adapters have gradients, optimiser states and checkpoints. Afterwards they are merged into
the weights, so what is saved is a plain model. The adapters are peft's, an optional package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from pruning.errors import MissingPackageError
from pruning.surgery.adapter import CausalModel

if TYPE_CHECKING:
    from peft import PeftModel

Trainable: TypeAlias = "PreTrainedModel | PeftModel"
"""A plain model, or one with adapters on it."""

# The adapters' product is scaled by α / rank; kept at 2, so that a rank can change without the rate.
_SCALE = 2
_NAME = "default"


def with_adapters(model: CausalModel, rank: int, seed: int) -> PeftModel:
    """Puts adapters on all linear projections of the layers of `model`, in place.

    They change nothing yet: B is zero. A is drawn, the same for the same seed.

    Raises:
        MissingPackageError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingPackageError(
            "LoRA needs the package peft; install it with `pip install 'espalier[lora]'`"
        ) from error
    config = LoraConfig(
        r=rank, lora_alpha=_SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, adapter_name=_NAME)
    # Or it compares vocabularies with the base's folder at every checkpoint, and saves the embeddings.
    adapted.peft_config[_NAME].base_model_name_or_path = None
    return cast("PeftModel", adapted)


def merged(model: Trainable) -> CausalModel:
    """The plain model, its adapters merged into its weights and gone."""
    if isinstance(model, PreTrainedModel):
        return cast(CausalModel, model)
    return cast(CausalModel, model.merge_and_unload())


def without_adapters(model: Trainable) -> PreTrainedModel:
    """The plain model under the adapters, which stay on it."""
    return model if isinstance(model, PreTrainedModel) else cast(PreTrainedModel, model.get_base_model())


def merged_tensors(model: Trainable) -> dict[str, Tensor]:
    """The state dict that `merged` would have, while the model goes on as it is."""
    plain = without_adapters(model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in plain.state_dict().items():
        module, adapted, _ = name.rpartition(".base_layer.weight")
        if adapted:
            tensor = tensor + plain.get_submodule(module).get_delta_weight(_NAME)  # type: ignore[operator]
        if ".lora_" not in name:
            tensors[name.replace(".base_layer.", ".")] = tensor
    return tensors


def load_adapters(model: PeftModel, checkpoint: Path) -> None:
    """Loads the adapters of one of the Trainer's checkpoints."""
    from peft import set_peft_model_state_dict

    tensors = load_file(checkpoint / "adapter_model.safetensors")
    found: Any = set_peft_model_state_dict(model, tensors, _NAME)
    assert not found.unexpected_keys, found.unexpected_keys
