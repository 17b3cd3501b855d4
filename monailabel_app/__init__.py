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
"""MONAI Label app: a labelled study is registered to the open one, and its label comes back to be corrected.

Work flows one way: main (the app) -> infer_task, batch_task, train_task, strategy -> atlases, label_fusion, answers ->
registration -> the bundle's own configs; checked_datastore, request_options, train_request, label_info, label_numbers
and app_settings lie below. checked_endpoints lies before MONAI Label's routes.
docs/monailabel.md explains its use.
"""
