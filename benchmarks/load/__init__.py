"""Under load: more threads than connections, ours beside the commits written by hand.

Run ``python -m benchmarks.load``, with ``--help`` for the rest.
"""
