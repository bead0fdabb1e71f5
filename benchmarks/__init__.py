"""Benchmarks, which run from a checkout and are not installed: each prints a table and writes raw JSON and a plot.

python -m benchmarks.engines            seconds a picture on PyTorch and ONNX Runtime, side by side
python -m benchmarks.settings           seconds a picture at several settings of the PyTorch reference
python -m benchmarks.serving            pictures a second through the server
python -m benchmarks.soak               what becomes of a server under thousands of requests, crowds, and kill -9
python -m benchmarks.training_memory    what training sd21's diffusion stage keeps in a GPU's memory
"""
