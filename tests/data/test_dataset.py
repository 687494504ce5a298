"""Catches samples and orders that depend on anything but seed, epoch and index."""

import math

import numpy as np
import pytest
from support.pictures import write_jpegs

from data import DataError
from data.decode import decode_image
from data.transforms import TrainTransform
from dataset import EpochBatchSampler, ImageDataset


class TestImageDataset:
    @pytest.fixture
    def images(self, tmp_path):
        samples = write_jpegs(tmp_path, 3)
        return lambda **options: ImageDataset(samples, TrainTransform(16), **options)

    def test_sample(self, images):
        image, label = images()[2]
        assert image.shape == (3, 16, 16) and image.dtype == np.uint8
        assert label == 2 and label.dtype == np.int64
        assert len(images()) == 3

    def test_key_and_seed_determine_the_sample(self, images):
        first = images(seed=1)
        again = images(seed=1)
        order = [(0, 2), (1, 1), (0, 1), (1, 2)]
        expected = {key: first[key][0].tobytes() for key in order}
        for key in reversed(order):
            assert again[key][0].tobytes() == expected[key]
        assert len(set(expected.values())) == 4
        assert first[2][0].tobytes() == expected[0, 2]
        assert images(seed=2)[0, 2][0].tobytes() != expected[0, 2]

    def test_repetitions_differ_and_repetition_0_is_the_default(self, images):
        keys = [(1, 2), (1, 2, 0), (1, 2, 1), (1, 2, 2), (2, 2, 1), (1, 1, 1)]
        found = [images(seed=1)[key][0].tobytes() for key in keys]
        assert found[0] == found[1] and len(set(found[1:])) == 5
        assert images(seed=1)[1, 2, 2][0].tobytes() == found[3]
        # Repetition 0 has the seed of a key without repetition.
        dataset = images(seed=1)
        image = decode_image(dataset.samples[2][0])
        for key, seed in (((1, 2, 0), (1, 1, 2)), ((1, 2, 2), (1, 1, 2, 2))):
            expected = dataset.transform(image, np.random.default_rng(seed))
            np.testing.assert_array_equal(dataset[key][0], expected)

    def test_the_global_random_state_is_not_changed(self, images):
        np.random.seed(3)
        expected = np.random.random()
        np.random.seed(3)
        assert images()[0] is not None and np.random.random() == expected


