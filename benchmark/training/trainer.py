"""The training loop of every method that learns by gradient steps, and the one-off fit of those that do not."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from benchmark.data import randomness
from benchmark.data.batches import Negatives, TrainingBatch, TrainingBatches, packed, sampled_users
from benchmark.data.dataset import Dataset
from benchmark.data.randomness import Stream
from benchmark.errors import StoppedError, UserError, finite_outputs
from benchmark.evaluation.metrics import metric_mean
from benchmark.evaluation.ranking import RankingSettings, rank_cases
from benchmark.experiments import Run
from benchmark.processes import Processes
from benchmark.recommender import SelfTrainedRecommender, SequentialRecommender
from benchmark.training.checkpoint import copy_weights, save_weights
from benchmark.training.click import check_click_selection, click_validation_metrics, clicks_of
from benchmark.training.engines import make_engine
from benchmark.training.objectives import objective_for
from benchmark.training.precision import Precision
from benchmark.training.progress import Progress, learning_rate_factor, write_record
from benchmark.training.state import States, StoredState, take_learned
from benchmark.training.stopping import StopRequest

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

_LOG_SECONDS = 15.0  # between two lines of progress within an epoch
VALIDATION_METRICS = ("recall@10", "ndcg@10", "recall@200", "ndcg@200")


class Trainer:
    """Trains one run in its folder, from wherever the folder's state says it stands, until it is asked to stop.

    model.safetensors (the weights that are ranked) and training.csv (a row an epoch) are written at the end; the folder
    state and the best epoch's weights are what a stopped run continues from, until `clear` removes them. Every process
    of the job has a trainer; the first one writes.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        model: SequentialRecommender,
        folder: Path,
        device: torch.device,
        stop: StopRequest | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.stop, self.processes = stop or StopRequest(), processes or Processes()
        settings = run.training
        self.clicks = clicks_of(run, dataset)
        dataset = self.clicks.dataset if self.clicks else dataset
        self.run, self.dataset, self.folder, self.device = run, dataset, folder, device
        if settings.selection == "best":
            self._check_selection()
        self.model, self.objective = model, objective_for(settings)  # the engine moves them
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
            click_history=settings.click.history if settings.click else "all",
            compiled=run.execution.compiles(device.type),
        )
        if not len(self.batches.starts):
            raise UserError(f"data set {run.dataset} has no user with two training events, so nothing can be trained")
        self.total_steps = settings.epochs * self.batches.steps_per_epoch
        self.progress, self._last_log = Progress(), time.monotonic()
        self._next: TrainingBatch | None = None
        self.states = States(folder, self.processes)
        with ExitStack() as files:
            stored = self._stored(files)
            if stored is not None:  # before the engine spreads the weights
                take_learned(self.model, self.objective, stored)
            self.engine = make_engine(
                self.model, self.objective, settings.optimizer, run.execution, device, self.processes,
                settings.sequence_length,
            )  # fmt: skip
            if stored is not None:
                self.engine.restore(stored)

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
        last_save = time.monotonic()
        while not self.finished:
            self._train_step()
            ended = self.progress.step % self.batches.steps_per_epoch == 0
            if ended:
                self._end_epoch()
            late = time.monotonic() - last_save > 60 * self.run.execution.checkpoint_minutes
            stop, due = self.processes.most([int(self.stop.by is not None), int(late)])
            if ended or stop or due:
                self._save()
                last_save = time.monotonic()
            if stop and not self.finished:
                raise StoppedError(
                    f"stopped by {self.stop.by or 'a signal to another process'} after step {self.progress.step} of "
                    f"{self.total_steps}; the same command continues from there"
                )
        self._finish()
        return self.progress

    def clear(self) -> None:
        """Remove what a stopped training would continue from."""
        self.states.remove()
        if self.processes.first:
            self._remove_weights_but(None)

    def _finish(self) -> None:
        path = self.folder / "model.safetensors"
        weights = None if self.run.training.selection == "best" else self.engine.weights()
        if weights is not None:
            save_weights(path, weights)
        elif self.run.training.selection == "best" and self.processes.first:
            copy_weights(self._best_weights(), path)
        if self.processes.first:
            write_record(self.folder / "training.csv", self.progress.record)

    def _best_weights(self) -> Path:
        """The file of the best epoch's weights. Each has its own, so that a state that is continued from finds the
        weights that it speaks of, even if a later epoch was better and its state was never saved."""
        return self.folder / f"best-{self.progress.best_epoch}.safetensors"

    def _remove_weights_but(self, kept: Path | None) -> None:
        for path in self.folder.glob("best-*.safetensors"):
            if path != kept:
                path.unlink()

    def _train_step(self) -> None:
        began, step = time.perf_counter(), self.progress.step
        factor = learning_rate_factor(step, self.total_steps, self.run.training)
        self._rate = self.run.training.optimizer.learning_rate * factor
        self.engine.set_learning_rate(self._rate)
        turn = step * self.processes.count + self.processes.rank  # each process has dropout of its own
        self.model.train()
        batch = self._next if self._next is not None else self.batches.batch(step, self.device)
        figures = self.engine.step(batch, seed=randomness.key(self.run.seed, Stream.DROPOUT, turn))
        # Drawn while the device works on this one.
        self._next = self.batches.batch(step + 1, self.device) if step + 1 < self.total_steps else None
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
            "learning_rate": self._rate,
        }
        progress.epoch_sums = {}
        if self.run.training.selection == "best":
            began = time.perf_counter()
            with finite_outputs(self.run.id):
                scores = self._validation_metrics()
            agreed = torch.tensor(list(scores.values()), dtype=torch.float64)
            self.processes.send_from_first([agreed])  # what ends the training must not differ in a last bit
            scores = dict(zip(scores, agreed.tolist(), strict=True))
            row |= scores
            progress.seconds += time.perf_counter() - began
            score = scores[self.run.training.selection_metric]
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, epoch
                weights = self.engine.weights()
                if weights is not None:
                    save_weights(self._best_weights(), weights)
            log.info("epoch %d: loss %.4f, validation %s %.4f (best %.4f, epoch %d)", epoch, row["loss"],
                     self.run.training.selection_metric, score, progress.best_score, progress.best_epoch)  # fmt: skip
        else:
            log.info("epoch %d: loss %.4f", epoch, row["loss"])
        row["seconds"] = progress.seconds
        progress.record.append(row)

    def _check_selection(self) -> None:
        if self.clicks:
            check_click_selection(self.run, self.clicks)
        elif not len(self.dataset.cases("validation")):
            raise UserError(
                f"run {self.run.id}: data set {self.run.dataset} has no user with a validation target, so no epoch can "
                "be the best; set training.selection to last"
            )

    def _validation_metrics(self) -> dict[str, float]:
        if self.clicks:
            return click_validation_metrics(self.run, self.clicks, self.model, self.device, self.engine.precision)
        return validation_metrics(
            self.run, self.dataset, self.model, self.device, self.processes, self.engine.precision
        )

    def _save(self) -> None:
        self.states.save(
            self.progress.step,
            {
                "identity": self.run.identity(),
                "split": self.dataset.card.split_sha256,
                "processes": self.processes.count,
                "progress": asdict(self.progress),
            },
            self.engine.fragments(),
        )
        if self.processes.first:
            self._remove_weights_but(self._best_weights())

    def _stored(self, files: ExitStack) -> StoredState | None:
        """What a stopped training of this run has left, and `progress` from it."""
        stored = self.states.newest(log.warning, files)
        if stored is None:
            return None
        if (stored.notes["identity"], stored.notes["split"]) != (self.run.identity(), self.dataset.card.split_sha256):
            raise UserError(f"{self.folder}/state belongs to other settings or data; delete the folder to start anew")
        self.progress = Progress(**stored.notes["progress"])
        log.info("continues after step %d of %d", self.progress.step, self.total_steps)
        return stored


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
    run: Run,
    dataset: Dataset,
    model: SequentialRecommender,
    device: torch.device,
    processes: Processes,
    precision: Precision,
) -> dict[str, float]:
    """The metrics of the validation targets, as fractions."""
    cases, settings = dataset.cases("validation"), ranking_settings(run)
    ranks = rank_cases(model, dataset, cases, settings, device, processes=processes, precision=precision).rank
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


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """Build a module whose initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(randomness.key(seed, Stream.PARAMETERS))
        return build()
