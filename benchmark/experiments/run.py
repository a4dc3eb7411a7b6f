"""What a run is: every setting that decides its result, typed and validated, and how it is executed.

A run's id is a hash of what decides its result: data, method, training, evaluation, seed and, where it starts from
another run, that run's id; how it is executed (device, threads, chunks) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, model_validator

from benchmark.data.dataset import Protocol
from benchmark.settings import Settings, read_yaml, validated

FORMAT = 2  # of what a run's id covers; raise it when the same settings come to mean another result
CLICK_FORMAT = 3  # where clicks are predicted: histories in training reach back beyond their window since


class NegativeSettings(Settings):
    """sharing "in_batch" takes the last targets of the batch's windows for negatives, and count has no meaning."""

    count: int = Field(gt=0)
    sharing: Literal["shared", "per_position", "in_batch"] = "shared"
    mask: Literal["cosine", "id", "both", "none"] = "cosine"


class TemperatureSettings(Settings):
    initial: float = Field(0.07, gt=0)
    learnable: bool = True


class OptimizerSettings(Settings):
    """AdamW."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    betas: tuple[float, float] = (0.9, 0.999)


class ScheduleSettings(Settings):
    """The learning rate rises linearly over the first share of all steps, then stays or decays to 0 as a cosine."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)


class DenseAllActionSettings(Settings):
    """Events of a window, the newest, that are targets, and of its history, the newest, that predict them."""

    history_events: int = Field(10, gt=0)
    target_events: int = Field(1, gt=0)


class ClickSettings(Settings):
    """Clicks are predicted: the loss is generative_weight * L_gen + L_cls (paper section 3.3; lambda is unpublished).

    history: which earlier events of the user a method reads, "all" or those labelled positive; the newest
    sequence_length of them, in training and evaluation alike. cases_per_window: targets of a window whose labels one
    step predicts. validation_share, test_share: of all events, the latest, whose labels are predicted
    (`benchmark.data.click_cases`).
    """

    history: Literal["all", "positive"] = "positive"
    generative_weight: float = Field(0.0, ge=0)
    cases_per_window: int = Field(gt=0)
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    test_share: float = Field(0.1, gt=0, lt=0.5)


class TrainingSettings(Settings):
    """sequence_length: events a window's input may hold; a window has one more, its last target. windows: all that a
    user's training events are cut into, or the last or the first one alone.

    epochs: 0 trains nothing, and the weights that the run starts from are ranked. patience: epochs without a better
    validation score after which training stops. selection: "best" keeps the weights of the best epoch on validation,
    "last" those of the last (protocols without validation). user_share: of the users whose events are trained on; a
    smaller share is part of a larger one, and all users are ranked (figure 3). order: "shuffled" puts each user's
    training items in a random order, a control that tells whether a method uses it. click: for methods that predict
    clicks; selection_metric is then auc or group_auc. objective: "infonce" of the paper; "dense_all_action" of LEARN;
    "bce" and "bpr" of one negative a position, on scores that no temperature divides.
    """

    sequence_length: int = Field(gt=0)
    windows: Literal["all", "last", "first"] = "all"
    global_batch: int = Field(gt=0)
    negatives: NegativeSettings
    temperature: TemperatureSettings = TemperatureSettings()
    optimizer: OptimizerSettings
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: int = Field(ge=0)
    patience: int = Field(gt=0)
    selection: Literal["best", "last"] = "best"
    selection_metric: str = "ndcg@200"
    minimum_surviving_negatives: float = Field(0.5, ge=0)
    user_share: float = Field(1.0, gt=0, le=1)
    order: Literal["chronological", "shuffled"] = "chronological"
    click: ClickSettings | None = None
    objective: Literal["infonce", "dense_all_action", "bce", "bpr"] = "infonce"
    dense_all_action: DenseAllActionSettings = DenseAllActionSettings()


class EvaluationSettings(Settings):
    """mask: what of the history cannot be recommended. order: "shuffled" puts the events that the method reads in a
    random order. scores: "bf16" multiplies embeddings rounded to bfloat16, where many scores tie."""

    sequence_length: int = Field(gt=0)
    mask: Literal["whole", "truncated", "none"] = "whole"
    order: Literal["chronological", "shuffled"] = "chronological"
    scores: Literal["fp32", "bf16"] = "fp32"


EngineName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3"]
Offload = Literal["none", "optimizer", "all"]
ENGINES, OFFLOADS = get_args(EngineName), get_args(Offload)


