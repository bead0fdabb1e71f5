"""Evaluation: methods restore degraded pictures, measures compare them with the originals, reports show the results.

`run.evaluate` combines these parts, and `suites.SUITES` lists what can be evaluated.
"""
