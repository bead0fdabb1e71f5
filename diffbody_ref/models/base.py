"""What our own networks share: a frozen dataclass as configuration, saved and loaded the diffusers way."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class ConfiguredModel(ModelMixin, ConfigMixin):
    """A diffusers model built from one frozen dataclass.

    A subclass names its dataclass in `config_dataclass` and takes one in `__init__`. `save_pretrained` writes the
    dataclass's fields to `config.json`; `from_pretrained` and `from_config` rebuild the dataclass from it, so a field
    that the dataclass does not have is an error and not silently dropped. `settings` is the dataclass itself.
    """

    config_name = "config.json"
    config_dataclass: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.settings = config
        self.register_to_config(**dataclasses.asdict(config))

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build the (untrained) model from a mapping of the dataclass's fields.

        Raises:
            TypeError: a field is unknown to the dataclass.
        """
        fields = {name: value for name, value in {**config, **kwargs}.items() if not name.startswith("_")}
        model = cls(cls.config_dataclass(**{name: _as_tuple(value) for name, value in fields.items()}))
        return (model, {}) if return_unused_kwargs else model


def _as_tuple(value: Any) -> Any:
    """JSON has lists only; the frozen dataclasses hold (nested) tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
