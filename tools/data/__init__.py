"""Where do images come from?

    sources       which images there are, and what they are: the list of all forms of data
    images        what a form of data is asked for, and what it answers
    folders       a form: files in a list, in class folders, or with the class in their name
    cifar         a form: CIFAR-10 and CIFAR-100
    decode        image files to pixels
    transforms    crop, resize, flip, normalise
    loader        batches, in the order of a sampler
    workers       processes that read them, for paddle.io.DataLoader
"""


class DataError(ValueError):
    """The data is not what it should be. The one-line message says where, and what to do."""

    exit_code = 2
