"""Prints how far this implementation is from the official PyTorch ones, per model.

    python tests/agreement.py

The same comparisons are asserted, with their tolerances, in test_golden.py.
"""

import conftest  # noqa: F401

# isort: split
import numpy as np
import paddle
from support.official import FORWARDS, GOLDEN, golden_network, image_batch


def largest_difference(found, golden):
    return np.abs(found - golden).max()


def main():
    print('| model | pixels | logits | features | T2T tokens |')
    print('| --- | --- | --- | --- | --- |')
    for variant in FORWARDS:
        golden = np.load(GOLDEN / f'forward_{variant}.npz')
        network, size = golden_network(variant)
        network.eval()
        images = image_batch(size)
        with paddle.no_grad():
            found = dict(logits=network(images).numpy(),
                         features=network.forward_features(images).numpy())
            cells = [f'{largest_difference(found[name], golden[name]):.1e}' for name in found]
            if 'token_first' in golden:
                tokens = network.tokens_to_token(images).numpy()
                difference = max(largest_difference(tokens[:, 0], golden['token_first']),
                                 largest_difference(tokens[:, -1], golden['token_last']))
                cells.append(f'{difference:.1e}')
            else:
                cells.append('')
        print(f'| {variant} | {size} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
