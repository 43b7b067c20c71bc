"""The loss test: train with each loss on the same imbalanced data and see what it buys. Needs the extra ``lab``."""

from imbloss.lab.compare import compare
from imbloss.lab.data import Data, load
from imbloss.lab.sources import DataError

__all__ = ["Data", "DataError", "compare", "load"]
