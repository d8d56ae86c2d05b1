"""Composing the configs of many jobs that differ in a few values."""

from __future__ import annotations

import copy
import sys
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException


class SweepLoader(ConfigLoaderImpl):  # type: ignore[misc, unused-ignore]
    """Hydra's loader, which composes each choice of options once and sets the values of each job in a copy of that.

    Hydra applies values after all options are merged, so that the outcome is the same; a test holds it. It goes to
    other processes without what it has composed.
    """

    def __init__(self, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_composed": {}}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of the job with ``sweep_overrides``, in a sweep of ``master_config``."""
        words = [*(str(word) for word in master_config.hydra.overrides.hydra), *sweep_overrides]
        parsed = OverridesParser.create().parse_overrides(words)
        if any(override.get_key_element().lstrip("+~").startswith("hydra.searchpath") for override in parsed):
            return super().load_sweep_config(master_config, sweep_overrides)
        self.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=True)
        options = [override for override in parsed if self._is_option(override)]
        config = copy.deepcopy(self._base(master_config, options))
        try:
            ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o not in options], config)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException().with_traceback(sys.exc_info()[2]) from error
        _note_overrides(config, parsed)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _is_option(self, override: Override) -> bool:
        """It picks an option of a group, as Hydra decides that: a dict is always a value."""
        is_group: bool = self.repository.group_exists(override.key_or_group)
        return is_group and not isinstance(override.value(), dict)

    def _base(self, master_config: DictConfig, options: list[Override]) -> DictConfig:
        words = [str(override.input_line) for override in options]
        if (key := tuple(words)) not in self._composed:
            name = master_config.hydra.job.config_name
            self._composed[key] = self.load_configuration(config_name=name, overrides=words, run_mode=RunMode.RUN)
        return self._composed[key]


def _note_overrides(config: DictConfig, overrides: list[Override]) -> None:
    """Write into ``config`` which words made it, as Hydra does."""
    own = [override for override in overrides if not override.is_hydra_override()]
    names = config.hydra.job.config.override_dirname
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.hydra = [o.input_line for o in overrides if o.is_hydra_override()]
        config.hydra.overrides.task = [o.input_line for o in own]
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=own, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
