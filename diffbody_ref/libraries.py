"""What libraries print by themselves, which this project's commands do not show."""

from __future__ import annotations


def silence_libraries() -> None:
    """Turn off the progress bars of diffusers, transformers and huggingface_hub."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
