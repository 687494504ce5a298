"""Train a network as a configuration says, and validate it on the way.

    python tools/train.py -c config/lit_data.yaml -o TRAIN.SEED=1

The run's folder, output/NAME_OF_THE_YAML_FILE, gets best.pdparams and last.pdparams, the
resolved config.yaml, train.log, log.jsonl and visualdl/.
"""

import dataclasses
import math
import platform
import time
from pathlib import Path

from runtime import cpu  # before paddle, which reads what it sets

# isort: split
import paddle
from paddle.nn import functional as F

import build
import config as configuration
from runtime import command, distributed
from runtime.logger import RunLog, progress
from runtime.weights import write_weights
from scheduler import format_rate
from val import evaluate


class TrainingError(RuntimeError):
    """A run that can't go on."""


def train(config):
    """Run the whole training of a configuration; returns the last validation's scores."""
    distributed.init()
    paddle.seed(config.TRAIN.SEED)
    if config.TRAIN.PRE_TRAIN:
        network, _ = build.trained_network(config, build.weights_path(config))
    else:
        network = build.network(config)
    # From here on every process draws its own dropout; weights come from the first one.
    paddle.seed(config.TRAIN.SEED + distributed.rank())
    schedule = build.schedule(config)
    optimizer = build.optimizer(config, network, schedule)
    model = paddle.DataParallel(network) if distributed.world_size() > 1 else network
    train_loader, eval_loader = build.train_loader(config), build.eval_loader(config)

    folder = Path(configuration.project_path(config.TRAIN.OUTPUT_DIR))
    if distributed.is_main():
        prepare_folder(folder)
        configuration.save_config(config, folder / 'config.yaml')
    log = RunLog(folder, config.TRAIN.VISUALDL)
    log.say(describe(config, network, train_loader, eval_loader))
    log.record('start', 0, config=dataclasses.asdict(config), **environment())

    names, epochs = build.class_names(config), config.SCHEDULER.NUM_EPOCHS
    best, scores = -1.0, {}
    for epoch in range(epochs):
        train_epoch(model, optimizer, schedule, train_loader, epoch, config, log)
        step = (epoch + 1) * len(train_loader)
        last_epoch = epoch == epochs - 1
        validated = last_epoch or (epoch + 1) % config.TRAIN.VAL_EVERY == 0
        if validated:
            scores = evaluate(network, eval_loader)
            log.say(f'ImageNet val acc is:{scores["top1"]:.4f}')
            log.record('validation', step, epoch=epoch, **scores)
        if distributed.is_main():
            metadata = dict(model=config.MODEL.NAME, image_size=config.MODEL.IMAGE_SIZE,
                            class_names=names, epoch=epoch)
            state = network.state_dict()
            write_weights(folder / 'last.pdparams', state, metadata)
            if validated and scores['top1'] > best:
                write_weights(folder / 'best.pdparams', state,
                              dict(metadata, top1=scores['top1'], top5=scores['top5']))
        if validated:
            best = max(best, scores['top1'])
    log.record('end', epochs * len(train_loader), best=best, **scores)
    log.say(f'best val acc: {best:.4f}, weights in {config.TRAIN.OUTPUT_DIR}/')
    log.say(f'ImageNet final val acc is:{scores["top1"]:.4f}')
    log.close()
    return scores


