"""Latency and quality, measured side by side; each module prints a table and writes raw JSON and a plot."""
