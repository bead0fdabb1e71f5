"""Commands of `diffbody` by subject; `diffbody.py` registers them."""
