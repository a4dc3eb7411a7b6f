"""The same step with optimizer states, gradients and weights spread over the processes by DeepSpeed (ZeRO 1, 2, 3).

DeepSpeed expects one forward and one backward pass a step, through its engine. A step here has several backward passes
(the histories' chunks, then the items'), and DeepSpeed's count of them would overwrite what the first has left. So its
optimizers are driven directly:

- Stages 1 and 2: gradients add up in each process as in the plain engine, and are reduced once, after the last pass.
- Stage 3: DeepSpeed's hooks on the modules gather the weights. Each backward pass ends with a reduction of its
  gradients, which is added to what this process keeps of the step's.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.errors import OneProcessError, UserError
from benchmark.experiments.run import Offload
from benchmark.processes import Processes, join_alone
from benchmark.recommender import SequentialRecommender
from benchmark.training.engine import Engine, Result
from benchmark.training.gradients import sum_gradients, used_gradients
from benchmark.training.objectives import Objective
from benchmark.training.repeating import Chunked
from benchmark.training.state import MOMENTS, Fragment, StoredState

_BUCKET = 1 << 26  # elements of gradients that are reduced at once
_KEPT_WHOLE = 100_000  # elements of a weight that stage 3 does not spread


class ZeroEngine(Engine):
    """The model's optimizer states (stage 1), gradients (2) and weights (3) are spread over the processes; the
    objective's few parameters are whole in each.

    Weights and what the optimizer keeps of them are float32, as in the other engines. offload: keep the optimizer's
    states, or those and the weights, in the host's memory; "all" needs stage 3.

    All parameters take part in every update: one that the model does not use decays, which other engines leave alone.
    In stage 2, gradients are whole until the step's last backward pass and spread after it. In stage 3, layers are not
    compiled, and autocast converts their weights anew in each pass.
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
        whole = stage < 3
        super().__init__(
            model, objective, make_optimizer(few), device=device, bf16=bf16 and whole, compiled=compiled and whole,
            item_chunk=item_chunk, history_chunk=history_chunk, processes=processes,
        )  # fmt: skip
        self.items.in_step_with = None if whole else self.processes
        self.precision.bf16 = bf16  # in stage 3 by autocast alone: copies would be whole in each process
        self.stage = stage
        learned = self.learned()
        self._spread = {name: p for name, p in learned.items() if name.startswith("model.")}
        self._few = {name: p for name, p in learned.items() if name not in self._spread}
        join_alone()
        package = _deepspeed(device)
        if stage == 3:
            for layer in model.heavy_layers():  # each is gathered as one
                package.utils.set_z3_leaf_module(layer, True)
        settings = zero_settings(stage, offload, sum(p.numel() for p in weights), device)
        self._deepspeed = package.initialize(
            model=model, model_parameters=weights, optimizer=make_optimizer(weights), config=settings
        )[0]
        self._zero = self._deepspeed.optimizer
        if whole:
            for hook in self._zero._grad_acc_hooks:  # which would reduce in the middle of each backward pass
                hook.remove()
        else:
            self._gathered = package.zero.GatheredParameters
            for method in ("embed_items", "embed_histories", "click_states", "click_logits"):
                if hasattr(model, method):
                    setattr(model, method, partial(self._run, method))
            setattr(model, "item_table", lambda: None)  # noqa: B010  # it reads a weight past the hooks

    def set_learning_rate(self, rate: float) -> None:
        super().set_learning_rate(rate)
        for group in self._zero.param_groups:
            group["lr"] = rate

    def fragments(self) -> Iterator[Fragment]:
        for name, parameter in self._spread.items():
            if (found := self._place(parameter)) is None:
                continue
            flat, offset, start, length = found
            state = self._zero.optimizer.state.get(flat, {})
            moments = {kind: state[kind].narrow(0, offset, length) for kind in MOMENTS if kind in state}
            yield Fragment(name, start, flat.detach().narrow(0, offset, length), moments, float(state.get("step", 0)))
        if self.processes.first:
            yield from (self._whole(name, parameter) for name, parameter in self._few.items())

    def restore(self, stored: StoredState) -> None:
        states = self._zero.optimizer.state
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
            with self._gathered([tensor] if hasattr(tensor, "ds_id") else []):
                if self.processes.first:
                    kept[name] = tensor.detach().to("cpu", copy=True)
        return kept if self.processes.first else None

    def _zero_gradients(self) -> None:
        super()._zero_gradients()
        self._zero.zero_grad()
        if self.stage == 3:
            self._zero.grad_partitions_flat_buffer.zero_()
            self._zero.micro_step_id = 1  # add to it
            self._zero.set_gradient_accumulation_boundary(False)

    def _update(self) -> None:
        if self.stage < 3:
            if gradients := used_gradients(self.processes, list(self._spread.values())):
                torch._foreach_mul_(gradients, self.processes.count)  # DeepSpeed takes the mean
            with self._deepspeed.coalesce_grad_reduction():
                pass  # it reduces what has added up when it is left
        else:
            self._reduce()
            self._zero.grad_partitions_flat_buffer.mul_(self.processes.count)
            self._zero.finalize_gradient_accumulation_boundary()
        self._zero.step()
        if self._zero.overflow:
            raise UserError("a gradient is not a finite number; lower training.optimizer.learning_rate")
        sum_gradients(self.processes, list(self._few.values()))
        self.optimizer.step()

    def _run(self, method: str, *inputs: Any) -> Tensor:
        """Stage 3: a function of the model by its name, with the weights that it needs."""
        self._reduce()
        result: Tensor = self.model(method, *inputs)
        return result

    def _reduce(self) -> None:
        """Stage 3: reduce what the last backward pass has left, before another one begins."""
        if any(bucket.params for bucket in self._zero.ipg_buckets.values()):
            self._zero.independent_gradient_partition_epilogue()

    def _item_gradients(self, embedded: Tensor, gradient: Tensor) -> None:
        if self.stage == 3:
            self._reduce()
        super()._item_gradients(embedded, gradient)

    def _together(self, what: Chunked, work: Callable[[], Result]) -> Result:
        """In stage 3, weights and gradients are exchanged in the middle of a phase, so it cannot be repeated."""
        if self.stage < 3:
            return super()._together(what, work)
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
        zero = self._zero
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


def zero_settings(stage: int, offload: Offload, elements: int, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration. elements: of all learned weights."""
    if offload == "all" and stage < 3:
        raise UserError(f"execution.offload: all needs execution.engine: zero3, and it is zero{stage}")
    on_host = {"device": "cpu", "pin_memory": device.type == "cuda"}
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(_BUCKET, elements), "overlap_comm": False}
    if stage == 3:  # the order in which modules run differs from call to call, so that nothing is fetched ahead
        zero |= {
            "stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0,
            "stage3_param_persistence_threshold": min(_KEPT_WHOLE, elements // 1000),
        }  # fmt: skip
    if offload != "none":
        zero["offload_optimizer"] = on_host
    if offload == "all":
        zero["offload_param"] = on_host
    return {
        "train_micro_batch_size_per_gpu": 1,  # of no meaning here
        "gradient_clipping": 0.0,  # it clips otherwise
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, which compiles nothing
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
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.", FutureWarning
    )  # it calls functions by their former names
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    # It asks NVML for a GPU's free memory by a number, and CUDA_VISIBLE_DEVICES may hold names; torch is asked then.
    accelerator: Any = importlib.import_module("deepspeed.accelerator.cuda_accelerator")
    accelerator.pynvml = None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return package
