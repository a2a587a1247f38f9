"""The configuration tree and what belongs to it: the options, their presets and the device."""

from dgnet_fast.config.fields import ConfigError, coerce
from dgnet_fast.config.options import (
    DATASETS,
    SEVERAL,
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    differing,
    from_dict,
    load_config,
    option_names,
    read_yaml,
    set_in_tree,
    unknown_key,
    walk,
)

__all__ = [
    "DATASETS",
    "SEVERAL",
    "Config",
    "ConfigError",
    "DiscriminatorConfig",
    "GeneratorConfig",
    "coerce",
    "differing",
    "from_dict",
    "load_config",
    "option_names",
    "read_yaml",
    "set_in_tree",
    "unknown_key",
    "walk",
]
