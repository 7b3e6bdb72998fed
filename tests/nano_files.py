"""The pack's own small models, by the names that graphs use."""

from benchmarks.nano_run import Files

FILES = {name: path for name, path in vars(Files()).items() if not name.startswith("i2v")}
