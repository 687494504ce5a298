"""T2T-ViT in PyTorch: what tools/benchmark.py --pytorch PYTHON compares this project with.

Runs in an interpreter with torch and numpy, and torchvision and Pillow for the loader; Paddle is
not needed. The network computes what the official code computes, in the same operations, and has
its parameter names: it takes the weights of the network it is compared with, and the logits of both
are compared, too.
"""

import json
import os
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmark_protocol import peak_host_memory, serve, timed

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class TokenPerformer(nn.Module):
    """`[B, N, dim]` to `[B, N, width]`."""

    def __init__(self, dim, width, features, drop=0.1):
        super().__init__()
        self.kqv = nn.Linear(dim, 3 * width)
        self.dp = nn.Dropout(drop)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width),
                                 nn.Dropout(drop))
        self.w = nn.Parameter(torch.empty(features, width), requires_grad=False)

    def random_features(self, x):
        half_square_norm = (x * x).sum(dim=-1, keepdim=True) / 2
        return torch.exp(x @ self.w.T - half_square_norm) / self.w.shape[0] ** 0.5

    def forward(self, x):
        key, query, value = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        key, query = self.random_features(key), self.random_features(query)    # (B, N, m)
        normaliser = query @ key.sum(dim=1).unsqueeze(-1) + 1e-8               # (B, N, 1)
        y = query @ (key.transpose(1, 2) @ value) / normaliser                 # (B, N, width)
        x = value + self.dp(self.proj(y))
        return x + self.mlp(self.norm2(x))


class TokenAttention(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, dim=-1)                       # (B, N, width)
        scores = query * x.shape[-1] ** -0.5 @ key.transpose(-2, -1)           # (B, N, N)
        return value + self.proj(scores.softmax(dim=-1) @ value)


class TokenTransformer(nn.Module):
    """`[B, N, dim]` to `[B, N, width]`."""

    def __init__(self, dim, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, width)

    def forward(self, x):
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)       # (B, heads, N, N)
        y = scores.softmax(dim=-1) @ value                                     # (B, heads, N, d)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.soft_splits = shape['soft_splits']
        width = 3
        for index, (kernel, *_) in enumerate(self.soft_splits[:-1], start=1):
            dim, width = width * kernel * kernel, shape['token_dim']
            self.add_module(f'attention{index}', TokenTransformer(dim, width)
                            if shape['tokens_type'] == 'transformer'
                            else TokenPerformer(dim, width, width // 2))
        self.project = nn.Linear(width * self.soft_splits[-1][0] ** 2, shape['embed_dim'])

    def forward(self, x):
        for index, (kernel, stride, padding) in enumerate(self.soft_splits, start=1):
            if index > 1:
                side = round(x.shape[1] ** 0.5)
                x = x.transpose(1, 2).unflatten(-1, (side, side))              # (B, C, side, side)
            x = F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)
            layer = self.project if index == len(self.soft_splits) else getattr(
                self, f'attention{index}')
            x = layer(x)
        return x


class T2TViT(nn.Module):
    """Images `[B, 3, S, S]` to logits.

    Args:
        shape: dict of tokens_type, token_dim, soft_splits, embed_dim, depth, num_heads, hidden_dim
            and num_classes.
        num_tokens: N after the last soft split.
    """

    def __init__(self, shape, num_tokens):
        super().__init__()
        dim = shape['embed_dim']
        self.tokens_to_token = TokensToToken(shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_tokens, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, shape['num_heads'], shape['hidden_dim'])
                                    for _ in range(shape['depth']))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, shape['num_classes'])

    def forward(self, x):
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def load(request):
    """Return the network with the weights of an .npz file that benchmark_worker.py has written, its
    shape, and the images of benchmark_worker.run_engine, `[B, 3, S, S]`."""
    weights = dict(np.load(request['export']))
    shape = json.loads(str(weights.pop('shape')))
    network = T2TViT(shape, weights['pos_embed'].shape[1] - 1)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    size = shape['image_size']
    images = torch.from_numpy(np.random.default_rng(0).standard_normal(
        (request['batch_size'], 3, size, size), dtype='float32'))
    return network.to(DEVICE), shape, images.to(DEVICE)


def run_engine(request):
    """Time the latency of one image and the throughput of a batch."""
    network, _, images = load(request)
    network.eval()
    bfloat16 = request['precision'] == 'bfloat16'

    @torch.inference_mode()
    def logits(batch):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            return network(batch).float().cpu().numpy()

    return (dict(device=DEVICE, backend='pytorch', logits=logits(images[:1]).tolist()),
            dict(latency=timed(lambda: logits(images[:1])),
                 throughput=timed(lambda: logits(images))))


def run_training(request):
    """Time a training step: AdamW, cross entropy, gradients clipped to a global norm of 1."""
    network, shape, images = load(request)
    labels = torch.arange(len(images), device=DEVICE) % shape['num_classes']
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    return dict(device=DEVICE, images_a_step=len(images)), dict(training=timed(step))


def run_loader(request):
    """Time decoding and augmenting on one core, seconds for a batch of images.

    The plain recipe is a random resized crop and a flip, by torchvision. The official one is timm's
    transform with RandAugment. Both end with uint8 pixels.
    """
    from PIL import Image

    torch.set_num_threads(1)
    size, files = request['image_size'], request['files']
    if request['recipe'] == 'official':
        from PIL import ImageOps
        from timm.data import create_transform
        # timm asks for 0 bits at full strength, which Pillow refuses from 13 on.
        posterize = ImageOps.posterize
        ImageOps.posterize = lambda image, bits: posterize(image, max(bits, 1))
        transform = create_transform(size, is_training=True, use_prefetcher=True,
                                     auto_augment='rand-m9-mstd0.5-inc1', interpolation='random')
    else:
        from torchvision import transforms
        transform = transforms.Compose([transforms.RandomResizedCrop(size),
                                        transforms.RandomHorizontalFlip(),
                                        transforms.PILToTensor()])

    def read(repeats):
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            for file in files:
                transform(Image.open(file).convert('RGB'))
            seconds.append((time.perf_counter() - started) / len(files) * request['batch_size'])
        return seconds

    return {}, dict(loader=read)


def peak_memory():
    """Peak memory in MiB, on the GPU if there is one."""
    if DEVICE == 'cuda':
        return torch.cuda.max_memory_allocated() / 2 ** 20
    return peak_host_memory()


if __name__ == '__main__':
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    serve(dict(engine=run_engine, training=run_training, loader=run_loader), peak_memory)
