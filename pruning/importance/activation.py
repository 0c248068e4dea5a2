"""The activation family: all four axes from one forward pass, after Minitron and ShortGPT.

Shapes: L layers, H heads, D head_dim, F neurons, C hidden channels, B rows, T positions,
S real tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning import processes
from pruning.importance.calibration import CalibrationBatch, count_predictions
from pruning.importance.forward import enter, measuring, run_layer
from pruning.importance.scores import Axis, Progress, Scores
from pruning.surgery.adapter import CausalModel, DecoderModules
from pruning.surgery.shape import Shape

Hook = Callable[[Tensor], None]


@dataclass(frozen=True)
class _Sums:
    """Sums over real tokens, float64."""

    heads_LH: Tensor
    hidden_C: Tensor
    mlp_LF: Tensor
    influence_L: Tensor

    @classmethod
    def zero(cls, shape: Shape, device: torch.device) -> _Sums:
        layers = shape.num_hidden_layers
        sizes = (
            (layers, shape.num_attention_heads),
            (shape.hidden_size,),
            (layers, shape.intermediate_size),
            (layers,),
        )
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def total(self) -> _Sums:
        """The sums of all processes."""
        sums = (self.heads_LH, self.hidden_C, self.mlp_LF, self.influence_L)
        return _Sums(*(processes.total(sum_) for sum_ in sums))


class ActivationImportance:
    """Importance by how much is there (Minitron, arXiv 2407.14679, section 2.2; ShortGPT, 2403.03853).

    Averages run over all real tokens of the calibration users, as in Minitron:

    - head: L2 norm of its output before the heads are mixed;
    - neuron: magnitude of `act(gate) · up`, which the down projection reads;
    - channel: magnitude in the outputs of the RMSNorms, summed over all norms of all layers and the
      final one;
    - layer: Block Influence, `1 - cos(input, output)`; the lowest goes first. `values` of layer
      scores hold it for each layer.

    Nothing depends on the target.
    """

    name = "activation"

    def parameters(self, axis: Axis, target: Shape) -> dict[str, int]:  # noqa: ARG002
        """None: these scores hold for every target."""
        return {}

    def score(
        self,
        model: CausalModel,
        calibration: Sequence[CalibrationBatch],
        axes: Collection[Axis],
        target: Shape,  # noqa: ARG002
        progress: Progress,
    ) -> dict[Axis, Scores]:
        """Scores all `axes` in the same pass.

        Raises:
            RecipeError: nothing to predict, so the calibration users are no users.
            TrainingError: scores that are not finite.
        """
        count_predictions(calibration)
        shape = Shape.of(model.config)
        sums = _Sums.zero(shape, model.device)
        tokens = sum(int(batch.attention_mask_BT.sum()) for batch in calibration)
        mine = processes.share(calibration)
        with measuring(model) as decoder:
            for index, batch in enumerate(mine):
                _add_batch(sums, model, decoder, batch, shape.head_dim)
                progress(index + 1, len(mine))
        sums = sums.total()
        influence_L = (sums.influence_L / tokens).cpu()
        found = {
            "heads": Scores(self.name, "heads", (sums.heads_LH / tokens).cpu()),
            "hidden": Scores(self.name, "hidden", (sums.hidden_C / tokens).cpu()),
            "mlp": Scores(self.name, "mlp", (sums.mlp_LF / tokens).cpu()),
            "layers": Scores(self.name, "layers", influence_L, influence_L.argsort(stable=True)[:-1]),
        }
        return {axis: found[axis] for axis in axes}


def _add_batch(
    sums: _Sums,
    model: CausalModel,
    decoder: DecoderModules,
    batch: CalibrationBatch,
    head_dim: int,
) -> None:
    stream = enter(model, decoder, batch)
    real_BT = stream.real_RT

    def add_heads(sum_H: Tensor) -> Hook:
        def add(read_BTE: Tensor) -> None:
            heads_SHD = torch.unflatten(read_BTE[real_BT].double(), -1, (-1, head_dim))
            sum_H.add_(heads_SHD.norm(dim=-1).sum(dim=0))

        return add

    def add_magnitude(sum_: Tensor) -> Hook:
        def add(read_BTX: Tensor) -> None:
            sum_.add_(read_BTX[real_BT].double().abs().sum(dim=0))

        return add

    add_hidden = add_magnitude(sums.hidden_C)
    hidden_BTC = stream.hidden_RTC
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder.layers):
            hooks.enter_context(reading_input(layer.attention_output, add_heads(sums.heads_LH[index])))
            hooks.enter_context(reading_input(layer.down, add_magnitude(sums.mlp_LF[index])))
            hooks.enter_context(_reading_output(layer.input_norm, add_hidden))
            hooks.enter_context(_reading_output(layer.post_attention_norm, add_hidden))
        for index, layer in enumerate(decoder.layers):
            output_BTC = run_layer(layer, hidden_BTC, stream)
            cosine_S = torch.cosine_similarity(
                hidden_BTC[real_BT].double(), output_BTC[real_BT].double(), dim=-1
            )
            sums.influence_L[index] += (1 - cosine_S).sum()
            hidden_BTC = output_BTC
        add_hidden(decoder.final_norm(hidden_BTC))


@contextmanager
def reading_input(module: nn.Module, read: Hook) -> Iterator[None]:
    """Hands `read` what goes into `module`, inside the block."""
    handle = module.register_forward_pre_hook(lambda _, arguments: read(arguments[0]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _reading_output(module: nn.Module, read: Hook) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: read(output))
    try:
        yield
    finally:
        handle.remove()
