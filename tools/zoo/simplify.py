"""The same function of a network with less work, for deployment."""


def simplified(network):
    """A layer that computes what `network` does in evaluation."""
    return network
