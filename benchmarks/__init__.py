"""Side by side with torch, transformers + peft, autograd and mygrad: every side in a process of its own.

`python -m benchmarks.steps` times one training step, `python -m benchmarks.compare_job` a whole comparison, and
`python -m benchmarks.scaling` shows how our own step grows. Install the peers with `pip install '.[bench]'` and run from
the root of the repository, on a machine that does nothing else.
"""
