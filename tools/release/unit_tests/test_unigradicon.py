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
"""Unit tests in the form of the model zoo (its ci/unit_tests): run from a folder that holds models/unigradicon."""

import json
import os
import shutil
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE_ROOT = "models/unigradicon"
QUICK = {"field::levels": {"default": [[16, 10]]}, "progress": False, "device": "cpu"}


def workflow(workflow_type, configs, **override):
    return ConfigWorkflow(
        workflow_type=workflow_type,
        config_file=[os.path.join(BUNDLE_ROOT, "configs", name) for name in configs],
        logging_file=os.path.join(BUNDLE_ROOT, "configs/logging.conf"),
        meta_file=os.path.join(BUNDLE_ROOT, "configs/metadata.json"),
        bundle_root=BUNDLE_ROOT,
        **override,
    )


class TestUniGradICON(unittest.TestCase):
    def setUp(self):
        sys.path = [BUNDLE_ROOT, *sys.path]
        self.dataset_dir = tempfile.mkdtemp()
        self.images, self.labels = [], []
        random = np.random.default_rng(0)
        for number in range(4):
            image = random.normal(size=(40, 44, 42)).cumsum(0).cumsum(1).cumsum(2).astype(np.float32)
            for kind, values, names in (
                ("image", image, self.images),
                ("label", (image > np.median(image)).astype(np.uint8), self.labels),
            ):
                names.append(os.path.join(self.dataset_dir, f"{kind}_{number}.nii.gz"))
                nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 2, 1])), names[-1])

    def tearDown(self):
        shutil.rmtree(self.dataset_dir)
        sys.path.remove(BUNDLE_ROOT)

    def check(self, made):
        made.initialize()
        self.assertFalse(made.check_properties())
        made.run()
        made.finalize()

    def test_infer_config(self):
        pair = {"fixed": self.images[0], "moving": self.images[1]}
        for name, options in (("field", {}), ("off", {"optimization": "off"}), ("none", {"model": "none"})):
            out = os.path.join(self.dataset_dir, name)
            self.check(workflow("infer", ["inference.yaml"], **pair, **QUICK, **options, output_dir=out))
            for written in ("forward_transform.h5", "inverse_transform.h5", "warped_moving.nii.gz"):
                self.assertTrue(os.path.isfile(os.path.join(out, written)), written)
            with open(os.path.join(out, "report.json")) as file:
                similarity = json.load(file)["similarity"]
            self.assertLess(similarity["after"], similarity["before"])

    def test_train_and_infer_config(self):
        subjects = [
            {"subject": f"s{number}", "image": image, "label": label, "modality": "mr"}
            for number, (image, label) in enumerate(zip(self.images, self.labels))  # noqa: B905
        ]
        lists = {}
        for part, entries in (("train", subjects[:2]), ("val", subjects[2:])):
            lists[f"{part}_datalist"] = os.path.join(self.dataset_dir, f"{part}.json")
            with open(lists[f"{part}_datalist"], "w") as file:
                json.dump(entries, file)
        out = os.path.join(self.dataset_dir, "run")
        small = {"max_epochs": 1, "pairs_per_epoch": 2, "device": "cpu", "progress": False}
        self.check(workflow("train", ["train.yaml", "finetune.yaml"], **lists, **small, ckpt_dir=out))
        weights = os.path.join(out, "last.pt")
        self.assertTrue(os.path.isfile(weights))
        pair = {"fixed": self.images[0], "moving": self.images[1], "ckpt_path": weights}
        self.check(workflow("infer", ["inference.yaml"], **pair, **QUICK, output_dir=os.path.join(out, "pair")))


if __name__ == "__main__":
    unittest.main()
