"""What training needs of a competition: its configuration, the training samples, and who validates on what."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp import distributed
from comp.config import Config
from comp.data import arrays, folds
from comp.data.arrays import Index, TrainSplit
from comp.data.folds import EXCLUDED

FULL = -1  # instead of a fold's number: train on all images, validate on none


@dataclass(frozen=True)
class TrainingData:
    """A configuration, its training samples with what is known of them, and the fold in which each validates."""

    config: Config
    split: TrainSplit
    index: Index
    folds: np.ndarray  # int16 (N,); -1: excluded; -2: it trains in every fold

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the split that a fold trains on and those that it validates on, int64 each."""
        excluded = self.folds == EXCLUDED
        return np.flatnonzero(~excluded & (self.folds != fold)), np.flatnonzero(~excluded & (self.folds == fold))


def load_training_data(config: Config, input_folder: Path, runs_folder: Path) -> TrainingData:
    """Load and check a competition's training samples; deal its folds, or read them back. Raises Refused."""
    competition = config.competition
    with distributed.rank_zero_first():
        split = arrays.load_train(competition, input_folder)
        index = arrays.build_index(split, competition)
        dealt = f"{config.folds.count}-seed{config.folds.seed}" if split.folds is None else "given"
        path = runs_folder / competition.name / f"folds-{dealt}.csv"
        return TrainingData(config, split, index, folds.load_or_deal_folds(path, split, index, config))
