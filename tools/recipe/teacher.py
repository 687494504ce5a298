"""A teacher that is an exported program, of whatever network, run by Paddle Inference."""

from pathlib import Path

import numpy as np
import paddle
from paddle import inference


class ExportedTeacher:
    """Called with images float32 `[B, 3, S, S]`, normalised, returns logits `[B, num_classes]`.

    Paddle executes the program, so it must come from someone you trust; paddle.jit.load, which
    would unpickle a file beside it as well, is not used.

    Args:
        path: the program of paddle.jit.save, x.json (Paddle 3) or x.pdmodel (Paddle 2), with its
            weights beside it in x.pdiparams.
        num_classes, image_size: of the student.

    Raises:
        ValueError: for files that are missing or can't be run, and for outputs that are no
            logits of so many classes.
    """

    def __init__(self, path, num_classes, image_size):
        path = Path(path)
        for file in (path, path.with_suffix('.pdiparams')):
            if not file.is_file():
                raise ValueError(f'{file}: no such file of an exported teacher')
        settings = inference.Config(str(path), str(path.with_suffix('.pdiparams')))
        settings.disable_glog_info()
        if paddle.device.is_compiled_with_cuda():    # not run here
            settings.enable_use_gpu(256, paddle.distributed.ParallelEnv().device_id)
        try:
            self.predictor = inference.create_predictor(settings)
            answer = self(paddle.zeros([1, 3, image_size, image_size])).numpy()
        except Exception as error:    # whatever the program is
            raise ValueError(f'{path}: cannot be run on an image of {image_size} pixels; export '
                             'it for this size, with this version of Paddle') from error
        if answer.shape != (1, num_classes):
            raise ValueError(f'{path}: gives {list(answer.shape)} for one image instead of '
                             f'[1, {num_classes}], the logits of the student\'s classes')
        if (answer >= 0).all() and abs(answer.sum() - 1) < 1e-3:
            raise ValueError(f'{path}: gives probabilities, and a loss needs logits: export it '
                             'without softmax')

    def __call__(self, images):
        names = self.predictor.get_input_names(), self.predictor.get_output_names()
        self.predictor.get_input_handle(names[0][0]).copy_from_cpu(
            np.ascontiguousarray(images.numpy()))
        self.predictor.run()
        return paddle.to_tensor(self.predictor.get_output_handle(names[1][0]).copy_to_cpu())
