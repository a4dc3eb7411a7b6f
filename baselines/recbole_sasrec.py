"""SASRec of RecBole 1.2.1: its own module, trained by its own trainer, and ranked like every other method.

An independent implementation and so a cross-check of `baselines.sasrec`, not the same baseline: softmax over the whole
catalogue on raw dot products, one target a training row (every prefix of every history is a row), learned positions
counted from the oldest event of the window, BERT's encoder (LayerNorm after each block, GELU). RecBole chooses the
best epoch by MRR@10 on the validation targets, the history not masked, and scores are dot products.

Sources: W.-C. Kang and J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; L. Xu et al., "Towards a
More User-Friendly and Easy-to-Use Benchmark Library for Recommender Systems", SIGIR 2023 (RecBole 1.2);
recbole/model/sequential_recommender/sasrec.py, recbole/properties/model/SASRec.yaml.

As in RecBole, the padding item is a class of the training softmax and no candidate in the ranking.

Deviations from RecBole's own procedure:
- RecBole is given training events and validation targets only; test items never reach it.
- An event's timestamp is its position in its sequence. RecBole keeps timestamps in float32, where seconds since 1970
  are 64 apart: unless they are normalised first, close events fall back to the order of the file.
- Items without any training event have a row too; RecBole's k-core filter is off.
- A user with a single training event takes no part in validation: RecBole would train on that user's target.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from baselines.recbole_compatibility import recbole_compatible
from benchmark.attention import pad_packed, padding, unpad
from benchmark.recommender import Catalogue, PackedSequences, SelfTrainedRecommender

# One of RecBole's models turns autograd's anomaly mode on for the whole process when the package is imported.
with torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()):
    from recbole.config import Config
    from recbole.data import data_preparation
    from recbole.data.dataset import SequentialDataset
    from recbole.model.sequential_recommender.sasrec import SASRec
    from recbole.trainer.trainer import Trainer
    from recbole.utils import init_seed

log = logging.getLogger(__name__)

DATASET = "sequences"  # any name that RecBole does not know
VALIDATION_METRIC = "mrr@10"


@dataclass(frozen=True)
class RecBoleSASRecSettings:
    """RecBole's defaults.

    width: of embeddings and hidden states; inner_width: of the feed-forward layers; dropout: of embeddings and
    hidden states; batch_size: rows, each one target; epochs: at most; stopping_patience: training stops after more
    than this many epochs in a row with a lower validation MRR@10.
    """

    layers: int = 2
    heads: int = 2
    width: int = 64
    inner_width: int = 256
    dropout: float = 0.5
    attention_dropout: float = 0.5
    learning_rate: float = 1e-3
    batch_size: int = 2048
    epochs: int = 300
    stopping_patience: int = 10


@dataclass(frozen=True)
class _ItemCount:
    """All that RecBole's SASRec asks of a data set: the number of ids of a field, padding included."""

    items: int

    def num(self, field: str) -> int:
        return self.items + 1


