"""Commands of `diffbody`, one file a subject; `diffbody.py` registers them."""
