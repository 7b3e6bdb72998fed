"""Video files, one frame at a time: nothing here holds more of a clip than its encoder or decoder does."""
