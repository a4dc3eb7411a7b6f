"""The same step with optimizer state, gradients and weights spread over the processes by DeepSpeed (ZeRO 1, 2, 3)."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmark.errors import OneProcessError, UserError
from benchmark.processes import Processes, join_alone
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Chunked, Engine, Result, sum_gradients
from benchmark.training.objectives import Objective
from benchmark.training.state import MOMENTS, Fragment, StoredState

Offload = Literal["none", "optimizer", "all"]
_ITEM_CHUNK = 64  # where none is set: the processes must run the model equally often, whatever memory each has
_BUCKET = 1 << 28  # elements of gradients that DeepSpeed reduces at once


class ZeroEngine(Engine):
    """The model's optimizer state (stage 1), gradients (2) and weights (3) are spread over the processes; the
    objective's few parameters are whole in each.

    Weights and what the optimizer keeps of them are float32, as in the other engines; with bf16, DeepSpeed runs the
    model under torch's autocast. Calls of the model's two methods go through DeepSpeed, whose hooks gather the weights.
    offload: keep the optimizer's state, or that and the weights, in the host's memory; "all" needs stage 3.

    All parameters take part in every update: one that the model does not use decays, which other engines leave alone.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        objective: Objective,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        stage: int,
        offload: Offload = "none",
        device: torch.device,
        bf16: bool,
        item_chunk: int | None = None,
        history_chunk: int | None = None,
        processes: Processes | None = None,
        compiled: bool = False,
    ) -> None:
        weights, few = ([p for p in part.parameters() if p.requires_grad] for part in (model, objective))
        optimizer = make_optimizer(few) if few else None
        super().__init__(
            model, objective, optimizer, device=device, bf16=False,  # DeepSpeed's own, within its forward pass
            item_chunk=item_chunk or _ITEM_CHUNK, history_chunk=history_chunk, processes=processes,
            compiled=compiled and stage < 3,  # kernels of whole layers leave no room for the hooks that gather weights
        )  # fmt: skip
        self.stage, self._loss_scale = stage, float(self.processes.count)  # DeepSpeed takes the mean over the processes
        learned = self.learned()
        self._spread = {name: p for name, p in learned.items() if name.startswith("model.")}
        self._few = {name: p for name, p in learned.items() if name not in self._spread}
        settings = zero_settings(stage, offload, bf16, sum(p.numel() for p in weights))
        join_alone()
        package = _deepspeed(device)
        self._zero = package.zero
        self._deepspeed = package.initialize(
            model=model, model_parameters=weights, optimizer=make_optimizer(weights), config=settings
        )[0]
        for method in ("embed_items", "embed_histories", "click_states", "click_logits"):
            if hasattr(model, method):
                setattr(model, method, partial(self._deepspeed, method))
        setattr(model, "item_table", lambda: None)  # noqa: B010  # reads a weight past the hooks

    def set_learning_rate(self, rate: float) -> None:
        super().set_learning_rate(rate)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def fragments(self) -> Iterator[Fragment]:
        for name, parameter in self._spread.items():
            if (found := self._place(parameter)) is None:
                continue
            flat, offset, start, length = found
            state = self._deepspeed.optimizer.optimizer.state.get(flat, {})
            moments = {kind: state[kind].narrow(0, offset, length) for kind in MOMENTS if kind in state}
            yield Fragment(name, start, flat.detach().narrow(0, offset, length), moments, float(state.get("step", 0)))
        if self.processes.first:
            yield from (self._whole(name, parameter) for name, parameter in self._few.items())

    def restore(self, stored: StoredState) -> None:
        states = self._deepspeed.optimizer.optimizer.state
        for name, parameter in self._spread.items():
            if (found := self._place(parameter)) is None or not (steps := stored.steps(name)):
                continue
            flat, offset, start, length = found
            if flat not in states or not states[flat]:
                zeros = {kind: torch.zeros_like(flat, memory_format=torch.preserve_format) for kind in MOMENTS}
                states[flat] = {"step": torch.tensor(steps, dtype=torch.float32, device=flat.device), **zeros}
            for kind in MOMENTS:
                states[flat][kind].narrow(0, offset, length).copy_(stored.moment(kind, name, start, length))
        for name, parameter in self._few.items():
            self._restore_whole(name, parameter, stored)

    def weights(self) -> dict[str, Tensor] | None:
        if self.stage < 3:
            return super().weights()
        kept = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with self._zero.GatheredParameters([tensor] if hasattr(tensor, "ds_id") else []):
                if self.processes.first:
                    kept[name] = tensor.detach().to("cpu", copy=True)
        return kept if self.processes.first else None

    def _update(self) -> None:
        self._deepspeed.step()
        sum_gradients(self.processes, list(self._few.values()), 1 / self._loss_scale)
        for optimizer in self.optimizers:
            optimizer.step()

    def _item_gradients(self, embedded: Tensor, gradient: Tensor) -> None:
        # A backward pass of the histories came after this one's forward pass. DeepSpeed would take the two for one, and
        # leave the second one's gradients unreduced.
        self._deepspeed.optimizer.clear_backward_seen_flag()
        super()._item_gradients(embedded, gradient)

    def _together(self, what: Chunked, work: Callable[[], Result]) -> Result:
        """DeepSpeed exchanges weights and gradients in the middle of a phase, so a step cannot be repeated."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            raise OneProcessError(
                f"the GPU's memory does not suffice for a step's {what}; lower execution.item_chunk or "
                "execution.history_chunk, and start again: it continues from the last saved state"
            ) from error

    def _place(self, parameter: Any) -> tuple[Tensor, int, int, int] | None:
        """Where this process keeps its part of a parameter: the flat float32 tensor that the optimizer updates, the
        offset in it, the first element of the parameter and how many; None if it has none of it."""
        zero = self._deepspeed.optimizer
        if self.stage == 3:
            group, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            start = self.processes.rank * length
            length = min(length, parameter.ds_numel - start)  # the last parts are padded
            return (zero.fp32_partitioned_groups_flat[group], offset, start, length) if length > 0 else None
        if (mapping := parameter._hp_mapping) is None:
            return None
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        ours, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
        return flat, ours.start, whole.start, ours.numel


def zero_settings(stage: int, offload: Offload, bf16: bool, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration. elements: of all learned weights."""
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(_BUCKET, elements), "overlap_comm": False}
    if offload == "all" and stage < 3:
        raise UserError(f"execution.offload: all needs execution.engine: zero3, and it is zero{stage}")
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # of no meaning here: a step has as many backward passes as it has chunks
        "managed_gradient_accumulation": False,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, which compiles nothing
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 1 << 62,
    }


def _deepspeed(device: torch.device) -> Any:
    """The package, told before its first import to use the CPU where the run does, and to compile nothing."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        package = importlib.import_module("deepspeed")
    except ImportError as error:
        raise UserError(
            "engines zero1, zero2 and zero3 need `pip install deepspeed`, built with DS_BUILD_OPS=0"
        ) from error
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return package
