"""Where do images come from?

    sources       which images there are, and what they are
    decode        image files to pixels
    transforms    crop, resize, flip, normalise
    loader        batches, read by worker processes
"""


class DataError(ValueError):
    """The data is not what it should be. The one-line message says where, and what to do."""

    exit_code = 2
