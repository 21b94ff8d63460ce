"""Settings as they are written down: the words of a command line, and YAML files. Both are data and run nothing."""
