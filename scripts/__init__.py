"""Commands for people who work on the pack; nothing in here ships with it."""
