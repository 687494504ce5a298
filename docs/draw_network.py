"""Draw docs/t2t_vit_7.svg: how an image becomes tokens, and tokens become logits.

    python docs/draw_network.py

Every number in the figure is read from the network that tools/t2t.py builds.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / 'tools'))

from system import start  # noqa: E402

start.prepare()    # before Paddle, which reads what it sets

from matplotlib.patches import FancyBboxPatch, Rectangle  # noqa: E402

import zoo  # noqa: E402
from figures import style  # noqa: E402

INK, PALE, GRID = '#1f2933', '#52606d', '#8fa3b5'
SPLIT, EXCHANGE, BLOCK = style.COLOURS[:3]


def grid(axes, center, side, cells, title, detail):
    """A square token grid with the title above and its shape below."""
    left, bottom = center[0] - side / 2, center[1] - side / 2
    axes.add_patch(Rectangle((left, bottom), side, side, facecolor='white', edgecolor=INK))
    for line in range(1, cells):
        at = side * line / cells
        axes.plot([left + at] * 2, [bottom, bottom + side], color=GRID, linewidth=0.5)
        axes.plot([left, left + side], [bottom + at] * 2, color=GRID, linewidth=0.5)
    axes.text(center[0], bottom + side + 0.12, title, ha='center', va='bottom', color=INK)
    axes.text(center[0], bottom - 0.12, detail, ha='center', va='top', color=PALE)


def box(axes, center, width, height, text, color):
    """A filled box with white text: an operation."""
    axes.add_patch(FancyBboxPatch(
        (center[0] - width / 2, center[1] - height / 2), width, height, facecolor=color,
        edgecolor='none', boxstyle='round,pad=0,rounding_size=0.08'))
    axes.text(*center, text, ha='center', va='center', color='white', linespacing=1.3)


def arrow(axes, tail, head):
    axes.annotate('', head, tail, arrowprops=dict(arrowstyle='-|>', color=INK, linewidth=1.2,
                                                  shrinkA=0, shrinkB=0))


def main():
    with style.applied(**{'font.size': 8}):
        figure = draw()
    style.save(figure, str(FOLDER / 't2t_vit_7.svg'))


def draw():
    """Return the Figure."""
    network = zoo.create_model('t2t_vit_7')
    module = network.tokens_to_token
    sides, splits = module.grid_sizes, module.soft_splits
    channels = 3
    figure = style.figure(height=3.95)
    axes = figure.subplots()
    axes.set(xlim=(-0.2, 13.05), ylim=(0.5, 6.2), aspect='equal')
    axes.axis('off')

    axes.text(0.1, 5.95, 'Tokens-to-Token module: soft splits shrink the grid, attention between '
              'them exchanges information', color=INK, weight='bold', va='top')
    row, x = 4.3, 0.85
    grid(axes, (x, row), 1.3, 1, 'image', '224 x 224, 3 channels')
    for number, (side, (kernel, stride, _)) in enumerate(zip(sides, splits)):
        last = number == len(sides) - 1
        width = channels * kernel ** 2
        box(axes, (x + 1.75, row), 1.4, 1.2,
            f'soft split\n{kernel} x {kernel}, stride {stride}\n{width} values', SPLIT)
        arrow(axes, (x + 0.7, row), (x + 1.05, row))
        if last:
            break
        channels = module.attention1.in_dim
        box(axes, (x + 3.35, row), 1.3, 1.2, f'Performer\n1 head\n{width} to {channels}', EXCHANGE)
        arrow(axes, (x + 2.45, row), (x + 2.7, row))
        grid(axes, (x + 4.95, row), 1.1 - 0.25 * number, 8 // 2 ** number,
             f'{side} x {side} tokens', f'of {channels} values')
        arrow(axes, (x + 4.0, row), (x + 4.4 + 0.12 * number, row))
        x += 4.85 - 0.12 * number

    axes.text(1.6, 2.45, f'Backbone: deep and narrow, {len(network.blocks)} blocks of width '
              f'{network.cls_token.shape[-1]}', color=INK, weight='bold', va='top')
    row = 1.2
    heads = network.blocks[0].attn.num_heads
    embed_dim = network.cls_token.shape[-1]
    hidden = network.blocks[0].mlp.fc1.weight.shape[1]
    box(axes, (0.85, row), 1.4, 1.2, f'Linear\n{width} to {embed_dim}', BLOCK)
    box(axes, (2.75, row), 1.8, 1.2,
        f'class token\n+ positions\n{network.pos_embed.shape[1]} x {embed_dim}', BLOCK)
    arrow(axes, (1.55, row), (1.85, row))
    for copy in (2, 1, 0):
        axes.add_patch(FancyBboxPatch(
            (4.0 + 0.1 * copy, row - 0.6 + 0.1 * copy), 2.6, 1.2, facecolor=BLOCK,
            edgecolor='white', boxstyle='round,pad=0,rounding_size=0.08'))
    axes.text(5.3, row, f'attention, {heads} heads\nMLP, {embed_dim}-{hidden}-{embed_dim}\n'
              f'{len(network.blocks)} times', ha='center', va='center', color='white',
              linespacing=1.3)
    arrow(axes, (3.65, row), (4.0, row))
    box(axes, (8.0, row), 1.7, 1.2, 'LayerNorm,\nclass token', BLOCK)
    arrow(axes, (6.8, row), (7.15, row))
    classes = network.head.weight.shape[1]
    box(axes, (10.1, row), 1.7, 1.2, f'Linear\n{embed_dim} to {classes}', BLOCK)
    arrow(axes, (8.85, row), (9.25, row))
    axes.text(11.1, row, 'logits', va='center', color=INK)
    arrow(axes, (10.95, row), (11.1, row))
    # From the end of the upper row to the beginning of the lower one.
    end = x + 1.75
    axes.text(end, 4.3 - 0.72, f'{sides[-1]} x {sides[-1]} =\n{sides[-1] ** 2} tokens',
              ha='center', va='top', color=PALE)
    axes.plot([end, end, 0.85], [3.05, 2.75, 2.75], color=INK, linewidth=1.2)
    arrow(axes, (0.85, 2.75), (0.85, row + 0.6))
    return figure


if __name__ == '__main__':
    main()
