"""The configs: one folder per family, one YAML per policy."""