class RecBoleSASRec(SelfTrainedRecommender):
    """RecBole's SASRec. Its id 0 is padding; catalogue index i is row i + 1 of the item embedding."""

    Settings = RecBoleSASRecSettings
    similarity = "dot"

    def __init__(self, catalogue: Catalogue, sequence_length: int, settings: RecBoleSASRecSettings) -> None:
        super().__init__()
        self.item_count, self.sequence_length, self.settings = catalogue.size, sequence_length, settings
        fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_"}
        config = {**fields, "ITEM_LIST_LENGTH_FIELD": "item_length", "device": "cpu", **self._architecture()}
        self.sasrec = SASRec(config, _ItemCount(catalogue.size))

    def embed_items(self, items: Tensor) -> Tensor:
        rows: Tensor = self.sasrec.item_embedding(items + 1)
        return rows

    def embed_histories(self, sequences: PackedSequences, items: Tensor) -> Tensor:
        model, length = self.sasrec, sequences.max_length
        layout = padding(sequences.offsets, items.shape[0], length)
        positions = torch.arange(length, device=items.device)
        hidden = pad_packed(items, layout) + model.position_embedding(positions)
        hidden = model.dropout(model.LayerNorm(hidden))
        ids = (positions < sequences.lengths[:, None]).long()  # the mask asks only which ids are not padding
        encoded = model.trm_encoder(hidden, model.get_attention_mask(ids), output_all_encoded_layers=False)
        return unpad(encoded[-1], layout)

    def fit(self, training: PackedSequences, validation_targets: Tensor | None, seed: int) -> dict[str, float]:
        """Train with RecBole from newly drawn weights, which depend on the seed alone.

        Returns epochs trained, best_epoch (counted from 1; the last one without validation), steps, and the
        validation_mrr@10 of the best epoch, as RecBole rounds it.
        """
        if int(training.lengths.max()) < 2:
            raise ValueError("RecBole's SASRec learns from pairs of events, and no user has two training events")
        device = self.sasrec.item_embedding.weight.device
        with tempfile.TemporaryDirectory(prefix="recbole-") as name, recbole_compatible(device):
            write_atomic_files(Path(name) / DATASET, training, validation_targets, self.item_count)
            config = self.recbole_config(Path(name), validation_targets is not None, seed, device)
            init_seed(config["seed"], reproducibility=True)
            dataset = SequentialDataset(config)
            training_rows, validation_rows, _ = data_preparation(config, dataset)
            init_seed(config["seed"], reproducibility=True)  # twice, as recbole.quick_start does
            model = SASRec(config, dataset).to(device)
            weights, figures = train(config, model, training_rows, validation_rows)
        weights["item_embedding.weight"] = weights["item_embedding.weight"][recbole_ids(dataset, self.item_count)]
        self.sasrec.load_state_dict(weights)
        return figures

    def recbole_config(self, folder: Path, validation: bool, seed: int, device: torch.device | str) -> Config:
        """RecBole's configuration for files written by `write_atomic_files` into folder / DATASET."""
        settings = self.settings
        options = {
            **self._architecture(),
            "train_neg_sample_args": None,  # full softmax
            "learning_rate": settings.learning_rate,
            "train_batch_size": settings.batch_size,
            "epochs": settings.epochs,
            "stopping_step": settings.stopping_patience,
            "valid_metric": VALIDATION_METRIC.upper(),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
            # The last event of a user is the validation target; without validation every event is for training.
            "eval_args": {
                "split": {"LS": "valid_only"} if validation else {"RS": [1.0, 0.0, 0.0]},
                "group_by": "user" if validation else "none",
                "order": "TO",
                "mode": "full",
            },
            "gpu_id": "",  # RecBole may not hide GPUs from the process; the device is set below
            "seed": seed % 2**32,  # numpy takes no larger one
            "show_progress": False,
            "save_dataset": False,
            "save_dataloaders": False,  # saving them would change the random stream
        }
        config = Config(model=SASRec, dataset=DATASET, config_dict=options)
        config["data_path"] = str(folder / DATASET)
        config["checkpoint_dir"] = str(folder / "saved")
        config["device"] = torch.device(device)
        config["use_gpu"] = config["device"].type == "cuda"
        return config

    def _architecture(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "n_layers": settings.layers,
            "n_heads": settings.heads,
            "hidden_size": settings.width,
            "inner_size": settings.inner_width,
            "hidden_dropout_prob": settings.dropout,
            "attn_dropout_prob": settings.attention_dropout,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.02,
            "loss_type": "CE",
            "MAX_ITEM_LIST_LENGTH": self.sequence_length,
        }


def write_atomic_files(
    folder: Path, training: PackedSequences, validation_targets: Tensor | None, item_count: int
) -> None:
    """Write RecBole's input: one row an event, in order, the validation target last, and the list of all items.

    User and item tokens are the numbers of sequence and item; timestamps are positions.
    """
    lengths = training.lengths.cpu().numpy()
    user = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(user)) - np.repeat(lengths.cumsum() - lengths, lengths)
    events = pd.DataFrame({"user_id:token": user, "item_id:token": training.items.cpu(), "timestamp:float": position})
    if validation_targets is not None:
        held_out = np.flatnonzero(lengths >= 2)  # after a single event RecBole puts the target into training
        targets = validation_targets.cpu().numpy()[held_out]
        last = pd.DataFrame(dict(zip(events.columns, (held_out, targets, lengths[held_out]), strict=True)))
        events = pd.concat([events, last]).sort_values(["user_id:token", "timestamp:float"], kind="stable")
    folder.mkdir(parents=True)
    events.to_csv(folder / f"{DATASET}.inter", sep="\t", index=False)
    pd.DataFrame({"item_id:token": np.arange(item_count)}).to_csv(folder / f"{DATASET}.item", sep="\t", index=False)


def train(config: Config, model: SASRec, training: Any, validation: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Run RecBole's trainer on its data loaders; returns the weights of the best epoch, and figures as `fit` does."""
    trainer = Trainer(config, model)
    best: dict[str, Any] = {}

    def keep_best(epoch: int, score: float) -> None:
        if trainer.cur_step == 0:  # epochs since the best one
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            best.update(weights=weights, epoch=epoch + 1, score=score)

    trainer.fit(training, validation, verbose=False, saved=False, callback_fn=keep_best)
    epochs = len(trainer.train_loss_dict)
    figures = {"epochs": float(epochs), "steps": float(epochs * len(training))}
    if not best:  # no validation
        return model.state_dict(), {**figures, "best_epoch": float(epochs)}
    figures |= {"best_epoch": float(best["epoch"]), f"validation_{VALIDATION_METRIC}": float(best["score"])}
    return best["weights"], figures


def recbole_ids(dataset: SequentialDataset, item_count: int) -> Tensor:
    """(item_count + 1,) RecBole's internal id of the padding item and of items 0, 1, ...: it numbers them as met."""
    ids = dataset.field2token_id["item_id"]
    return torch.tensor([0, *(ids[str(item)] for item in range(item_count))])
