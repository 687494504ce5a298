"""Validates the shipped weights on lists of images; rank 0 prints the scores of each as JSON.

    python -m paddle.distributed.launch --nproc_per_node 2 tests/support/scores.py LIST...

Run by test_processes.py.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import build
from system import distributed
from training.log import say
from val import evaluate

distributed.init()
for path in sys.argv[1:]:
    config = build.load_config('config/lit_data.yaml', [
        f'DATA_PATH.VAL_DATASET_LABEL_PATH={path}', 'TRAIN.VAL_BATCH_SIZE=3',
        'TRAIN.VAL_NUM_WORKS=0'])
    network, transform, *_ = build.open_model(config, build.weights_path(config))
    scores = evaluate(network, build.eval_loader(config, transform))
    say(json.dumps({name: scores[name] for name in ('images', 'top1', 'top5')}))
