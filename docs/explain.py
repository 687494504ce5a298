"""Make docs/explained.md: its figures, tables and pieces of code, from a real forward pass.

    python docs/explain.py
    python docs/explain.py --image photo.jpg --out output/explained    # the page of your own image

In the page, what stands between `<!-- code: FILE NAME -->` or `<!-- table: NAME -->` and
`<!-- end -->` is written by this command; all else is written by hand.
"""

import ast
import functools
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT / 'tools'))

from system import command, start  # noqa: E402

start.prepare()    # before Paddle, which reads what it sets
start.require('matplotlib')

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

import build  # noqa: E402
import config as configuration  # noqa: E402
import zoo  # noqa: E402
from data.decode import decode_image  # noqa: E402
from figures import rollout, style  # noqa: E402
from t2t import SOFT_SPLITS, Token_performer, TokenAttention, grid_sizes  # noqa: E402
from zoo.macs import count_macs  # noqa: E402

PAGE = FOLDER / 'explained.md'
BLUE, RED, GREEN, _, ORANGE, *_, GREY = style.COLOURS
DRAWS = 5
FEATURES = [2 ** power for power in range(3, 14)]    # numbers of random features
# Pairs of about the same size, and the paper's shallow and wide design (its table 6).
COMPARED = {
    't2t_vit_7': 'T2T-ViT-7', 'vit_tiny_patch16_224': 'ViT-Ti/16',
    't2t_vit_14': 'T2T-ViT-14', 'vit_small_patch16_224': 'ViT-S/16',
    't2t_vit_14_wide': 'shallow and wide',
}
PARTS = ('making the tokens', 'attention of the blocks', 'MLPs of the blocks', 'head and the rest')


# ---- what the page takes from the source

def source(path, name):
    """The lines of a function or method, such as `T2T_module.forward`, without its docstring."""
    text = (ROOT / path).read_text(encoding='utf-8')
    node = ast.parse(text)
    for part in name.split('.'):
        node = next(child for child in node.body if getattr(child, 'name', None) == part)
    lines = text.splitlines()[:node.end_lineno]
    if ast.get_docstring(node):
        del lines[node.body[0].lineno - 1:node.body[0].end_lineno]
    return textwrap.dedent('\n'.join(lines[node.lineno - 1:]))


def fill(page, tables):
    """Return the page with code from the source and {name: table} between their marks."""
    def section(match):
        opening, kind, name, content = match.groups()
        if kind == 'code':
            content = f'```python\n{source(*name.split())}\n```'
        return f'{opening}\n\n{tables.get(name, content.strip())}\n\n<!-- end -->'
    return re.sub(r'(<!-- (code|table): (.*?) -->)\n(.*?)<!-- end -->', section, page,
                  flags=re.DOTALL)


def table(head, rows):
    """A table in Markdown; `head` and each of the `rows` hold texts or numbers."""
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |'
                     for row in (head, ['---'] * len(head), *rows))


# ---- soft splits: from their kernels, strides and paddings alone

def geometry(img_size, splits):
    """What the tokens of each soft split are made of, if there were no attention between them.

    Returns:
        for each split a namespace of side, the tokens in a row; field, the side of the square that
        a token sees, step, from one token to the next, and begin, the left edge of the first
        token's square, all in pixels of the image.
    """
    stages, field, step, begin = [], 1, 1, 0
    for side, (kernel, stride, padding) in zip(grid_sizes(img_size, splits), splits):
        begin -= padding * step
        field += (kernel - 1) * step
        step *= stride
        stages.append(SimpleNamespace(side=side, field=field, step=step, begin=begin))
    return stages


def coverage(side, split):
    """How many windows of a soft split hold each cell of a grid: integers `[side, side]`."""
    kernel, stride, padding = split
    count = np.zeros(side + 2 * padding, dtype=int)
    for first in range(0, len(count) - kernel + 1, stride):
        count[first:first + kernel] += 1
    count = count[padding:padding + side]
    return np.outer(count, count)


