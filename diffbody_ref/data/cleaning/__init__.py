"""The paper's cleaning protocol (§4.1): screen, detect, crop, inspect."""