def train_epoch(model, optimizer, schedule, loader, epoch, config, log):
    """One pass over the training images.

    Loss and accuracy of the log lines are means over the epoch's images so far, of all
    processes; read_time and train_time are means over the steps since the line before. Values
    stay on the device until a line is due, so nothing waits for it on the way.
    """
    train, epochs, steps = config.TRAIN, config.SCHEDULER.NUM_EPOCHS, len(loader)
    first_progress = config.SCHEDULER.LAST_EPOCHS + 1 + epoch
    schedule.step(first_progress)
    loader.batch_sampler.set_epoch(epoch)
    model.train()
    total, since_line = Tally(), Tally()
    read_started = time.perf_counter()
    for step, (images, labels) in enumerate(progress(loader, f'epoch {epoch}'), start=1):
        since_line.read_time += time.perf_counter() - read_started
        if config.SCHEDULER.UPDATE == 'step':
            schedule.step(first_progress + (step - 1) / steps)
        logits = model(images)                                  # (B, num_classes)
        loss = cross_entropy(logits, labels, train.LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        since_line.add(loss.detach(), logits.detach(), labels)

        if step % train.LOG_EVERY == 0 or step == steps:
            read_time, train_time = since_line.times()
            images_per_second = since_line.seen * distributed.world_size() / (
                (read_time + train_time) * since_line.steps)
            total.merge(since_line)
            since_line = Tally()
            loss_mean, accuracy = total.means()
            if not math.isfinite(loss_mean):
                raise TrainingError(
                    f'the loss is {loss_mean} in epoch {epoch}, step {step}, at learning rate '
                    f'{format_rate(optimizer.get_lr())}: the rate may be too high; the weights '
                    f'of the epoch before are in {train.OUTPUT_DIR}/last.pdparams')
            if step % train.LOG_EVERY == 0:
                log.say(f'Epoch [{epoch}/{epochs}], Step [{step}/{steps}], Loss: {loss_mean:.4f},'
                        f'acc: {accuracy:.4f}, read_time: {read_time:.4f}, '
                        f'train_time: {train_time:.4f}, lr: {format_rate(optimizer.get_lr())}')
            log.record('step', epoch * steps + step, epoch=epoch, loss=loss_mean, acc=accuracy,
                       lr=optimizer.get_lr(), read_time=read_time, train_time=train_time,
                       images_per_second=images_per_second)
        read_started = time.perf_counter()
    log.say(f'Epoch [{epoch}/{epochs}], avg_Loss: {loss_mean:.4f}, avg_acc: {accuracy:.4f}')
    log.record('epoch', (epoch + 1) * steps, epoch=epoch, loss=loss_mean, acc=accuracy)


class Tally:
    """Sums over steps: loss and hits (kept on the device), images, and time."""

    def __init__(self):
        self.loss_sum = self.correct = 0.0
        self.seen = self.steps = 0
        self.read_time = 0.0
        self.started = time.perf_counter()

    def add(self, loss, logits, labels):
        """Count a batch with its mean loss, logits `[B, num_classes]` and labels `[B]`."""
        self.loss_sum = self.loss_sum + loss * len(labels)
        self.correct = self.correct + (logits.argmax(axis=1) == labels).astype('float32').sum()
        self.seen += len(labels)
        self.steps += 1

    def times(self):
        """Mean (read_time, train_time) of a step in seconds, after the device has finished."""
        if paddle.device.is_compiled_with_cuda():
            paddle.device.cuda.synchronize()
        elapsed = time.perf_counter() - self.started
        return self.read_time / self.steps, (elapsed - self.read_time) / self.steps

    def merge(self, other):
        """Take over another tally's sums, as plain numbers over all processes."""
        loss_sum, correct, seen = distributed.all_reduce_sum(
            [float(other.loss_sum), float(other.correct), other.seen])
        self.loss_sum += loss_sum
        self.correct += correct
        self.seen += seen

    def means(self):
        """Mean loss and accuracy over the images counted."""
        return self.loss_sum / self.seen, self.correct / self.seen


def cross_entropy(logits, labels, smoothing=0.0):
    """Mean cross entropy of logits `[B, num_classes]`, with a share of the target spread evenly."""
    if not smoothing:
        return F.cross_entropy(logits, labels)
    targets = F.label_smooth(F.one_hot(labels, logits.shape[1]), epsilon=smoothing)
    return F.cross_entropy(logits, targets, soft_label=True)


def prepare_folder(folder):
    """Make the run's folder; an earlier run in it is moved aside, never written over."""
    if folder.exists() and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f'{folder.name}.{number}')).exists():
            number += 1
        folder.rename(aside)
        print(f'{folder} held an earlier run, which is now {aside}')
    folder.mkdir(parents=True, exist_ok=True)


def describe(config, network, train_loader, eval_loader):
    sizes = [(math.prod(p.shape), p.stop_gradient) for p in network.parameters()]
    trainable = sum(size for size, frozen in sizes if not frozen)
    return (f'{config.MODEL.NAME} at {config.MODEL.IMAGE_SIZE} pixels, '
            f'{sum(size for size, _ in sizes):,} parameters ({trainable:,} trainable); '
            f'{len(train_loader.dataset):,} training and {len(eval_loader.dataset):,} validation '
            f'images; {distributed.world_size()} process(es) of '
            f'{config.TRAIN.TRAIN_BATCH_SIZE} images a step, '
            f'{cpu.threads()} thread(s) each')


def environment():
    """What a log must name for its figures to mean something."""
    return dict(paddle=paddle.__version__, python=platform.python_version(),
                device=paddle.device.get_device(), threads=cpu.threads(),
                processes=distributed.world_size())


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    options = parser.parse_args(arguments)
    train(configuration.load_config(options.config, options.override))


if __name__ == '__main__':
    command.run(main)
