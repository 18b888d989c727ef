"""How the costs grow: with the session, with the callbacks, with the savepoints, with the days.

Run ``python -m benchmarks.growth``, with ``--help`` for the rest.
"""
