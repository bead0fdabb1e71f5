"""Evaluation: methods restore degraded pictures, measures compare them with the originals, reports put it in tables.

`run.evaluate` ties them together, and `suites.SUITES` names what there is to ask for.
"""
