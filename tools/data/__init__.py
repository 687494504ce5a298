"""Where do images come from?

    sources       the list of data formats, and the functions that search it
    images        the request to a data format, and its result
    samples       names and labels of images, in a few arrays
    index         cached indexes of large data sets
    folders       data formats of image files: a list, class folders, class names in file names
    shards        the data format of tar shards, and their writer
    cifar         the data format of CIFAR-10 and CIFAR-100
    imagenet_sets    published test sets for networks trained on ImageNet
    decode        image files to pixels
    jpeg          a quick way from a JPEG to a resized part of it
    transforms    crop, resize, flip, normalise
    loader        batches in the order of a sampler
    imagenet      ImageNet's published files: devkit, archives, class order
    archives      tar archives read in place
    extract       images from archives to class folders
    checks        what is unusual about an image file
    splits        image lists: written, split, subsets
    workers       worker processes that fill batches in shared memory
"""


class DataError(ValueError):
    """Invalid data. The message is one line with the file or folder and what to do."""

    exit_code = 2
