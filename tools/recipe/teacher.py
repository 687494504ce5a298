"""An exported program of any network as the teacher, run by Paddle Inference."""

import threading
from pathlib import Path

import numpy as np
import paddle
from paddle import inference


class ExportedTeacher:
    """Normalised images float32 `[B, 3, S, S]` to logits `[B, num_classes]`.

    Paddle executes the program: use only trusted files. paddle.jit.load is not used, as it would
    also unpickle a file.

    Args:
        path: the program of paddle.jit.save, x.json (Paddle 3) or x.pdmodel (Paddle 2), with its
            weights in x.pdiparams in the same folder.
        num_classes, image_size: of the student; image_size in pixels.

    Raises:
        ValueError: for missing files, for a program that can't be run, and for outputs other than
            logits of num_classes classes.
    """

    def __init__(self, path, num_classes, image_size):
        path = Path(path)
        for file in (path, path.with_suffix('.pdiparams')):
            if not file.is_file():
                raise ValueError(f'{file}: no such file of an exported teacher')
        self.lock = threading.Lock()    # training.threads calls it from several threads
        settings = inference.Config(str(path), str(path.with_suffix('.pdiparams')))
        settings.disable_glog_info()
        if paddle.device.is_compiled_with_cuda():    # not run here
            settings.enable_use_gpu(256, paddle.distributed.ParallelEnv().device_id)
        try:
            self.predictor = inference.create_predictor(settings)
            logits = self(paddle.zeros([1, 3, image_size, image_size])).numpy()
        except Exception as error:    # an unknown program can raise anything
            raise ValueError(f'{path}: cannot be run on an image of {image_size} pixels; export '
                             'it for this size, with this version of Paddle') from error
        if logits.shape != (1, num_classes):
            raise ValueError(f'{path}: gives {list(logits.shape)} for one image instead of '
                             f'[1, {num_classes}], the logits of the student\'s classes')
        if (logits >= 0).all() and abs(logits.sum() - 1) < 1e-3:
            raise ValueError(f'{path}: gives probabilities, and a loss needs logits: export it '
                             'without softmax')

    def __call__(self, images):
        with self.lock:
            return self.logits(images)

    def logits(self, images):
        names = self.predictor.get_input_names(), self.predictor.get_output_names()
        self.predictor.get_input_handle(names[0][0]).copy_from_cpu(
            np.ascontiguousarray(images.numpy()))
        self.predictor.run()
        return paddle.to_tensor(self.predictor.get_output_handle(names[1][0]).copy_to_cpu())
