"""Logits where a target is predicted, and nowhere else.

The head reads the target positions only, not the instruction, the context and the padding: exactly the
same logits, for less work and memory. The model is told nothing of padding: it stands on the right and
attention is causal, so no target sees it, and attention without a mask is faster.

Shapes: as in `batches`; C hidden channels, V vocabulary.
"""

from __future__ import annotations

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.training.batches import Batch


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """(P, V): the logits that predict the batch's targets, in their order.

    Args:
        model: a causal model, bare or wrapped for several processes; it is called as a whole, so that
            a wrapper sees its forward pass.
        batch: on the model's device.
    """
    bare: PreTrainedModel = extract_model_from_parallel(model)
    head = bare.get_output_embeddings()
    assert head is not None  # a causal model has one

    def at_targets(_: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
        return batch.read(arguments[0])

    # `logits_to_keep`, transformers' own way, takes the same positions from every row.
    handle = head.register_forward_pre_hook(at_targets)
    try:
        logits_PV: Tensor = model(input_ids=batch.input_ids_BT, use_cache=False).logits
        return logits_PV
    finally:
        handle.remove()
