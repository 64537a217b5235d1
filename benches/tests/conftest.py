"""The runner of `make bench` is not installed anywhere: its tests find it beside them."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
