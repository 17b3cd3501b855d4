# Copyright (c) uniGradICON bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Training and fine-tuning by MONAI's engines: pairs, augmentation, schedules, checkpoints, handlers.

Which images are registered in an epoch is in ``pair_sampling``, how a step is computed in ``prepare_batch`` and
``pair_network``, validation in ``validation_metrics``. The objective is in ``losses``; there is no training loop
here, as MONAI's ``SupervisedTrainer`` is it. It imports all packages but ``apply``, ``evaluation`` and ``cohort``.
"""

from scripts.training.augmentation import RandPairAffineNoised, RandPairAxesd
from scripts.training.checks import check_training, choose_training_preprocessing
from scripts.training.distributed_samplers import EpochSampler, SharedSampler
from scripts.training.lists import load_records
from scripts.training.metrics_table import MetricsTable
from scripts.training.pair_dataset import PairDataset
from scripts.training.pair_network import PairNetwork
from scripts.training.prepare_batch import PairInferer, PrepareTrainingPair, terms_of, total_loss
from scripts.training.preprocessing import AddLandmarksd, PackImaged
from scripts.training.run_checkpoints import Resume, SaveBest, SaveLast, is_new_run
from scripts.training.run_logging import EpochFigures, PairPanels, TermsProgressBar, log_epoch, summary_writer
from scripts.training.schedules import create_schedule
from scripts.training.stop_handlers import StopOnNonFinite, run_training
from scripts.training.summary import print_training
from scripts.training.validation_metrics import (
    AddPairMetricsd,
    BroadcastBuffers,
    available_figures,
    choose_key_metric,
    is_better,
    mean_figures,
    never_best,
)

__all__ = [
    "AddLandmarksd",
    "AddPairMetricsd",
    "BroadcastBuffers",
    "EpochFigures",
    "EpochSampler",
    "MetricsTable",
    "PackImaged",
    "PairDataset",
    "PairInferer",
    "PairNetwork",
    "PairPanels",
    "PrepareTrainingPair",
    "RandPairAffineNoised",
    "RandPairAxesd",
    "Resume",
    "SaveBest",
    "SaveLast",
    "SharedSampler",
    "StopOnNonFinite",
    "TermsProgressBar",
    "available_figures",
    "check_training",
    "choose_key_metric",
    "choose_training_preprocessing",
    "create_schedule",
    "is_better",
    "is_new_run",
    "load_records",
    "log_epoch",
    "mean_figures",
    "never_best",
    "print_training",
    "run_training",
    "summary_writer",
    "terms_of",
    "total_loss",
]