def splits_table(networks):
    """A table of soft splits; `networks` is {title: (image size in pixels, soft splits)}."""
    rows = []
    for title, (size, splits) in networks.items():
        width, before = 3, size
        for number, (split, stage) in enumerate(zip(splits, geometry(size, splits)), 1):
            kernel, stride, padding = split
            held = coverage(before, split)
            rows.append([
                title if number == 1 else '', number, f'{kernel} / {stride} / {padding}',
                f'{stage.side} x {stage.side} = {stage.side ** 2:,}',
                f'{width} x {kernel} x {kernel} = {width * kernel ** 2}',
                f'{held.min()} to {held.max()}' if held.min() < held.max() else held.min(),
                f'{stage.field} x {stage.field}', stage.step])
            width, before = 64, stage.side
    return table(['image', 'split', 'kernel / stride / padding', 'tokens', 'values of a token',
                  'windows that hold a cell', 'pixels behind a token', 'pixels to the next'], rows)


# ---- attention by random features

def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def random_rows(count, dim, rng):
    """Random directions `[count, dim]`, orthogonal in groups of dim, as long as Gaussian vectors.

    Section 4 of Choromanski et al., ICLR 2021: a row alone is Gaussian, and rows at right angles
    to each other give a smaller error than independent ones.
    """
    groups = []
    for _ in range(-(-count // dim)):
        directions, triangle = np.linalg.qr(rng.normal(size=(dim, dim)))
        # Without these signs not all directions would be as likely (Mezzadri, 2007).
        groups.append(directions * np.sign(np.diag(triangle)))
    lengths = np.linalg.norm(rng.normal(size=(count, dim)), axis=1, keepdims=True)
    return np.concatenate(groups)[:count] * lengths


def feature_attention(queries, keys, rows):
    """Attention `[N, N]` by the positive random features of `rows` `[m, dim]`; rows sum to 1.

    What Token_performer computes, in float64 and without epsilon. The largest exponents are taken
    out before exp, for each feature from the keys to the queries, so that no sum becomes 0.
    """
    queries, keys = (x @ rows.T - (x * x).sum(axis=1, keepdims=True) / 2 for x in (queries, keys))
    largest = keys.max(axis=0)                                            # (m)
    queries = queries + largest
    estimate = np.exp(queries - queries.max(axis=1, keepdims=True)) @ np.exp(keys - largest).T
    return estimate / estimate.sum(axis=1, keepdims=True)


def distance(attention, exact):
    """The share of attention that lies on the wrong tokens, the mean over the queries: 0 to 1."""
    return np.abs(attention - exact).sum(axis=1).mean() / 2


def errors(queries, keys, counts):
    """Distance from exact attention for numbers of features, `[DRAWS, len(counts)]`.

    For at most 256 of the queries, evenly spaced.
    """
    queries = queries[::-(-len(queries) // 256)]
    exact = softmax(queries @ keys.T)
    return np.array([[distance(feature_attention(queries, keys, random_rows(
        count, queries.shape[1], np.random.default_rng([draw, count]))), exact)
        for count in counts] for draw in range(DRAWS)])


# ---- the forward pass

def forward(network, images):
    """Run `images` `[1, 3, S, S]` and keep what the page shows.

    Returns:
        a namespace of logits `[classes]`; attention, a list of `[heads, N, N]` for each block;
        rollout `[side, side]`; stages, the tokens as grids `[C, side, side]`; sensitivity, for each
        stage how strongly its middle token depends on each pixel `[S, S]`; performers, for each a
        namespace of queries and keys `[N, dim]`, its own attention `[N, N]`, and kept, the share of
        attention that epsilon leaves.
    """
    module, performers, handles = network.tokens_to_token, [], []

    def keep(layer, output):
        keys, queries, _ = (part[0].numpy().astype('float64')
                            for part in paddle.split(output, 3, axis=-1))
        with paddle.no_grad():
            features = [layer.prm_exp(paddle.to_tensor(x.astype('float32'))).numpy()
                        .astype('float64') for x in (queries, keys)]
        own = features[0] @ features[1].T
        total = own.sum(axis=1, keepdims=True)
        performers.append(SimpleNamespace(
            queries=queries, keys=keys, features=layer.num_features,
            own=feature_attention(queries, keys, layer.w.numpy().astype('float64')),
            kept=(total / (total + layer.epsilon)).mean()))

    for layer in module.children():
        if isinstance(layer, Token_performer):
            handles.append(layer.kqv.register_forward_post_hook(
                lambda _, inputs, output, layer=layer: keep(layer, output)))
    images = paddle.to_tensor(images, stop_gradient=False)
    try:
        with network.recording() as record:
            logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    grids = list(record.feature_maps.values())
    maps = [attention.numpy() for attention in record.attention.values()]
    return SimpleNamespace(
        logits=logits[0].numpy(), attention=[attention[0] for attention in maps],
        rollout=rollout.attention_rollout(maps)[0], stages=[grid[0].numpy() for grid in grids],
        sensitivity=[sensitivity(images, grid) for grid in grids], performers=performers)


def sensitivity(images, grid, probes=16):
    """How strongly the middle token of `grid` `[1, C, side, side]` depends on each pixel: `[S, S]`.

    The root of the squared derivatives, summed over channels. The square of a sum of the
    derivatives with random signs has that as its mean, so that a few probes replace C passes.
    """
    rng, middle = np.random.default_rng(0), grid.shape[2] // 2
    token, total = grid[0, :, middle, middle], 0
    for _ in range(probes):
        probe = paddle.to_tensor(rng.choice([-1.0, 1.0], token.shape[0]).astype('float32'))
        gradient, = paddle.grad((token * probe).sum(), images, retain_graph=True)
        total = total + (gradient[0].numpy() ** 2).sum(axis=0)
    return np.sqrt(total / probes)


def square_of(stage):
    """(left, right) of the pixels behind the middle token; the square is on the diagonal."""
    left = stage.begin + stage.side // 2 * stage.step
    return left, left + stage.field


# ---- figures

def picture(axes, values, title='', caption='', **options):
    """Show an image `[h, w, 3]` or a map `[h, w]`, with a title above and a caption below."""
    axes.imshow(values, interpolation='nearest', **options)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title)
    axes.set_xlabel(caption)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def outline(axes, left, top, width, color, line=2.0, style='-'):
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, width, fill=False, edgecolor=color,
                             linewidth=line, linestyle=style, clip_on=False))


def draw_soft_split(photo, split):
    """The windows of the first soft split in the image, taken apart, and how they overlap."""
    kernel, stride, padding = split
    size, shown, gap = len(photo), 6, 2
    first = (size // stride - shown) // 2    # of the windows that are shown, in a row
    drawn = style.figure(height=3.5)
    axes = drawn.subplots(1, 3)
    marked = {(2, 2): BLUE, (2, 3): ORANGE, (3, 2): GREEN}    # row, column among the shown
    picture(axes[0], photo, f'the image, {size} x {size} pixels',
            f'windows of {kernel} x {kernel} pixels, one every {stride}')
    pitch = kernel + gap
    apart = np.ones((shown * pitch - gap,) * 2 + (3,))
    padded = np.pad(photo, ((padding, kernel), (padding, kernel), (0, 0)))
    for row in range(shown):
        for column in range(shown):
            top, left = ((first + index) * stride for index in (row, column))
            apart[row * pitch:, column * pitch:][:kernel, :kernel] = \
                padded[top:top + kernel, left:left + kernel]
    picture(axes[1], apart, f'{shown} x {shown} windows, taken apart',
            f'neighbours share {kernel - stride} rows or columns')
    for (row, column), color in marked.items():
        outline(axes[0], (first + column) * stride - padding, (first + row) * stride - padding,
                kernel, color)
        outline(axes[1], column * pitch, row * pitch, kernel, color, 3)
    edge = 3 * stride + kernel - padding
    held = coverage(size, split)[:edge, :edge]
    picture(axes[2], held, 'windows that hold each pixel', 'upper left corner; framed: two windows',
            cmap='Greys', vmin=0, vmax=held.max() * 2)
    for row in range(edge):
        for column in range(edge):
            axes[2].text(column, row, held[row, column], ha='center', va='center', fontsize=8)
    for number, color in enumerate((BLUE, ORANGE), 1):
        outline(axes[2], number * stride - padding, stride - padding, kernel, color, 3)
    return drawn


def colours(grid):
    """The three main directions of tokens `[C, side, side]` as red, green and blue, 0 to 1."""
    tokens = grid.reshape(len(grid), -1).T
    tokens = tokens - tokens.mean(axis=0)
    left, strength, directions = np.linalg.svd(tokens, full_matrices=False)
    signs = np.sign(directions[np.arange(3), np.abs(directions[:3]).argmax(axis=1)])
    parts = left[:, :3] * strength[:3] * signs
    low, high = np.percentile(parts, [2, 98], axis=0)
    return np.clip((parts - low) / (high - low), 0, 1).reshape(*grid.shape[1:], 3)


def draw_stages(photo, stages, walk):
    """The tokens after each soft split, and what the middle one sees of the image."""
    drawn = style.figure(height=5)
    upper, lower = drawn.subplots(2, len(stages) + 1)
    picture(upper[0], photo, 'image')
    picture(lower[0], photo, caption='squares behind the\nframed tokens')
    for number, (stage, grid, reach, color) in enumerate(
            zip(stages, walk.stages, walk.sensitivity, (BLUE, ORANGE, GREEN)), 1):
        middle, (left, _) = stage.side // 2, square_of(stage)
        picture(upper[number], colours(grid), f'split {number}: {stage.side} x {stage.side} tokens',
                f'{len(grid)} values, as colours')
        outline(upper[number], middle, middle, 1, 'white', 4)
        outline(upper[number], middle, middle, 1, color)
        picture(lower[number], np.log10(np.maximum(reach / reach.max(), 1e-4)),
                'pixels it depends on', f'{100 * inside(reach, stage):.0f} % in the square\n'
                f'of {stage.field} x {stage.field} pixels', cmap='inferno', vmin=-4, vmax=0)
        for axes in (lower[0], lower[number]):
            outline(axes, left, left, stage.field, color)
    bar = drawn.colorbar(lower[-1].images[0], ax=list(lower), fraction=0.02, ticks=[-4, -2, 0])
    bar.ax.set_yticklabels(['0.0001', '0.01', '1'])
    bar.set_label('effect of a pixel')
    return drawn


def inside(reach, stage):
    """The share of squared derivatives within the square that the soft splits alone see."""
    low, high = (min(max(edge, 0), len(reach)) for edge in square_of(stage))
    return (reach[low:high, low:high] ** 2).sum() / (reach ** 2).sum()


def draw_performer(walk, side):
    """Exact attention and attention by features, as maps and as distance over their number."""
    first = walk.performers[0]
    middle = side // 2 * side + side // 2
    dim = first.queries.shape[1]
    drawn = style.figure(height=3.7)
    left, right = drawn.subfigures(1, 2, width_ratios=(1.45, 1))
    grid = left.subplots(2, 4)
    axes = right.subplots()
    kinds = ((r'$q \cdot k / \sqrt{d}$', dim ** -0.25, BLUE), (r'$q \cdot k$', 1, RED))
    for row, (label, scale, color) in zip(grid, kinds):
        queries, keys = first.queries * scale, first.keys * scale
        rng = np.random.default_rng(1)
        exact = softmax(queries @ keys.T)
        maps = [(exact[middle], 'exact'), *((feature_attention(
            queries[[middle]], keys, random_rows(count, dim, rng)), f'm = {count:,}')
            for count in (first.features, 512, 8192))]
        for cell, (attention, title) in zip(row, maps):
            picture(cell, np.sqrt(attention.reshape(side, side)), title, cmap='inferno',
                    vmin=0, vmax=np.sqrt(exact[middle].max()))
            outline(cell, side // 2, side // 2, 1, 'white', 1)
        row[0].set_ylabel(f'attention of {label}', color=color)
        found = errors(queries, keys, FEATURES)
        axes.plot(FEATURES, found.mean(axis=0), color=color, marker='o', markersize=4,
                  label=f'attention of {label}')
        axes.fill_between(FEATURES, found.min(axis=0), found.max(axis=0), color=color, alpha=0.2,
                          linewidth=0)
        axes.axhline(distance(np.full_like(exact, 1 / len(exact)), exact), color=color,
                     linestyle=':', linewidth=1)
    exact = softmax(first.queries @ first.keys.T)
    axes.plot(first.features, distance(first.own, exact), '*', color='black', markersize=13,
              label="the network's own")
    axes.plot([], [], color='black', linestyle=':', linewidth=1,
              label='equal attention')
    axes.set_xscale('log', base=2)
    axes.set(xlabel='number of random features m', ylim=(0, 1),
             xticks=FEATURES[::2], xticklabels=[f'{count:,}' for count in FEATURES[::2]])
    axes.set_title('share of attention on wrong tokens')
    axes.legend(loc='upper left', bbox_to_anchor=(0, 0.72))
    left.suptitle('attention of the framed token: exact, and by m random features',
                  fontsize='medium')
    return drawn


def part_of(name):
    """The index in PARTS of a parameter or layer."""
    if name.startswith(('tokens_to_token', 'patch_embed')):
        return 0
    if name.startswith('blocks.'):
        return 2 if '.mlp' in name or '.norm2' in name else 1
    return 3


@functools.lru_cache
def sizes():
    """{name of COMPARED: (parameters, MACs, depth, width)}; the first two `[len(PARTS)]`."""
    result = {}
    for name in COMPARED:
        network = zoo.create_model(name)
        parameters, macs = np.zeros(len(PARTS)), np.zeros(len(PARTS))
        for parameter, value in network.named_parameters():
            parameters[part_of(parameter)] += value.size
        for layer in count_macs(network, network.img_size):
            macs[part_of(layer.name)] += layer.macs
        result[name] = parameters, macs, len(network.blocks), network.num_features
    return result


def sizes_table(found):
    return table(
        ['network', 'blocks', 'width', 'parameters', 'MACs', 'of these: tokens, attention, MLPs'],
        [[f'{COMPARED[name]}, `{name}`', depth, width, f'{parameters.sum() / 1e6:.1f} M',
          f'{macs.sum() / 1e9:.2f} G', '{:.0f} %, {:.0f} %, {:.0f} %'.format(
              *100 * macs[:3] / macs.sum())] for name, (parameters, macs, depth, width)
         in found.items()])


def draw_sizes(found):
    """Parameters and MACs of networks by part, as stacked bars."""
    drawn = style.figure(height=3.9)
    axes = drawn.subplots(1, 2, sharey=True)
    labels = [f'{COMPARED[name]}\n{depth} blocks of {width}'
              for name, (_, _, depth, width) in found.items()]
    for panel, (kind, unit, name) in enumerate(((0, 1e6, 'parameters in millions'),
                                                (1, 1e9, 'multiply-accumulates in billions'))):
        values = np.array([row[kind] for row in found.values()]) / unit    # (networks, parts)
        before = np.zeros(len(values))
        for part, color, column in zip(PARTS, (BLUE, ORANGE, GREEN, GREY), values.T):
            axes[panel].barh(labels, column, left=before, color=color, label=part, height=0.65)
            before += column
        for row, total in enumerate(before):
            axes[panel].text(total + before.max() / 80, row, f'{total:.1f}', va='center')
        axes[panel].set_title(name)
        axes[panel].set_xlim(0, before.max() * 1.15)
        axes[panel].grid(axis='y', visible=False)
        axes[panel].set_axisbelow(True)
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc='outside lower center', ncols=4, frameon=False,
                 columnspacing=1)
    return drawn


def lay_over(axes, photo, values, title=''):
    """Show a map of tokens `[side, side]` over an image `[S, S, 3]`."""
    picture(axes, photo, title)
    axes.imshow(values, interpolation='nearest', cmap='inferno', vmin=0, alpha=0.6,
                extent=axes.images[0].get_extent())


def draw_attention(photo, walk):
    """Attention of the class token in each block: the mean over the heads, and each head."""
    side = len(walk.rollout)
    heads = len(walk.attention[0])
    drawn = style.figure(height=5.4)
    left, right = drawn.subfigures(1, 2, width_ratios=(1, 3.1))
    upper, lower = left.subplots(2, 1)
    grey = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2)
    picture(upper, photo, 'the image')
    lay_over(lower, grey, walk.rollout, 'all blocks together (rollout)')
    grid = right.subplots(heads + 1, len(walk.attention))
    right.suptitle('attention of the class token to the other tokens', fontsize='medium')
    for number, attention in enumerate(walk.attention):
        rows = np.concatenate([attention.mean(axis=0, keepdims=True), attention])[:, 0]
        for index, (cell, weights) in enumerate(zip(grid[:, number], rows)):
            values = np.sqrt(weights[1:].reshape(side, side))
            if index:
                picture(cell, values, cmap='inferno', vmin=0)
            else:
                lay_over(cell, grey, values)
            if not number:
                cell.set_ylabel(f'head {index}' if index else 'mean')
        grid[0, number].set_title(f'block {number + 1}')
    return drawn


# ---- tables of the forward pass

def performer_table(walk):
    columns = []
    for layer in walk.performers:
        exact = softmax(layer.queries @ layer.keys.T)
        scale = layer.queries.shape[1] ** -0.25
        counts = (layer.features, FEATURES[-1])
        columns.append([
            len(exact),
            *(f'{(x * x).sum(axis=1).mean():.0f}' for x in (layer.queries, layer.keys)),
            f'{distance(np.full_like(exact, 1 / len(exact)), exact):.2f}',
            f'{distance(layer.own, exact):.2f}',
            *('{:.2f}, {:.2f}'.format(*errors(
                layer.queries * by, layer.keys * by, counts).mean(axis=0)) for by in (scale, 1)),
            f'{100 * layer.kept:.1f} %' if layer.kept >= 5e-4 else 'less than 0.1 %'])
    both = f'{walk.performers[0].features} and {FEATURES[-1]:,} new features'
    names = ['tokens', 'mean of q·q', 'mean of k·k', 'error of equal attention to all tokens',
             f'error of its own {walk.performers[0].features} features',
             f'error of {both}, for q·k / √d', f'error of {both}, for q·k',
             'attention that epsilon leaves']
    return table(['', *(f'Performer {number + 1}' for number in range(len(columns)))],
                 zip(names, *columns))


def costs_table():
    """MACs of attention, exact and by features, for numbers of tokens."""
    by_features, exact = Token_performer(147, 64), TokenAttention(147, 64)
    rows = []
    for tokens in (64, 256, 784, 3136):
        both = [layer.attention_macs(tokens) / 1e6 for layer in (exact, by_features)]
        rows.append([f'{tokens:,}', *(f'{macs:,.1f} M' for macs in both),
                     f'{both[0] / both[1]:.2g}'])
    return table(['tokens', 'exact attention', 'by 32 features', 'ratio'], rows)


def attention_table(walk):
    rows = []
    for number, attention in enumerate(walk.attention, 1):
        weights = attention[:, 0]                                         # (heads, N)
        others = weights[:, 1:] / weights[:, 1:].sum(axis=1, keepdims=True)
        spread = np.exp(-(others * np.log(others + 1e-30)).sum(axis=1))   # (heads)
        rows.append([number, f'{100 * weights[:, 0].mean():.0f} %',
                     f'{spread.min():.2g} to {spread.max():.2g} of {others.shape[1]}'])
    return table(['block', 'on the class token itself', 'tokens that a head looks at'], rows)


def answer_table(logits, names):
    shares = softmax(logits.astype('float64'))
    return table(['class', 'probability'], [
        [names[label] if names else label, f'{100 * shares[label]:.1f} %']
        for label in shares.argsort()[::-1][:5]])


# ---- the command

def opened(options):
    """Return (network, its image `[1, 3, S, S]`, the image to show `[S, S, 3]`, class names)."""
    config = build.load_config(options.config, options.override)
    network, metadata = build.trained_network(config, build.weights_path(config, options.weights))
    network.eval()
    module = getattr(network, 'tokens_to_token', None)
    if not any(isinstance(layer, Token_performer) for layer in
               (module.children() if module else ())):
        raise command.UsageError(f'{config.MODEL.NAME}: has no Performers to explain; choose a '
                                 'network such as t2t_vit_7')
    images = build.eval_transform(config)(decode_image(options.image))[None]
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (config.DATA.MEAN, config.DATA.STD))
    photo = np.clip(images[0] * std + mean, 0, 1).transpose(1, 2, 0)
    return network, images.astype('float32'), photo, build.class_names(config, metadata)


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser, configuration.PHOTOGRAPHS)
    parser.add_argument('--weights', metavar='FILE', help='weights; default: MODEL_PATH')
    parser.add_argument('--image', metavar='FILE', default=FOLDER / 'espresso.jpg',
                        help='image (default: docs/espresso.jpg)')
    parser.add_argument('--out', metavar='FOLDER', default=FOLDER, type=Path,
                        help='where the page and its folder of figures are written (default: docs)')
    options = parser.parse_args(arguments)
    network, images, photo, names = opened(options)
    module = network.tokens_to_token
    stages, walk = geometry(module.img_size, module.soft_splits), forward(network, images)
    folder = options.out / 'explained'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style.applied(**{'font.size': style.SMALL, 'axes.titlesize': 'medium'}):
            for name, drawn in (
                    ('soft_split.png', draw_soft_split(photo, module.soft_splits[0])),
                    ('tokens.png', draw_stages(photo, stages, walk)),
                    ('performer.png', draw_performer(walk, stages[0].side)),
                    ('backbone.svg', draw_sizes(sizes())),
                    ('attention.png', draw_attention(photo, walk))):
                style.save(drawn, str(folder / name))
                print(folder / name)
        page = fill(PAGE.read_text(encoding='utf-8'), {
            **structure(module.img_size, module.soft_splits), 'performer': performer_table(walk),
            'attention': attention_table(walk), 'answer': answer_table(walk.logits, names)})
        (options.out / PAGE.name).write_text(page, encoding='utf-8')
    except OSError as error:
        raise command.UsageError(f'--out {options.out}: cannot be written '
                                 f'({error.strerror})') from error
    print(options.out / PAGE.name)


def structure(img_size, splits):
    """The tables that do not depend on the weights."""
    return {'costs': costs_table(), 'sizes': sizes_table(sizes()), 'splits': splits_table({
        f'here, {img_size} pixels': (img_size, splits), 'paper, 224 pixels': (224, SOFT_SPLITS),
        'ViT, 224 pixels': (224, ((16, 16, 0),))})}


if __name__ == '__main__':
    command.run(main)
