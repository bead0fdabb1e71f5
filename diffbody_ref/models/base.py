"""The base class of our own networks: their configuration is a frozen dataclass, saved and loaded as in diffusers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class ConfiguredModel(ModelMixin, ConfigMixin):
    """A diffusers model that is built from one frozen dataclass.

    `save_pretrained` writes the dataclass's fields to `config.json`; `from_pretrained` and `from_config` rebuild the
    dataclass from it. So a field that the dataclass does not have is an error and is not silently dropped.

    Attributes:
        config_dataclass: class of the configuration, set by the subclass, whose `__init__` takes an instance.
        settings: the configuration.
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
            TypeError: the dataclass does not have a field.
        """
        fields = {name: value for name, value in {**config, **kwargs}.items() if not name.startswith("_")}
        model = cls(cls.config_dataclass(**{name: _as_tuple(value) for name, value in fields.items()}))
        return (model, {}) if return_unused_kwargs else model


def _as_tuple(value: Any) -> Any:
    """Convert lists to tuples, also nested ones: JSON only has lists, but the frozen dataclasses contain tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
