"""The nano family: a rendered world, the captions of its clips, and the recipes that train on them."""
