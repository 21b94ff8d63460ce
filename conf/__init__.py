"""Configuration values only: YAML files, one folder a group. Types and defaults live in the dataclasses they fill."""
