"""DiffBody behind Triton Inference Server: the model repository, the server and its client."""
