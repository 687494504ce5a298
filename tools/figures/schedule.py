"""Draws the learning rate over the epochs of runs, and the rates that logs print.

    rate = build.rate_of_batch(config, steps=1252)
    figure = draw({'cosine': curve(rate, epochs=310, steps=1252)})
"""

import numpy as np

from figures import style

MOST_POINTS = 2000    # of a curve; more cannot be seen


def curve(rate, epochs, steps):
    """Compute the rates of a run.

    Args:
        rate: function (epoch, batch of the epoch) -> learning rate, both from 0.
        epochs: of the run.
        steps: batches in an epoch; 1 if the rate changes once an epoch.

    Returns:
        list of (epochs trained, rate) of the first batch, the last one, and at most MOST_POINTS
        between them; the end of the run has the last rate.
    """
    batches = np.linspace(0, epochs * steps - 1, min(epochs * steps, MOST_POINTS)).round()
    points = [(batch / steps, rate(*divmod(int(batch), steps))) for batch in batches]
    return [*points, (epochs, points[-1][1])]


def agreement(rate_of, printed):
    """Return how many printed rates are those of a run, rounded to as many decimals.

    Args:
        rate_of: function from batches in an epoch to a function as `curve` takes.
        printed: result of curves.read_rates.
    """
    return sum(f'{rate_of(steps)(epoch, batch):.{len(text.partition(".")[2])}f}' == text
               for epoch, batch, steps, text in printed)


def draw(runs, logs=None):
    """Return a Figure.

    Args:
        runs: {name: result of curve}.
        logs: {name: result of curves.read_rates}; a circle wherever the printed rate changes, and
            for the first one of an epoch.
    """
    logs = logs or {}
    with style.applied():
        figure = style.figure(4.4)
        axes = figure.subplots()
        for name, points in runs.items():
            axes.plot(*zip(*points), drawstyle='steps-post', gid=name, label=style.literal(name))
        for name, printed in logs.items():
            places = {(epoch, text): epoch + batch / steps
                      for epoch, batch, steps, text in reversed(printed)}
            axes.plot(list(places.values()), [float(text) for _, text in places], 'o', gid=name,
                      fillstyle='none', markersize=5, markeredgewidth=1,
                      label=style.literal(f'{name}: {len(printed):,} rates'))
        axes.set(xlabel='epochs', ylabel='learning rate', xlim=(0, None), ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc='outside lower center', ncols=2, frameon=False)
        return figure