class TestEpochBatchSampler:
    @pytest.mark.parametrize('count, world, drop_last', [
        (1, 1, False), (1, 3, False), (5, 2, False), (8, 2, False), (13, 3, False), (25, 3, False),
        (4, 1, True), (13, 1, True), (15, 2, True), (16, 2, True), (25, 3, True)])
    def test_ranks_split_the_epoch(self, count, world, drop_last):
        samplers = [EpochBatchSampler(range(count), 4, world, rank, drop_last=drop_last)
                    for rank in range(world)]
        steps = list(zip(*samplers))
        assert {len(sampler) for sampler in samplers} == {len(steps)}
        assert all(len(list(sampler)) == len(steps) for sampler in samplers)
        for number, parts in enumerate(steps):
            sizes = {len(part) for part in parts}
            assert sizes == {samplers[0].batch_length(number)}
            assert sizes == {4} or len(sizes) == 1 and number == len(steps) - 1 and not drop_last
        joined = [key for parts in steps for part in parts for key in part]
        per_rank = math.ceil(count / world)
        seen = world * (per_rank // 4 * 4 if drop_last else per_rank)
        assert joined == [(0, index % count) for index in range(seen)]

    def test_global_batches_do_not_depend_on_the_world_size(self):
        for epoch in (0, 3):
            keys = []
            for world in (1, 2):
                samplers = [EpochBatchSampler(range(24), 12 // world, world, rank, shuffle=True,
                                              seed=4) for rank in range(world)]
                for sampler in samplers:
                    sampler.set_epoch(epoch)
                keys.append([sorted(sum(parts, [])) for parts in zip(*samplers)])
            assert keys[0] == keys[1]

    def order(self, seed, epoch):
        sampler = EpochBatchSampler(range(50), 50, 1, 0, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        (batch,), (again,) = list(sampler), list(sampler)
        assert batch == again and {key[0] for key in batch} == {epoch}
        return [index for _, index in batch]

    def test_shuffle(self):
        assert self.order(0, 0) == self.order(0, 0)
        assert sorted(self.order(0, 0)) == list(range(50))
        orders = {tuple(self.order(seed, epoch)) for seed in range(3) for epoch in range(3)}
        assert len(orders) == 9 and tuple(range(50)) not in orders

    def test_a_window_keeps_shards_together(self):
        """Each shard is read in one window; shards and samples differ from epoch to epoch."""
        shard = np.repeat(np.arange(10), 7)

        def order(epoch, world=1, window=3):
            samplers = [EpochBatchSampler(range(70), 14 // world, world, rank, shuffle=True,
                                          shard=shard, window=window) for rank in range(world)]
            for sampler in samplers:
                sampler.set_epoch(epoch)
            return [index for parts in zip(*samplers) for part in parts for _, index in part]

        first, second = order(0), order(1)
        assert first != second and sorted(first) == sorted(second) == list(range(70))
        for found in (first, second):
            windows = [set(shard[found[start:start + 21]]) for start in range(0, 70, 21)]
            assert [len(window) for window in windows] == [3, 3, 3, 1]
            assert set().union(*windows) == set(range(10))
            assert found[:21] != sorted(found[:21])
            assert len({int(shard[index]) for index in found[:7]}) > 1
        assert order(1, world=2) == second
        for window in (0, 10, 99):    # as without shards, where all are in one window
            assert sorted(order(2, window=window)) == list(range(70))
        assert order(2, window=10) == order(2, window=0)

    def test_start_batch(self):
        sampler = EpochBatchSampler(range(11), 2, 1, 0, shuffle=True, seed=1)
        sampler.set_epoch(2)
        whole = list(sampler)
        sampler.set_epoch(2, start_batch=4)
        assert list(sampler) == whole[4:] and len(whole[4:]) == 2 and len(sampler) == 6
        sampler.set_epoch(3)
        assert len(list(sampler)) == 6

    @pytest.mark.parametrize('count, world, repeats, drop_last', [
        (300, 1, 3, False), (700, 2, 3, False), (800, 3, 3, True), (1000, 4, 2, False),
        (520, 8, 5, True)])
    def test_repeats_equal_deit(self, count, world, repeats, drop_last):
        """Against DeiT's definition, on lists: repeat, take turns, cut."""
        samplers = [EpochBatchSampler(range(count), 16, world, rank, shuffle=True, seed=9,
                                      drop_last=drop_last, repeats=repeats)
                    for rank in range(world)]
        plain = EpochBatchSampler(range(count), count, 1, 0, shuffle=True, seed=9)
        for sampler in [plain, *samplers]:
            sampler.set_epoch(2)
        ((*order,),) = plain
        repeated = [(*key, copy) for key in order for copy in range(repeats)]
        for rank, sampler in enumerate(samplers):
            expected = repeated[rank::world][:math.floor(count // 256 * 256 / world)]
            if drop_last:
                expected = expected[:len(expected) // 16 * 16]
            batches = list(sampler)
            assert [key for batch in batches for key in batch] == expected
            assert len(sampler) == len(batches) and {len(b) for b in batches[:-1]} <= {16}
            sampler.set_epoch(2, start_batch=3)
            assert list(sampler) == batches[3:] and len(sampler) == len(batches)

    def test_repeats_of_a_small_data_set(self):
        for world in (1, 2, 3):
            samplers = [EpochBatchSampler(range(20), 4, world, rank, repeats=3)
                        for rank in range(world)]
            keys = [key for sampler in samplers for batch in sampler for key in batch]
            assert len(keys) == len(set(keys)) == 20 // world * world
            assert {index for _, index, _ in keys} == set(range(math.ceil(len(keys) / 3)))
        with pytest.raises(DataError, match='2 image.s. for 3'):
            EpochBatchSampler(range(2), 4, 3, 0, repeats=3)

    def test_no_batch_is_an_error(self):
        with pytest.raises(DataError, match='7 image.s. for 2 process.es. do not fill a batch of'):
            EpochBatchSampler(range(7), 8, 2, 0, drop_last=True)
        with pytest.raises(DataError):
            EpochBatchSampler([], 8, 1, 0)
