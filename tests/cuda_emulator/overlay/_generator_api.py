"""Stands in for cupy.random._generator_api, which brings a CUDA runtime of its own: without a GPU it computes garbage."""

from cuda.pathfinder import RANDOM_MESSAGE


class Generator:
    def __init__(self, *args, **kwargs):
        raise NotImplementedError(RANDOM_MESSAGE)


class FeistelBijection(Generator):
    pass


def init_curand(*args):
    raise NotImplementedError(RANDOM_MESSAGE)


def random_raw(*args):
    raise NotImplementedError(RANDOM_MESSAGE)
