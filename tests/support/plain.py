"""Networks so small that runs of them take a second; and tools/train.py and val.py with them.

`plain` has no dropout, so its results do not depend on random numbers; `small` is a T2T-ViT.

    python [tools/launch.py --nproc 2] tests/support/plain.py -c RECIPE -o KEY=VALUE ...
    python tests/support/plain.py val -c RECIPE --weights FILE

The environment variable SECONDS_A_STEP makes training wait before each step.
"""

import os
import sys
import time
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest

# isort: split
from paddle import nn

import zoo
from common import ImageClassifier
from system import command
from t2t import T2T_ViT

RECIPE = '''
BASE: {root}/config/lit_data.yaml
DATA_PATH: {{TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt", VAL_DATASET_PATH: lit_data/train,
            VAL_DATASET_LABEL_PATH: "{folder}/train.txt"}}
MODEL: {{NAME: plain, IMAGE_SIZE: 16}}
TRAIN: {{TRAIN_BATCH_SIZE: 4, TRAIN_NUM_WORKS: 0, VAL_NUM_WORKS: 0, VAL_BATCH_SIZE: 8, LOG_EVERY: 1,
        VISUALDL: false, VAL_EVERY: 1, RESUME: auto, SAVE_STEPS: 2,
        KEEP_CHECKPOINTS: 99, OUTPUT_DIR: "{folder}/run"}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1}}
'''


class Plain(ImageClassifier):
    """Images `[B, 3, S, S]` to logits, through eight numbers."""

    def __init__(self, num_classes=1000, img_size=16):
        super().__init__()
        self.img_size, self.num_features = img_size, 8
        self.hidden = nn.Linear(3 * img_size ** 2, self.num_features)
        self.reset_head(num_classes)

    def forward_prefix(self, x):
        return nn.functional.gelu(self.hidden(x.flatten(1))).unsqueeze(1)    # (B, 1, 8)


NETWORKS = {
    'plain': (Plain, {}),
    'small': (T2T_ViT, dict(tokens_type='performer', token_dim=16, embed_dim=32, depth=2,
                            num_heads=2, mlp_ratio=2.0)),
}


def write_recipe(folder, images=24):
    """A recipe for Plain on a few images of lit_data; returns its path."""
    lines = (conftest.ROOT / 'lit_data' / 'train.txt').read_text().splitlines()
    (folder / 'train.txt').write_text('\n'.join(lines[::len(lines) // images][:images]) + '\n')
    (folder / 'recipe.yaml').write_text(RECIPE.format(root=conftest.ROOT, folder=folder))
    return folder / 'recipe.yaml'


def slow_down(training, seconds):
    """Make a class like train.Training wait before each step."""
    step = training.step

    def slow_step(self, images, targets):
        time.sleep(seconds)
        return step(self, images, targets)

    training.step = slow_step


if __name__ == '__main__':
    import train
    import val
    zoo.MODELS.update(NETWORKS)
    if sys.argv[1] == 'val':
        command.run(val.main, sys.argv[2:])
    slow_down(train.Training, float(os.environ.get('SECONDS_A_STEP', 0)))
    command.run(train.main)
