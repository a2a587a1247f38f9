"""The configuration tree and what belongs to it: the options, their presets and the device."""

from dgnet_fast.config.fields import ConfigError, coerce
from dgnet_fast.config.options import (
    DATASETS,
    DRAWN,
    SEVERAL,
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    differing,
    from_dict,
    load_config,
    option_names,
    unknown_key,
    walk,
)
from dgnet_fast.config.yaml_files import read_mapping, read_yaml, set_in_tree

__all__ = [
    "DATASETS",
    "DRAWN",
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
    "read_mapping",
    "read_yaml",
    "set_in_tree",
    "unknown_key",
    "walk",
]
