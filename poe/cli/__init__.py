"""The command line, one file a command, listed in `poe.__main__`. It may use all folders of poe."""
