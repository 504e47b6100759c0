"""Who can be recognized as a training patient of a shared gene-expression classifier, and which defense helps.

One road for the data, one module a step::

    cohorts -> features -> membership -> bank -> attacks -> metrics -> results -> plots

Import the modules, not names from here: ``from genlib import cohorts, features, membership``.
"""

import os
import warnings

# TensorFlow talks on standard error about processor features before anything can be configured from Python.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


# A dependency of TensorFlow's model garden announces the end of Python 3.11 on import; nothing here uses it.
warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)

__version__ = "0.1.0"
