"""A network as a graph for Paddle Inference while it is validated, checked against the network."""

import tempfile
import time

import paddle

from deploy import engines, exports, old_graph
from deploy.simplify import simplified
from system import distributed

# Making a graph takes about as long as the network itself takes for this number of pixels.
FEWEST_PIXELS = 100 * 224 ** 2
CHECKED_IMAGES = 8    # by all processes together


def graph_pays(images, image_size):
    """Whether a graph saves time, that of making it included, on square images of a size."""
    return paddle.device.get_device() == 'cpu' and images * image_size ** 2 >= FEWEST_PIXELS


def fast_network(network, description, say):
    """Make a FastNetwork; where the network cannot be a graph, return the network itself.

    Args:
        network: maps normalised images `[B, 3, S, S]` to logits.
        description: its engines.Description.
        say: called with one line for the log that names what computes.
    """
    started = time.perf_counter()
    network.eval()
    problem = ''
    try:
        with tempfile.TemporaryDirectory(prefix='t2t_vit-') as folder:
            exports.write_graph(exports.Deployed(simplified(network)), description, folder)
            engine = engines.load_engine(folder)    # its files are not needed any longer
    except Exception as error:    # Paddle raises exceptions of any class
        problem = old_graph.reason_of(error)
    problem = problem_of_any(problem)
    if problem:
        say(f'the network computes layer by layer, as it cannot be a graph: {problem}')
        return network
    say(f'made a graph of the network for {engine.backend} in '
        f'{time.perf_counter() - started:.1f} s (--engine paddle computes without it)')
    return FastNetwork(network, engine, say)


def problem_of_any(problem):
    """Return the problem, a text, of the first process that has one; '' if none has.

    So either the graph computes on every process, or the network does.
    """
    distributed.wait_for_all()    # a slow process may take longer than gloo waits
    return next(filter(None, distributed.gather_objects(problem)), '')


class FastNetwork:
    """Computes the logits of a network by its graph, if both agree on the first images.

    The first call, in which every process takes part, compares up to CHECKED_IMAGES of its images;
    unless logits agree as those of an export must (exports.disagreement), the network computes
    everything.
    """

    training = False

    def __init__(self, network, engine, say):
        self._network, self._engine, self._say = network, engine, say
        self._checked = False

    def __call__(self, images):
        logits = self._engine(images)
        if not self._checked:
            self._checked = True
            if not self._agree(images, logits):
                self._engine = self._network
                logits = self._engine(images)
        return logits

    def eval(self):
        return self

    def _agree(self, images, logits):
        """Compare the graph's logits of the first images with those of the network."""
        count = min(len(images), -(-CHECKED_IMAGES // distributed.world_size()))
        wanted, found = self._network(images[:count]).numpy(), logits[:count].numpy()
        problem = problem_of_any(exports.disagreement(wanted, found))
        if problem:
            self._say(f'the network computes layer by layer, as its graph {problem}')
        else:
            self._say(f'the graph computes: on the first {count} images its logits differ from '
                      'those of the network by at most '
                      f'{exports.largest_difference(wanted, found):.1e}')
        return not problem
