"""Stands in for cupy.cuda.thrust (sorting), whose compiled form holds GPU code: CuPy then refuses to sort, by name."""

available = False


def get_build_version():
    return 0