class ExecutionSettings(Settings):
    """How a run is executed; its result does not depend on it (up to rounding).

    nodes: hosts. processes: on each of them, each with a GPU of its own unless device is cpu. threads: of each process.
    engine: "ddp" keeps the model whole in every process and sums the gradients; "zero1" spreads the optimizer's states
    over the processes, "zero2" the reduced gradients as well, "zero3" the weights too (DeepSpeed); "single" is for one
    process; "auto" takes the first that fits the memory. offload: what is kept in the host's memory: "optimizer", with
    one process (single) also the float32 weights and gradients that it updates, or "all" (zero3).
    item_chunk: most items embedded at once; null leaves it to the memory of a CUDA device. history_chunk: most
    sequences that the model reads at once. compile: have torch.compile make the kernels; "auto" does on CUDA.
    graphs: on CUDA, where kernels are compiled, one process runs its histories as a CUDA graph, which saves most of a
    small model's time.
    checkpoint_minutes: between two states that a stopped training continues from; each epoch ends with one as well.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    nodes: int = Field(1, gt=0)
    processes: int = Field(1, gt=0)
    threads: int = Field(1, gt=0)
    engine: EngineName = "auto"
    offload: Offload = "none"
    item_chunk: int | None = Field(None, gt=0)
    history_chunk: int | None = Field(None, gt=0)
    compile: Literal["auto", "on", "off"] = "auto"
    graphs: bool = True
    checkpoint_minutes: float = Field(10.0, gt=0)

    def compiles(self, device_type: str) -> bool:
        return self.compile == "on" or (self.compile == "auto" and device_type == "cuda")


class SourceRun(Settings):
    """A run that another one starts from; their folders lie side by side.

    parts: the parts of the model (first words of its weights' names, such as user_llm) whose trained weights are taken
    over; None takes them all. cached_items: items are not embedded anew but read from the source's exported embeddings.
    """

    run: str
    parts: list[str] | None = None
    cached_items: bool = False


class ReleasedCheckpoint(Settings):
    """The authors' checkpoint of a method, a file of theirs; sha256: checked where it is known."""

    path: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class Run(Settings):
    """Everything that decides one run's result, and how it is executed; written as run.yaml beside its results."""

    id: str
    method: str
    label: str
    variant: str = ""
    class_: str = Field(alias="class")
    dataset: str
    protocol: Protocol
    dataset_definition: dict[str, Any]
    model: dict[str, Any]
    text: dict[str, Any] | None
    images: dict[str, Any] | None = None
    training: TrainingSettings
    evaluation: EvaluationSettings
    seed: int = Field(ge=0)
    starts_from: SourceRun | None = None
    released: ReleasedCheckpoint | None = None
    execution: ExecutionSettings = ExecutionSettings()

    @model_validator(mode="after")
    def _combinations(self) -> Run:
        if self.protocol == "meta" and self.training.selection == "best":
            raise ValueError("protocol meta has no validation events: set training.selection to last")
        if self.starts_from is not None and self.released is not None:
            raise ValueError("starts_from and released: a run starts from one of them")
        whole = self.released is not None or (self.starts_from is not None and self.starts_from.parts is None)
        if not self.training.epochs and not whole:
            raise ValueError("training.epochs is 0: say in starts_from which run's weights, all of them, are ranked")
        objective, negatives = self.training.objective, self.training.negatives
        if objective in ("bce", "bpr") and (negatives.count, negatives.sharing) != (1, "per_position"):
            wanted = "{count: 1, sharing: per_position}"
            raise ValueError(f"training.objective {objective} takes one negative a position: set negatives to {wanted}")
        if objective == "dense_all_action" and negatives.sharing == "per_position":
            raise ValueError("objective dense_all_action shares its negatives: set sharing to in_batch or shared")
        return self

    def identity(self) -> str:
        """The hash of what decides the result. Settings at their defaults are left out, so that one that is added later
        changes no id; whoever changes what a default means raises FORMAT."""
        decisive = self.model_dump(
            mode="json", by_alias=True, exclude={"id", "label", "variant", "execution"}, exclude_defaults=True
        )
        decisive["precision"] = self.execution.precision
        form = FORMAT if self.training.click is None else CLICK_FORMAT
        text = json.dumps({"format": form, **decisive}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def load_run_file(path: Path) -> Run:
    """run.yaml as written beside a run's results."""
    return validated(Run, read_yaml(path), str(path))


def dump_run(run: Run) -> str:
    """run.yaml's text: every resolved setting."""
    return yaml.safe_dump(run.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
