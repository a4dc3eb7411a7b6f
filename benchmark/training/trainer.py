"""The training loop of every method that learns by gradient steps, and the one-off fit of those that do not."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from benchmark.data import randomness
from benchmark.data.batches import Negatives, TrainingBatches, packed, sampled_users
from benchmark.data.dataset import Dataset
from benchmark.data.randomness import Stream
from benchmark.errors import StoppedError, UserError
from benchmark.evaluation.metrics import metric_mean
from benchmark.evaluation.ranking import RankingSettings, rank_cases
from benchmark.experiments import Run, TrainingSettings
from benchmark.files import write_atomically
from benchmark.recommender import SelfTrainedRecommender, SequentialRecommender
from benchmark.training.checkpoint import load_state, load_weights, save_state, save_weights
from benchmark.training.click import click_validation_metrics, clicks_of
from benchmark.training.engine import Engine
from benchmark.training.objectives import objective_for
from benchmark.training.precision import Precision
from benchmark.training.stopping import StopRequest

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

_LOG_SECONDS = 15.0  # between two lines of progress within an epoch
VALIDATION_METRICS = ("recall@10", "ndcg@10", "recall@200", "ndcg@200")


@dataclass
class Progress:
    """Where a training run stands; part of the resumable state."""

    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    items_encoded: int = 0
    epoch_sums: dict[str, float] = field(default_factory=dict)  # of the steps since the last epoch ended
    record: list[dict[str, float]] = field(default_factory=list)


def learning_rate_factor(step: int, total: int, settings: TrainingSettings) -> float:
    """The learning rate of step (counted from 0) as a share of the highest; total: steps of the whole run."""
    warmup = total * settings.schedule.warmup
    if step < warmup:
        return step / max(1.0, warmup)
    if settings.schedule.kind == "constant":
        return 1.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup))))


class Trainer:
    """Trains one run in its folder, from wherever the folder's state says it stands, until it is asked to stop.

    model.safetensors (the weights that are ranked) and training.csv (a row an epoch) are written at the end;
    state.pt and best.safetensors are what a stopped run continues from.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        model: SequentialRecommender,
        folder: Path,
        device: torch.device,
        stop: StopRequest | None = None,
    ) -> None:
        self.stop = stop or StopRequest()
        settings = run.training
        self.clicks = clicks_of(run, dataset)
        dataset = self.clicks.dataset if self.clicks else dataset
        self.run, self.dataset, self.folder, self.device = run, dataset, folder, device
        self.model = model.to(device)
        self.objective = objective_for(settings).to(device)
        parameters = [p for p in (*model.parameters(), *self.objective.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.optimizer.learning_rate,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
            fused=device.type == "cuda",
        )
        self.engine = Engine(
            self.model,
            self.objective,
            self.optimizer,
            device=device,
            bf16=run.execution.precision == "bf16",
            item_chunk=run.execution.item_chunk,
            history_chunk=run.execution.history_chunk,
            compiled=run.execution.compiles(device.type),
        )
        self.batches = TrainingBatches(
            dataset,
            sequence_length=settings.sequence_length,
            windows=settings.windows,
            global_batch=settings.global_batch,
            negatives=Negatives(settings.negatives.count, settings.negatives.sharing),
            seed=run.seed,
            user_share=settings.user_share,
            order=settings.order,
            click_cases=settings.click.cases_per_window if settings.click else 0,
        )
        if not len(self.batches.starts):
            raise UserError(f"data set {run.dataset} has no user with two training events, so nothing can be trained")
        self.progress, self._last_log = Progress(), time.monotonic()
        self.total_steps = settings.epochs * self.batches.steps_per_epoch

    @property
    def finished(self) -> bool:
        done = self.progress.step // self.batches.steps_per_epoch
        out_of_patience = (
            self.run.training.selection == "best"
            and done - self.progress.best_epoch >= self.run.training.patience
            and self.progress.step % self.batches.steps_per_epoch == 0
        )
        return self.progress.step >= self.total_steps or out_of_patience

    def train(self) -> Progress:
        """Train to the end and leave the weights to be ranked in model.safetensors.

        Raises StoppedError, with the state saved, after the step in which the request to stop came.
        """
        self._resume()
        last_save = time.monotonic()
        while not self.finished:
            if self.stop.by:
                self._save()
                raise StoppedError(
                    f"stopped by {self.stop.by} after step {self.progress.step} of {self.total_steps}; "
                    "the same command continues from there"
                )
            self._train_step()
            if self.progress.step % self.batches.steps_per_epoch == 0:
                self._end_epoch()
                self._save()
                last_save = time.monotonic()
            elif time.monotonic() - last_save > 60 * self.run.execution.checkpoint_minutes:
                self._save()
                last_save = time.monotonic()
        if self.run.training.selection == "best":
            self.model.load_state_dict(load_weights(self.folder / "best.safetensors"))
        self._write_record()
        save_weights(self.folder / "model.safetensors", self.model.state_dict())
        for leftover in ("best.safetensors", "state.pt", "state.pt.previous"):
            (self.folder / leftover).unlink(missing_ok=True)
        return self.progress

    def _train_step(self) -> None:
        began, step = time.perf_counter(), self.progress.step
        factor = learning_rate_factor(step, self.total_steps, self.run.training)
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.training.optimizer.learning_rate * factor
        torch.manual_seed(randomness.key(self.run.seed, Stream.DROPOUT, step))
        self.model.train()
        figures = self.engine.step(self.batches.batch(step, self.device))
        names = ["loss", *figures.figures]
        values = torch.stack([figures.loss, *figures.figures.values()]).tolist()  # the one wait for the device
        found = dict(zip(names, values, strict=True))
        loss = found["loss"]
        self._check(step, loss, found.get("surviving_negatives"))
        progress = self.progress
        progress.step += 1
        for name, value in found.items():
            progress.epoch_sums[name] = progress.epoch_sums.get(name, 0.0) + value
        progress.items_encoded += figures.distinct_items
        progress.seconds += time.perf_counter() - began
        if time.monotonic() - self._last_log > _LOG_SECONDS:
            self._last_log = time.monotonic()
            left = progress.seconds / progress.step * (self.total_steps - progress.step)
            log.info(
                "step %d of %d, loss %.4f, %.0f items/s, at most %s left",
                progress.step, self.total_steps, loss, progress.items_encoded / progress.seconds,
                time.strftime("%H:%M:%S", time.gmtime(left)),
            )  # fmt: skip

    def _check(self, step: int, loss: float, surviving: float | None) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"run {self.run.id}: the loss of step {step} is {loss}; lower training.optimizer.learning_rate"
            )
        if surviving is not None and surviving < self.run.training.minimum_surviving_negatives:
            raise UserError(
                f"run {self.run.id}: at step {step} only {surviving:.2f} negatives a position survive the mask "
                f"{self.run.training.negatives.mask!r}, so the item embeddings have collapsed and the loss is empty; "
                "set training.negatives.mask to id, or lower training.optimizer.learning_rate"
            )

    def _end_epoch(self) -> None:
        progress, steps = self.progress, self.batches.steps_per_epoch
        epoch = progress.step // steps
        row = {
            "epoch": float(epoch),
            "step": float(progress.step),
            **{name: total / steps for name, total in progress.epoch_sums.items()},
            **self.objective.state_figures(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        progress.epoch_sums = {}
        if self.run.training.selection == "best":
            began = time.perf_counter()
            if self.clicks:
                scores = click_validation_metrics(self.run, self.clicks, self.model, self.device)
            else:
                scores = validation_metrics(self.run, self.dataset, self.model, self.device, self.engine.precision)
            row |= scores
            progress.seconds += time.perf_counter() - began
            score = scores[self.run.training.selection_metric]
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, epoch
                save_weights(self.folder / "best.safetensors", self.model.state_dict())
            log.info("epoch %d: loss %.4f, validation %s %.4f (best %.4f, epoch %d)", epoch, row["loss"],
                     self.run.training.selection_metric, score, progress.best_score, progress.best_epoch)  # fmt: skip
        else:
            log.info("epoch %d: loss %.4f", epoch, row["loss"])
        row["seconds"] = progress.seconds
        progress.record.append(row)

    def _save(self) -> None:
        save_state(
            self.folder / "state.pt",
            {
                "identity": self.run.identity(),
                "split": self.dataset.card.split_sha256,
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def _resume(self) -> None:
        state = load_state(self.folder / "state.pt", log.warning)
        if state is None:
            return
        if (state["identity"], state["split"]) != (self.run.identity(), self.dataset.card.split_sha256):
            raise UserError(
                f"{self.folder}/state.pt belongs to other settings or data; delete the folder to start anew"
            )
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        log.info("continues after step %d of %d", self.progress.step, self.total_steps)

    def _write_record(self) -> None:
        write_record(self.folder / "training.csv", self.progress.record)


def ranking_settings(run: Run) -> RankingSettings:
    """How a run's users are ranked, for validation and test alike."""
    shuffled = run.evaluation.order == "shuffled"
    return RankingSettings(
        sequence_length=run.evaluation.sequence_length,
        mask=run.evaluation.mask,
        shuffle_key=randomness.key(run.seed, Stream.HISTORY_ORDER) if shuffled else None,
        scores=run.evaluation.scores,
    )


def validation_metrics(
    run: Run, dataset: Dataset, model: SequentialRecommender, device: torch.device, precision: Precision
) -> dict[str, float]:
    """The metrics of the validation targets, as fractions."""
    cases, settings = dataset.cases("validation"), ranking_settings(run)
    ranks = rank_cases(model, dataset, cases, settings, device, precision=precision).rank
    names = dict.fromkeys((*VALIDATION_METRICS, run.training.selection_metric))
    return {name: metric_mean(ranks, name) for name in names}


def fit(run: Run, dataset: Dataset, model: SelfTrainedRecommender, folder: Path) -> dict[str, float]:
    """Let a self-trained method fit itself, and leave its weights in model.safetensors."""
    lengths, validation = (np.asarray(dataset.split[:, i], dtype=np.int64) for i in (0, 1))
    has_validation = bool((validation >= 0).any())
    users = np.flatnonzero((lengths > 0) & (validation >= 0) if has_validation else lengths > 0)
    users = users[sampled_users(len(lengths), run.training.user_share)[users]]
    starts = np.asarray(dataset.offsets[:-1])[users]
    shuffle_key = randomness.key(run.seed, Stream.HISTORY_ORDER) if run.training.order == "shuffled" else None
    targets = dataset.items[starts + validation[users]].astype(np.int64) if has_validation else None
    figures = model.fit(
        packed(dataset, starts, lengths[users], shuffle_key),
        None if targets is None else torch.from_numpy(targets),
        run.seed,
    )
    write_record(folder / "training.csv", [figures])
    save_weights(folder / "model.safetensors", model.state_dict())
    return figures


def write_record(path: Path, rows: list[dict[str, float]]) -> None:
    """training.csv: a row an evaluation."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue()))


def _plain(value: float) -> Any:
    return int(value) if float(value).is_integer() else value


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """Build a module whose initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(randomness.key(seed, Stream.PARAMETERS))
        return build()
