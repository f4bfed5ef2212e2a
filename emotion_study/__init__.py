__version__ = "0.1.0"
from . import core  # settles the environment before a library that reads it is loaded
