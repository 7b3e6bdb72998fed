"""The pack's own small models, by the names that graphs use."""

from benchmarks.nano_run import Files

FILES = vars(Files())
