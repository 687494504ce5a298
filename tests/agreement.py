"""Prints how far this implementation is from the official PyTorch one, per model.

    python tests/agreement.py

The same comparisons are asserted, with their tolerances, in test_golden.py.
"""

import conftest  # noqa: F401

# isort: split
import numpy as np
import paddle
from official import GOLDEN, image_batch
from test_golden import FORWARDS, build


def largest_difference(found, golden):
    return np.abs(found - golden).max()


def main():
    print('| model | pixels | logits | features | T2T tokens |')
    print('| --- | --- | --- | --- | --- |')
    for variant in FORWARDS:
        golden = np.load(GOLDEN / f'forward_{variant}.npz')
        network, size = build(variant)
        network.eval()
        images = image_batch(size)
        with paddle.no_grad():
            logits, features = network(images).numpy(), network.forward_features(images).numpy()
            tokens = network.tokens_to_token(images).numpy()
        differences = [
            largest_difference(logits, golden['logits']),
            largest_difference(features, golden['features']),
            max(largest_difference(tokens[:, 0], golden['token_first']),
                largest_difference(tokens[:, -1], golden['token_last']))]
        cells = ' | '.join(f'{difference:.1e}' for difference in differences)
        print(f'| {variant} | {size} | {cells} |', flush=True)


if __name__ == '__main__':
    main()
