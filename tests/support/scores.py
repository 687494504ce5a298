"""Validates the shipped weights on lists of images; rank 0 prints the scores of each as JSON.

Also printed are path, label and best classes of each image from a predictions file.

    python tools/launch.py tests/support/scores.py --nproc 2 -- LIST...

Run by test_processes.py.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import build
from deploy.predictions import Predictions
from system import command, distributed
from training.log import say
from val import evaluate

distributed.init()
for path in sys.argv[1:]:
    config = build.load_config('config/lit_data.yaml', [
        f'DATA_PATH.VAL_DATASET_LABEL_PATH={path}', 'TRAIN.VAL_BATCH_SIZE=3',
        'TRAIN.VAL_NUM_WORKS=0'])
    network, transform, *_ = build.open_model(config, build.weights_path(config))
    loader, predictions = build.eval_loader(config, transform), Predictions()
    scores = evaluate(network, loader, predictions=predictions)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'predictions.jsonl')
        predictions.write(str(file), loader.dataset.samples, loader.dataset.root)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    say(json.dumps({**{name: scores[name] for name in ('images', 'top1', 'top5')}, 'predictions': [
        (line['path'], line['label'], line['top'][:2]) for line in lines]}))
command.run(lambda _: 0)    # ends as the project's commands do
